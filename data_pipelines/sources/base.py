"""Base class of the readers.

A reader turns a dataset's native folder into `RawExample`s. It checks the layout when created,
lists its examples in a fixed order, and reads only the image and the annotation that are requested.
Images are passed on as stored bytes; masks stay compressed RLE.

If EXIF rotates an image, annotations are in the frame whose size the file states: that of the
stored pixels or of the displayed image. If both have this size (a square or upside-down image) or
no size is stated, the frame is that of the stored pixels for the seven datasets, as published, and
of the displayed image for custom data, which is what label tools show.
"""

import abc
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any

from etils import epath

from data_pipelines.findings import Unused
from data_pipelines.schema import RawExample
from data_pipelines.sources.values import clean_text
from data_pipelines.vocabulary import Vocabulary
from semsam_jax.core.errors import DataError


class Source(abc.ABC):
    """A dataset in its native layout.

    Attributes:
        dataset: one of `schema.DATASETS`, or the name of a custom dataset.
        root: the folder.
        split: `train`, `val`, or what the dataset calls its splits.
        vocabulary: the union vocabulary that gives the class indices.
        has_masks: False if the dataset has boxes only.
        is_federated: whether each image was annotated for some classes only and is scored by
            these alone, as LVIS is.
        example_ids: unique names in reading order.
        options: the reader's own options; they change what is read.
        annotation_files: files and folders that list the examples; `fingerprint` covers their size
            and age, and those of every example's own files.
        index_folder: index that comes with the data (records have one), or None.
        revision: raised when a release reads the same files differently, so that indexes and shards
            of an earlier one are made again.
        is_displayed: the frame of annotations if EXIF rotates the image without changing its size.
        unused: annotations of the files that belong to no example.
    """

    has_masks: bool = True
    is_federated: bool = False
    index_folder: str | os.PathLike | None = None
    revision: int = 1
    is_displayed: bool = False

    def __init__(
        self,
        dataset: str,
        root: str | os.PathLike,
        split: str,
        vocabulary: Vocabulary,
        **options: Any,
    ):
        self.dataset = dataset
        # Records may lie in a bucket; native layouts are read from file systems only.
        self.root = epath.Path(root) if "://" in os.fspath(root) else pathlib.Path(root)
        self.split = split
        self.vocabulary = vocabulary
        self.options = options
        self.annotation_files: tuple[pathlib.Path, ...] = ()
        self.example_ids: Sequence[str] = ()
        self.unused: tuple[Unused, ...] = ()
        if not self.root.is_dir():
            raise DataError(
                f"{dataset}: root {self.root} is not a folder; expected the dataset's native "
                "folder; check the path"
            )
        self._pseudo = _read_provenance(self.root)

    def __len__(self) -> int:
        return len(self.example_ids)

    def __getitem__(self, position: int) -> RawExample:
        """Reads one example.

        Raises:
            DataError: the record is broken; the message names dataset, example and file.
            IndexError: no such position.
        """
        if not 0 <= position < len(self):
            raise IndexError(f"{self.dataset}: position {position} outside 0..{len(self) - 1}")
        try:
            return self._read(position)
        except DataError:
            raise
        # Damaged files reach many libraries, each of which has its own errors (RecursionError,
        # OverflowError, struct.error, zlib.error ...). This is the one place where a record that
        # cannot be read becomes one that is counted.
        except Exception as error:
            raise self._broken(position, f"{type(error).__name__}: {error}") from error

    @property
    def fingerprint(self) -> str:
        """Sixteen letters that change with the options and with the size or age of any file."""
        content = f"{self.root.resolve()} {self.content_hash(range(len(self)))}"
        return hashlib.sha256(content.encode("utf-8", "surrogateescape")).hexdigest()[:16]

    def content_hash(self, positions: Sequence[int]) -> str:
        """The same for some examples: sixteen letters over options, annotation files and their own
        files.
        """
        what = {
            "data": [self.dataset, self.split, len(self)],
            "options": self.options,
            "files": self._annotation_stamps,
        }
        if self.revision > 1:  # indexes made before there were revisions stay valid
            what["revision"] = self.revision
        content = hashlib.sha256(json.dumps(what, sort_keys=True).encode())
        for stamps in self._stamps(positions):
            content.update(repr(stamps).encode())
        return content.hexdigest()[:16]

    @functools.cached_property
    def _annotation_stamps(self) -> list[tuple[str, int, int]]:
        return [(file.name, *_stamp(file)) for file in self.annotation_files]

    def _stamps(self, positions: Sequence[int]) -> Iterator[list[tuple[int, int]]]:
        """Sizes and ages of the examples' own files; threads, since a network folder is slow."""

        def look(position: int) -> list[tuple[int, int]]:
            return [_stamp(file) for file in self.files(position)]

        with futures.ThreadPoolExecutor(8) as pool:
            for start in range(0, len(positions), 4096):
                yield list(pool.map(look, positions[start : start + 4096], chunksize=64))

    def files(self, position: int) -> Sequence[pathlib.Path]:
        """The files of one example, its image first; none for a record that names no file, because
        it is damaged or holds the image itself.
        """
        try:
            return self._files(position)
        except (ValueError, LookupError, TypeError):
            return ()

    def _files(self, position: int) -> Sequence[pathlib.Path]:
        """The files of one example: its image, and its annotation file if it has its own."""
        return ()

    @abc.abstractmethod
    def _read(self, position: int) -> RawExample:
        """Reads example `position`; may raise any I/O or lookup error."""

    def _broken(
        self, position: int, what: str, file: str | pathlib.Path | None = None
    ) -> DataError:
        where = f" ({file})" if file is not None else ""
        return DataError(
            clean_text(
                f"{self.dataset} example {self.example_ids[position]!r}{where}: {what}; "
                "repair the file or leave the record out of the index"
            )
        )

    def _layout_error(self, wanted: str) -> DataError:
        found = sorted(entry.name for entry in self.root.iterdir())[:12]
        return DataError(
            f"{self.dataset} {self.split}: layout of {self.root} not recognised; "
            f"expected {wanted}; found {found}; check root and split"
        )

    def _is_pseudo(self, kind: str) -> bool:
        """Whether PROVENANCE.json in the dataset folder calls `objects` or `parts` machine-made."""
        return self._pseudo.get(kind) == "pseudo"


def read_json(path: pathlib.Path, dataset: str) -> dict:
    """Reads an annotation file.

    Raises:
        DataError: it is missing, cut off or not a JSON object.
    """
    try:
        with path.open("rb") as file:
            content = json.load(file)
    except OSError as error:
        raise DataError(
            f"{dataset}: cannot read {path}: {error.strerror or error}; check root and split"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{dataset}: {path} is not complete JSON ({error}); download it again"
        ) from error
    if not isinstance(content, dict):
        raise DataError(
            f"{dataset}: {path} holds a {type(content).__name__}; expected an object with keys"
        )
    return content


def first_existing(
    candidates: Sequence[pathlib.Path], test: Callable[[pathlib.Path], bool]
) -> pathlib.Path | None:
    """Returns the first candidate that passes `test`, or None."""
    return next((path for path in candidates if test(path)), None)


def below(folder: pathlib.Path, name: str) -> pathlib.Path:
    """The file of this name in a folder; some tools prefix the folder's own name."""
    parts = pathlib.PurePosixPath(name).parts
    if len(parts) > 1 and parts[0] == folder.name:
        parts = parts[1:]
    return folder.joinpath(*parts)


def _stamp(file: pathlib.Path) -> tuple[int, int]:
    """Size and age of a file, (-1, -1) where there is none."""
    try:
        stat = file.stat()
    except (OSError, ValueError):
        return -1, -1
    return stat.st_size, stat.st_mtime_ns


def _read_provenance(root: pathlib.Path) -> dict[str, str]:
    path = root / "PROVENANCE.json"
    if not path.is_file():
        return {}
    content = read_json(path, root.name)
    return {str(kind): str(value) for kind, value in content.items()}
