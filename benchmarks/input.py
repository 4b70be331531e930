"""How fast one core turns records into training rows, and how much memory a worker needs.

    python -m benchmarks.input
    python -m benchmarks.input --workers 2

Two records, as `data_pipelines.build` writes them: one like SA-1B's (a 2250x1500 JPEG with
camera-like detail, 100 ragged masks of all sizes) and one like COCO's panoptic (640x480, 20
segments that cover the image). Decoding the JPEG alone is the bound that no amount of work on the
masks can pass; it is given at the reduced scale at which the row decodes it. With --workers the
SA-1B record is read by worker processes, as training does, and their memory is watched.
"""

import argparse
import cProfile
import functools
import io
import json
import pathlib
import pstats
import resource
import tempfile
import time
from collections.abc import Callable

import cv2
import numpy as np
import psutil
from PIL import Image
from pycocotools import mask as coco_mask

from data_pipelines import decode
from data_pipelines.builders.codec import RecordDecoder, RecordEncoder
from data_pipelines.builders.tfds_builder import RecordsBuilder
from data_pipelines.mixture import Mixture
from data_pipelines.pipeline import PipelineConfig, StreamConfig, make_iterator
from data_pipelines.schema import BatchShape, RawExample, RawInstance
from data_pipelines.sources import open_source
from data_pipelines.transforms import geometry, row
from data_pipelines.transforms.prompts import PromptPolicy
from data_pipelines.vocabulary import build_vocabulary


def random_jpeg(rng: np.random.Generator, height: int, width: int) -> bytes:
    """A JPEG file with smooth colours and camera noise: about 0.3 bytes a pixel.

    Args:
        rng: of colours and noise.
        height: pixels.
        width: pixels.
    """
    coarse = rng.integers(0, 255, (height // 32, width // 32, 3)).astype(np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.float32)
    noisy = np.clip(smooth + rng.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noisy).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def instance(mask: np.ndarray, object_id: int) -> RawInstance:
    """An annotated mask.

    Args:
        mask: bool [h, w].
        object_id: of its class; -1 for none.
    """
    rle = coco_mask.encode(np.asfortranarray(mask))
    x, y, w, h = (float(value) for value in coco_mask.toBbox(rle))
    return RawInstance(rle=rle, box=(x, y, x + w, y + h), object_id=object_id)


def sa1b_example(num_masks: int, height: int = 1500, width: int = 2250) -> RawExample:
    """An image as SA-1B's, with ragged blobs: most are small, a few cover much of it.

    Args:
        num_masks: blobs.
        height: pixels.
        width: pixels.
    """
    rng = np.random.default_rng(0)
    noise = cv2.resize(rng.normal(0, 1, (height // 24, width // 24)), (width, height))
    yy, xx = np.mgrid[:height, :width].astype(np.float32)
    instances = []
    for _ in range(num_masks):
        radius = min(height, width) / 2 * float(np.exp(rng.uniform(-4, 0)))
        y, x = rng.uniform(0, height), rng.uniform(0, width)
        instances.append(instance(np.hypot(yy - y, xx - x) / radius + 0.15 * noise <= 1, -1))
    image = random_jpeg(rng, height, width)
    return RawExample("sa1b", "synthetic", image, height, width, tuple(instances))


def coco_example(num_segments: int = 20, height: int = 480, width: int = 640) -> RawExample:
    """An image as COCO panoptic's, with ragged cells that together cover it.

    Args:
        num_segments: cells, of as many classes.
        height: pixels.
        width: pixels.
    """
    rng = np.random.default_rng(0)
    yy, xx = np.mgrid[:height, :width].astype(np.float32)
    noise = cv2.resize(rng.normal(0, 25, (height // 8, width // 8)), (width, height))
    seeds = rng.uniform(0, 1, (num_segments, 2)) * (height, width)
    distance = [np.hypot(yy - y, xx - x) + noise * rng.uniform(0, 1) for y, x in seeds]
    owner = np.argmin(distance, axis=0)
    instances = [instance(owner == i, i) for i in range(num_segments) if (owner == i).any()]
    image = random_jpeg(rng, height, width)
    return RawExample("coco", "synthetic", image, height, width, tuple(instances))


def rate(work: Callable[[], object], repeats: int) -> float:
    """Runs per second of processor time, so that other work on the machine counts little.

    Args:
        work: what is timed, once before the clock starts.
        repeats: timed runs.
    """
    work()
    start = time.process_time()
    for _ in range(repeats):
        work()
    return repeats / (time.process_time() - start)


def make_row(decoder: RecordDecoder, record: bytes, maker: row.RowMaker, rng) -> dict:
    """A training row (`data_pipelines.schema`) of a stored record."""
    return maker((decoder(record), "any"), rng)


def measure(example: RawExample, augment: geometry.Augment, stride: int, repeats: int) -> Callable:
    """Prints the rates of one record.

    Args:
        example: becomes the record.
        augment: of its dataset.
        stride: of the masks on the canvas, pixels.
        repeats: timed runs.

    Returns:
        The work of a row, for a profile.
    """
    vocabulary = build_vocabulary(["coco"])
    maker = row.RowMaker(
        shape=BatchShape(mask_stride=stride, vocab_size=len(vocabulary)),
        policy=PromptPolicy(),
        augments={example.dataset: augment},
        vocab_valid={example.dataset: vocabulary.valid(example.dataset)},
        dataset_index={example.dataset: 0},
    )
    record = RecordEncoder(example.dataset, vocabulary)(example)
    decoder, rng = RecordDecoder(example.dataset, vocabulary), np.random.default_rng(0)
    work = functools.partial(make_row, decoder, record, maker, rng)
    outlines = sum(len(item.rle["counts"]) for item in example.instances)
    print(
        f"{example.dataset}: {example.width}x{example.height}, JPEG "
        f"{len(example.image) / 1e6:.2f} MB, {len(example.instances)} masks in "
        f"{outlines / 1e3:.0f} kB of RLE; masks at stride {stride}"
    )
    reduction = 2 if augment is geometry.SA1B else 1
    bound = rate(
        functools.partial(
            decode.decode_image, example.image, where="benchmark", reduction=reduction
        ),
        repeats,
    )
    print(f"  JPEG alone, at 1/{reduction}     {bound:6.1f} images/s")
    print(f"  record to Example      {rate(functools.partial(decoder, record), repeats):6.1f} /s")
    rows = rate(work, repeats)
    print(f"  record to row          {rows:6.1f} images/s, {100 * rows / bound:.0f} % of the bound")
    return work


def measure_workers(example: RawExample, workers: int, batches: int) -> None:
    """Prints the rows a second of worker processes, and the most memory (MB) one of them held.

    Args:
        example: read over and over.
        workers: processes.
        batches: of four rows, timed after the first.
    """
    config = PipelineConfig(
        shape=BatchShape(),
        interactive=StreamConfig(4, Mixture({"sa1b": 1.0})),
        generic=StreamConfig(0, Mixture({})),
        num_workers=workers,
        num_threads=2,
    )
    with tempfile.TemporaryDirectory() as scratch:
        root = pathlib.Path(scratch)
        write_images(example, root / "native", count=8)
        RecordsBuilder("sa1b", root / "native", "train", root, num_threads=1).download_and_prepare()
        vocabulary = build_vocabulary([])
        source = open_source("sa1b", root / "sa1b", "train", vocabulary)
        rows = make_iterator(config, {"sa1b": source}, vocabulary)
        next(rows)
        start, largest = time.perf_counter(), 0
        for _ in range(batches):
            next(rows)
            for child in psutil.Process().children(recursive=True):
                largest = max(largest, child.memory_full_info().uss)
        seconds = time.perf_counter() - start
        rows.close()
    speed = 4 * batches / seconds
    print(f"{workers} workers: {speed:.1f} rows/s, each at most {largest / 1e6:.0f} MB")


def write_images(example: RawExample, folder: pathlib.Path, count: int) -> None:
    """The example some times over, as unpacked SA-1B.

    Args:
        example: image and masks.
        folder: is made.
        count: copies.
    """
    folder.mkdir()
    annotations = [
        {"segmentation": {"size": item.rle["size"], "counts": item.rle["counts"].decode()}}
        for item in example.instances
    ]
    content = {"image": {"height": example.height, "width": example.width}}
    for number in range(count):
        (folder / f"sa_{number}.jpg").write_bytes(example.image)
        (folder / f"sa_{number}.json").write_text(
            json.dumps(content | {"annotations": annotations})
        )


def main() -> None:
    """Prints the rates, and the peak memory of the process."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--masks", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--profile", action="store_true", help="show where the time goes")
    parser.add_argument("--workers", type=int, default=0, help="watch so many worker processes")
    args = parser.parse_args()
    if args.workers:
        measure_workers(sa1b_example(args.masks), args.workers, args.repeats)
        return
    cv2.setNumThreads(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    coco = coco_example()
    measure(coco, geometry.LSJ, 1, args.repeats)
    sa1b = sa1b_example(args.masks)
    for stride in (4, 1):
        work = measure(sa1b, geometry.SA1B, stride, args.repeats)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"peak memory of the process: {peak / 1e3:.0f} MB ({before / 1e3:.0f} MB after import)")
    if args.profile:
        profile = cProfile.Profile()
        for _ in range(args.repeats):
            profile.runcall(work)
        pstats.Stats(profile).sort_stats("tottime").print_stats(18)


if __name__ == "__main__":
    main()
