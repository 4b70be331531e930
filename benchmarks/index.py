"""What eleven million examples cost: memory and start-up time of a training process.

    python -m benchmarks.index --entries 11185362 --workers 2

A synthetic SA-1B of that many images (a few real ones, listed over and over) is opened as training
opens it: once from archives with a kept listing and index, once from records. Memory is what only
this process has (USS): mapped files count for the machine once, however many processes read them.
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
import pathlib
import pickle
import sys
import tempfile
import time

import numpy as np
import psutil

from data_pipelines.builders.tfds_builder import RecordsBuilder
from data_pipelines.index import open_index
from data_pipelines.index.build import save_index
from data_pipelines.index.scan import IndexReport, with_views
from data_pipelines.index.strings import StringTable
from data_pipelines.mixture import Mixture
from data_pipelines.pipeline import PipelineConfig, StreamConfig, make_iterator
from data_pipelines.schema import BatchShape
from data_pipelines.sources import SA1B, open_source
from data_pipelines.sources.sa1b_listing import Listing, read_listing, save_listing, stamp_of
from data_pipelines.vocabulary import build_vocabulary
from tests.data_pipelines.trees import make_scene, write_sa1b_archives

IMAGES = 1000
MB = 1e6


def main() -> None:
    """Writes the set and opens it in both forms, each in a new process."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--entries", type=int, default=11_185_362)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        write_sa1b_archives(folder / "tars", [make_scene("sa1b", n) for n in range(IMAGES)], IMAGES)
        start = time.perf_counter()
        write_listing(folder, args.entries)
        print(f"listing of {args.entries:,} names written in {time.perf_counter() - start:.1f} s")
        write_records(folder, args.entries)
        for kind in ("tars", "records"):
            # A fresh process, as a run starts; nothing of the preparation is in its memory.
            process = multiprocessing.get_context("spawn").Process(
                target=measure, args=(kind, folder, args.workers)
            )
            process.start()
            process.join()
            if process.exitcode:
                sys.exit(process.exitcode)


def write_listing(folder: pathlib.Path, entries: int) -> None:
    """Keeps a listing and an index as if a scan had left them.

    Args:
        folder: with archives of `IMAGES` images in `tars`; the listing goes into `cache`.
        entries: images in the listing; the real ones over and over.
    """
    real = read_listing(folder / "tars")
    places = np.resize(real.places, entries)
    listing = Listing(StringTable.of(f"sa_{n}" for n in range(entries)), real.archives, places)
    cache = folder / "cache"
    probe = read_listing(folder / "tars", cache)  # makes the kept folder
    save_listing(listing, stamp_of(folder / "tars", list(real.archives)), probe.cache)
    source = SA1B(folder / "tars", "train", build_vocabulary([]), cache=cache)
    save_index(cache / f"sa1b-{source.fingerprint}", *synthetic_index(entries))


def write_records(folder: pathlib.Path, entries: int) -> None:
    """One built shard under as many names as the whole set has shards.

    Args:
        folder: as for `write_listing`; records go into `records`.
        entries: images of the set, rounded up to whole shards.
    """
    builder = RecordsBuilder("sa1b", folder / "tars", "train", folder / "records")
    builder.download_and_prepare()
    data = pathlib.Path(builder.plan.folder)
    manifest = json.loads((data / "records.json").read_text())
    shards = -(-entries // IMAGES)
    entry = manifest["files"][0]
    manifest["files"] = []
    for number in range(shards):
        name = f"sa1b-train.array_record-{number:05d}-of-{shards:05d}"
        os.link(data / entry["file"], data / name)
        manifest["files"].append({**entry, "file": name})
    (data / "records.json").write_text(json.dumps(manifest))
    save_index(data / "index", *synthetic_index(shards * IMAGES))


def synthetic_index(entries: int) -> tuple[dict[str, np.ndarray], IndexReport]:
    """An index of so many images with two masks each, [entries] an array, and its report."""
    arrays = {
        "position": np.arange(entries, dtype=np.int64),
        "num_instances": np.full(entries, 2, np.int32),
        "has_object": np.zeros(entries, np.bool_),
        "has_part": np.zeros(entries, np.bool_),
    }
    return with_views(arrays), IndexReport("sa1b", entries, entries, 2 * entries, {}, {})


def measure(kind: str, folder: pathlib.Path, workers: int) -> None:
    """Opens the set and draws rows; prints what that costs.

    Args:
        kind: `tars` or `records`.
        folder: as for `write_listing`.
        workers: processes that read.
    """
    me = psutil.Process()
    before = me.memory_full_info().uss
    start = time.perf_counter()
    root = folder / "tars" if kind == "tars" else folder / "records/sa1b"
    vocabulary = build_vocabulary([])
    cache = folder / "cache"
    source = open_source("sa1b", root, "train", vocabulary, cache=cache)
    opened = time.perf_counter()
    index = open_index(source, "sa1b", cache=cache)
    config = PipelineConfig(
        shape=BatchShape(image_size=64, num_prompts=4),
        interactive=StreamConfig(16, Mixture({"sa1b": 1.0})),
        generic=StreamConfig(0, Mixture({})),
        num_workers=workers,
        num_threads=2,
    )
    rows = make_iterator(config, {"sa1b": source}, vocabulary, indexes={"sa1b": index})
    ready = time.perf_counter()
    own = me.memory_full_info().uss - before
    print(f"\n{kind}: {len(source):,} images in {type(source).__name__}")
    print(f"  open the source         {opened - start:8.2f} s")
    print(f"  open index, mix, shuffle{ready - opened:8.2f} s")
    print(f"  memory of the process   {own / MB:8.1f} MB more than before opening")
    name = source.example_ids[len(source) // 2]
    strings = len(source) * (sys.getsizeof(name) + 8)
    print(f"  (names as a Python tuple{strings / MB:8.0f} MB)")
    print(f"  source and index pickle to {len(pickle.dumps((source, index))):,} bytes a worker")
    for _ in range(20):
        next(rows)
    for child in me.children(recursive=True):
        if "resource_tracker" not in " ".join(child.cmdline()):
            print(f"  worker {child.pid}: {child.memory_full_info().uss / MB:8.1f} MB")
    rows.close()
    alone = make_iterator(
        dataclasses.replace(config, num_workers=0, num_threads=0, prefetch=0),
        {"sa1b": source},
        vocabulary,
        indexes={"sa1b": index},
    )
    start = time.perf_counter()
    for _ in range(60):
        next(alone)
    print(f"  960 shuffled rows in {time.perf_counter() - start:.1f} s; process grew by "
          f"{(me.memory_full_info().uss - before) / MB:.0f} MB in all")  # fmt: skip


if __name__ == "__main__":
    main()
