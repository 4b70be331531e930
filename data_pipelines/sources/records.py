"""Reads records of `semsam data build`, with the same result as the native reader.

Layout: `root/{split}/1.0.0/` with ArrayRecord files, `records.json` (every file with its size
and hash) and the index of the examples. The folder may lie in a bucket (`gs://...`).
"""

import bisect
import collections
import hashlib
import itertools
import json
import os
import threading
from collections.abc import Sequence
from concurrent import futures

from array_record.python import array_record_module
from etils import epath

from data_pipelines.schema import RawExample
from data_pipelines.sources.base import Source
from data_pipelines.vocabulary import Vocabulary
from semsam_jax.core.errors import DataError

VERSION = "1.0.0"
FORMAT = 3
OLD_FORMAT = 2
"""Format without the classes that each image is annotated for; still valid where it is all of
them."""
CLAIM, MANIFEST, INDEX = "build.json", "records.json", "index"
MAX_READERS = 64
"""Files that a process keeps open; each has its table of contents in memory."""

_BY_IMAGE = ("paco", "part_imagenet")
"""Datasets whose images are annotated for some classes only."""

FEDERATED = ("paco",)
"""Datasets whose records do not say it; those of custom data do."""

_READER, _BUFFER = "readahead_buffer_size:0,max_parallelism:0", 2**15


def find_records(root: str | os.PathLike, split: str) -> epath.Path | None:
    """Returns the folder of a split's records below a dataset's root, or None."""
    folder = epath.Path(root) / split / VERSION
    return folder if (folder / CLAIM).exists() else None


def class_names(vocabulary: Vocabulary, dataset: str) -> dict[str, list[str]]:
    """Names of a dataset's objects and parts, in the order in which records number them."""
    spans = {
        "objects": vocabulary.object_slice(dataset),
        "parts": vocabulary.part_slice(dataset),
    }
    return {
        kind: [vocabulary.entry(i).name for i in range(span.start, span.stop)]
        for kind, span in spans.items()
    }


def read_description(file: epath.Path) -> dict:
    """Reads a JSON file of a build.

    Raises:
        DataError: it is damaged.
    """
    try:
        content = json.loads(file.read_text())
        missing = {"dataset", "format", "options", "classes"} - set(content)
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{file}: cannot be read ({error}); copy or build it again") from error
    if missing or not isinstance(content, dict):
        raise DataError(f"{file}: has no {sorted(missing)}; copy or build it again")
    return content


def read_options(folder: epath.Path) -> dict:
    """Returns the reader options that the records were made with."""
    return read_description(folder / CLAIM)["options"]


def read_classes(folder: epath.Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns (object names, part names) of a custom dataset, for `build_vocabulary(extra=)`."""
    classes = read_description(folder / CLAIM)["classes"]
    return tuple(classes["objects"]), tuple(classes["parts"])


class RecordReader(Source):
    """Reader of built records.

    Args:
        dataset: its name.
        root: folder above `{split}/1.0.0`.
        split: which part.
        vocabulary: gives the class indices; must have the classes the records were made with.

    Raises:
        DataError: the build is not finished, a file is missing or cut short, or the
            vocabulary has other classes.
    """

    def __init__(self, dataset: str, root: str | os.PathLike, split: str, vocabulary: Vocabulary):
        from data_pipelines.builders.codec import (
            RecordDecoder,  # imports TFDS, which is needed only here
        )

        self._folder = epath.Path(root) / split / VERSION
        manifest = self._manifest(dataset)
        super().__init__(dataset, root, split, vocabulary, **manifest["options"])
        self.has_masks = manifest["has_masks"]
        self.is_federated = manifest.get("is_federated", dataset in FEDERATED)
        self.index_folder = self._folder / INDEX
        self._files = [(file["file"], file["bytes"]) for file in manifest["files"]]
        self._ends = list(itertools.accumulate(file["examples"] for file in manifest["files"]))
        self.example_ids = _Ids(self)
        self._check_classes(manifest["classes"])
        self._check_files()
        self._decode = RecordDecoder(dataset, vocabulary)
        self._readers = _Readers()

    @property
    def fingerprint(self) -> str:
        """Hash of the shards' hashes."""
        return hashlib.sha256((self._folder / MANIFEST).read_bytes()).hexdigest()[:16]

    def _read(self, position: int) -> RawExample:
        return self._decode(self._bytes(position))

    def _bytes(self, position: int) -> bytes:
        number = bisect.bisect_right(self._ends, position)
        name, _ = self._files[number]
        first = self._ends[number - 1] if number else 0
        file = self._folder / name
        try:
            return self._readers.get(os.fspath(file)).read([position - first])[0]
        except (RuntimeError, OSError) as error:
            raise DataError(
                f"{self.dataset} record {position} ({file}): {str(error).splitlines()[0]}; run "
                "semsam data build with --verify to write the damaged file again"
            ) from error

    def _manifest(self, dataset: str) -> dict:
        file = self._folder / MANIFEST
        if not file.exists():
            raise DataError(
                f"{dataset}: the build in {self._folder} is not finished; run the same "
                "semsam data build command again, it resumes where it stopped"
            )
        manifest = read_description(file)
        if manifest["format"] == OLD_FORMAT and dataset in _BY_IMAGE:
            raise DataError(
                f"{dataset}: the records in {self._folder} are of format {OLD_FORMAT}, which does "
                "not say which classes each image is annotated for; build the records again"
            )
        if manifest["format"] not in (FORMAT, OLD_FORMAT) or manifest["dataset"] != dataset:
            raise DataError(
                f"{dataset}: {file} describes {manifest['dataset']} in format "
                f"{manifest['format']}, expected {dataset} in format {FORMAT}; check the root, or "
                "build the records again"
            )
        return manifest

    def _check_classes(self, stored: dict[str, list[str]]) -> None:
        own = class_names(self.vocabulary, self.dataset)
        for kind, names in stored.items():
            if names != own[kind]:
                odd = sorted(set(names) ^ set(own[kind]))[:6] or "their order"
                raise DataError(
                    f"{self.dataset}: {self._folder} was built with {len(names)} {kind}, the "
                    f"vocabulary has {len(own[kind])}; different: {odd}; build the records again, "
                    "or use the vocabulary they were made with"
                )

    def _check_files(self) -> None:
        """Compares the length of every file, to detect incomplete copies before training."""

        def length(name: str) -> int:
            file = self._folder / name
            return file.stat().length if file.exists() else -1

        with futures.ThreadPoolExecutor(16) as pool:
            found = list(pool.map(length, (name for name, _ in self._files)))
        bad = [
            f"{name} ({'missing' if have < 0 else f'{have} bytes'}, expected {want})"
            for (name, want), have in zip(self._files, found, strict=True)
            if have != want
        ]
        if bad:
            raise DataError(
                f"{self.dataset}: {len(bad)} of {len(found)} record files in {self._folder} are "
                f"not whole: {'; '.join(bad[:5])}; copy them again, or run the same "
                "semsam data build command, which writes only these"
            )


class _Ids(Sequence[str]):
    """The ids, read from the records on demand."""

    def __init__(self, source: RecordReader):
        self._source = source

    def __len__(self) -> int:
        return self._source._ends[-1]

    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        if isinstance(index, slice):
            return tuple(self[number] for number in range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(f"id {index} of {len(self)}")
        return self._source[index % len(self)].example_id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)


class _Readers:
    """Open ArrayRecord readers, the last used ones; every process has its own."""

    def __init__(self):
        self._lock = threading.Lock()
        self._open: collections.OrderedDict[str, object] = collections.OrderedDict()

    def get(self, file: str) -> "array_record_module.ArrayRecordReader":
        """Returns a reader that any thread may use; dropped ones are closed."""
        with self._lock:
            reader = self._open.get(file)
            if reader is None:
                reader = array_record_module.ArrayRecordReader(
                    file, options=_READER, file_reader_buffer_size=_BUFFER
                )
                self._open[file] = reader
                if len(self._open) > MAX_READERS:
                    self._open.popitem(last=False)
            self._open.move_to_end(file)
            return reader

    def __getstate__(self) -> dict:
        return {}

    def __setstate__(self, state: dict) -> None:
        self.__init__()
