"""How fast one core turns an SA-1B-like record into a training row.

    python -m benchmarks.input --masks 100 --repeats 10

The record is synthetic: a 2250x1500 JPEG with camera-like detail and ragged-edged masks of all
sizes. Decoding alone is the bound that no amount of work on the masks can pass.
"""

import argparse
import cProfile
import dataclasses
import functools
import io
import pstats
import time
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from data_pipelines import decode
from data_pipelines.schema import BatchShape, RawExample, RawInstance
from data_pipelines.transforms import geometry, row
from data_pipelines.transforms.prompts import PromptPolicy


def synthetic_record(num_masks: int, height: int = 1500, width: int = 2250) -> RawExample:
    """A photo-like JPEG of about 1 MB with `num_masks` ragged blobs."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (height // 32, width // 32, 3)).astype(np.uint8)
    photo = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.float32)
    photo = np.clip(photo + rng.normal(0, 8, photo.shape), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(photo).save(buffer, "JPEG", quality=88)
    noise = cv2.resize(rng.normal(0, 1, (height // 24, width // 24)), (width, height))
    yy, xx = np.mgrid[:height, :width].astype(np.float32)
    instances = []
    for _ in range(num_masks):
        # SA-1B: most masks are small, a few cover much of the photo.
        radius = min(height, width) / 2 * float(np.exp(rng.uniform(-4, 0)))
        y, x = rng.uniform(0, height), rng.uniform(0, width)
        blob = np.hypot(yy - y, xx - x) / radius + 0.15 * noise <= 1
        instances.append(
            RawInstance(rle=coco_mask.encode(np.asfortranarray(blob)), box=(0, 0, 1, 1))
        )
    return RawExample("sa1b", "synthetic", buffer.getvalue(), height, width, tuple(instances))


def rate(work: Callable[[], object], repeats: int) -> float:
    """Runs per second of processor time, so that other work on the machine counts little."""
    work()
    start = time.process_time()
    for _ in range(repeats):
        work()
    return repeats / (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--masks", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--profile", action="store_true", help="show where the time goes")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    record = synthetic_record(args.masks)
    photo = len(record.image)
    outlines = sum(len(instance.rle["counts"]) for instance in record.instances)
    print(
        f"record: JPEG {photo / 1e6:.2f} MB, {args.masks} masks in {outlines / 1e3:.0f} kB of RLE"
    )
    for reduction in (1, 2):
        work = functools.partial(
            decode.decode_image, record.image, where="benchmark", reduction=reduction
        )
        print(f"decode, 1/{reduction} size              {rate(work, args.repeats):8.1f} /s")
    for name, augment in (("SA-1B policy", geometry.SA1B), ("large jitter", geometry.LSJ)):
        for stride in (1, 4):
            shape = BatchShape(mask_stride=stride)
            maker = row.RowMaker(
                shape=shape,
                policy=PromptPolicy(),
                augments={"sa1b": augment},
                vocab_valid={"sa1b": np.zeros(1, bool)},
                dataset_index={"sa1b": 0},
            )
            rng = np.random.default_rng(0)
            speed = rate(functools.partial(maker, (record, "any"), rng), args.repeats)
            print(f"row, {name}, stride {stride}  {speed:8.1f} /s")
    if args.profile:
        maker = dataclasses.replace(maker, shape=BatchShape(), augments={"sa1b": geometry.SA1B})
        profile = cProfile.Profile()
        for _ in range(args.repeats):
            profile.runcall(maker, (record, "any"), np.random.default_rng(0))
        pstats.Stats(profile).sort_stats("tottime").print_stats(18)


if __name__ == "__main__":
    main()
