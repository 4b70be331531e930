"""One shard of a build: written atomically, hashed, and never written twice.

A build is a folder: `build.json` describes it, each span of the source's examples is one
ArrayRecord file, and a receipt next to it lists its contents, size and hash. After an interruption,
shards whose receipt fits their file are skipped.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent import futures

from array_record.python import array_record_module
from etils import epath

from data_pipelines.builders.codec import RecordEncoder
from data_pipelines.index.files import write_json
from data_pipelines.index.scan import BROKEN, Entry, ScanTally, current_reasons, read_entry
from data_pipelines.sources.base import Source
from data_pipelines.sources.single_dataset import open_single_dataset
from semsam_jax.core.errors import DataError

_OPTIONS = "group_size:1"  # one record a chunk, so that each can be read alone


@dataclasses.dataclass(frozen=True)
class ShardPlan:
    """Description of a build, small enough to be sent to workers.

    Attributes:
        dataset: its name.
        root: its folder, the same on every worker.
        split: which part of it.
        options: of the reader, as JSON.
        folder: where the records go, a path or a bucket.
        num_records: records of the source, broken ones included.
        num_shards: files to write.
    """

    dataset: str
    root: str
    split: str
    options: str
    folder: str
    num_records: int
    num_shards: int

    def span(self, shard: int) -> range:
        """Positions in the source that belong to a shard."""
        first, end = (self.num_records * i // self.num_shards for i in (shard, shard + 1))
        return range(first, end)

    def file(self, shard: int) -> epath.Path:
        """The shard's ArrayRecord file, named as TFDS wants it."""
        number = f"{shard:05d}-of-{self.num_shards:05d}"
        return epath.Path(self.folder) / f"{self.dataset}-{self.split}.array_record-{number}"

    def receipt(self, shard: int) -> epath.Path:
        """The JSON file that describes the shard."""
        return epath.Path(self.folder) / "receipts" / f"{shard:05d}.json"

    def open(self) -> Source:
        """Opens the source; a process that writes many shards opens it once."""
        return _opened(self.dataset, self.root, self.split, self.options)


@functools.lru_cache(maxsize=2)
def _opened(dataset: str, root: str, split: str, options: str) -> Source:
    return open_single_dataset(dataset, root, split, json.loads(options), is_native=True)


def forget_sources() -> None:
    """Forgets open sources, whose files may have changed since the last build."""
    _opened.cache_clear()


def read_receipt(plan: ShardPlan, shard: int) -> dict | None:
    """Returns the receipt of a complete shard, else None."""
    file = plan.receipt(shard)
    if not file.exists():
        return None
    try:
        receipt = json.loads(file.read_text())
    except ValueError:  # cut short: as good as none
        return None
    data = plan.file(shard)
    if not data.exists() or data.stat().length != receipt["bytes"]:
        return None
    return receipt


def is_current(plan: ShardPlan, receipt: dict) -> bool:
    """Whether a shard is up to date with its source's files, by their sizes and ages."""
    made_of = receipt.get("source")  # missing in receipts of earlier releases
    return made_of in (None, plan.open().content_hash(plan.span(receipt["shard"])))


def has_broken(receipt: dict) -> bool:
    """Whether records of the shard could not be read."""
    dropped = current_reasons(receipt["dropped"])
    return any(dropped.get(reason, 0) for reason in BROKEN)


def is_intact(plan: ShardPlan, receipt: dict) -> bool:
    """Reads a shard's file again and compares its hash."""
    with plan.file(receipt["shard"]).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == receipt["sha256"]


def write_shard(
    plan: ShardPlan,
    shard: int,
    *,
    num_threads: int = 1,
    progress: Callable[[int], object] = lambda seen: None,
) -> dict:
    """Writes a shard and its receipt.

    Args:
        plan: the build.
        shard: which of its shards.
        num_threads: readers at a time.
        progress: called after every record with the number of new ones.

    Returns:
        The receipt.

    Raises:
        DataError: the file on disk or in the bucket is not what was written.
    """
    source = plan.open()
    stamp = source.content_hash(plan.span(shard))
    tally = ScanTally()
    final = plan.file(shard)
    is_remote = "://" in plan.folder
    with tempfile.TemporaryDirectory(
        dir=None if is_remote else plan.folder, prefix=f"shard-{shard:05d}-"
    ) as scratch:
        local = pathlib.Path(scratch) / "records"
        writer = array_record_module.ArrayRecordWriter(os.fspath(local), _OPTIONS)
        for position, entry, record in _records(source, plan.span(shard), num_threads):
            tally.add(position, entry)
            if record is not None:
                with _disk_errors(final):
                    writer.write(record)
            progress(1)
        with _disk_errors(final):
            writer.close()
        receipt = _receipt(shard, final.name, local, tally)
        receipt |= {"source": stamp, **tally.found(source.vocabulary)}
        if is_remote:
            with local.open("rb") as file, final.open("wb") as bucket:
                shutil.copyfileobj(file, bucket, 2**24)
        else:
            os.replace(local, final)
    if final.stat().length != receipt["bytes"]:
        raise DataError(
            f"{final}: {final.stat().length} bytes arrived, expected {receipt['bytes']}; is the "
            "disk full? Free some space and run the build again"
        )
    write_json(plan.receipt(shard), receipt)
    return receipt


def remove_scratch(folder: str) -> None:
    """Removes what builds that were killed left in the folder of a finished one."""
    if "://" not in folder:
        for left in pathlib.Path(folder).glob("shard-*-*"):
            shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def _disk_errors(file: epath.Path) -> Iterator[None]:
    """Names the file where the writer of records cannot write, which is a RuntimeError there."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"{file}: cannot be written ({str(error).split(';')[0]}); free some space and run the "
            "build again, finished files are kept"
        ) from error


def _records(
    source: Source, span: range, num_threads: int
) -> Iterator[tuple[int, Entry, bytes | None]]:
    """Yields position, findings, and the record of usable examples, in order."""
    encode = RecordEncoder(source.dataset, source.vocabulary)

    def make(position: int) -> tuple[int, Entry, bytes | None]:
        entry, example = read_entry(source, position)
        return position, entry, encode(example) if entry.reason is None else None

    if num_threads <= 1:
        yield from map(make, span)
        return
    block = 4 * num_threads  # bounds what waits to be written
    with futures.ThreadPoolExecutor(num_threads) as pool:
        for start in range(0, len(span), block):
            yield from pool.map(make, span[start : start + block])


def _receipt(shard: int, name: str, local: pathlib.Path, tally: ScanTally) -> dict:
    """Describes a finished file, after reading back how many records it holds."""
    with local.open("rb") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    arrays = tally.arrays()
    written = count_records(local)
    if written != len(arrays["position"]):
        raise DataError(
            f"{name}: {written} records are in the file, expected {len(arrays['position'])}; is "
            "the disk full? Free some space and run the build again"
        )
    kept = ("num_instances", "has_object", "has_part")
    return {
        "shard": shard,
        "file": name,
        "bytes": local.stat().st_size,
        "sha256": digest,
        "examples": written,
        **{key: arrays[key].astype(int).tolist() for key in kept},
        "dropped": dict(tally.dropped),
        "named": tally.named,
    }


def count_records(file: str | os.PathLike) -> int:
    """Opens an ArrayRecord file and returns its length.

    Raises:
        DataError: it is cut short or is no such file.
    """
    try:
        reader = array_record_module.ArrayRecordReader(
            os.fspath(file), options="readahead_buffer_size:0"
        )
        count = reader.num_records()
        reader.close()
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"{file}: not a whole ArrayRecord file ({str(error).splitlines()[0]}); run the build "
            "again to rewrite it"
        ) from error
    return count
