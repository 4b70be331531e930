"""Base class of the readers, and validation of single annotations.

A reader turns a dataset's native folder into `RawExample`s. It checks the layout when built,
lists its examples in a fixed order, and reads only the image and the annotation that are asked
for. Images pass through as stored bytes: grey and CMYK images are the decoder's business. Masks
stay compressed RLE.

One rule for images that EXIF turns: annotations are in the frame whose size the file states, that
of the stored pixels or that of the displayed image. Where both have this size (a square image, one
upside down) or no size is stated, the seven datasets mean the stored pixels, as they were
published, and people's own data means the displayed image, which is what label tools show.
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

import numpy as np
from etils import epath
from pycocotools import mask as coco_mask

from data_pipelines import decode, findings
from data_pipelines.findings import Unused
from data_pipelines.schema import RawExample, RawInstance
from data_pipelines.sources.outlines import encode_mask
from data_pipelines.sources.values import clean_text
from data_pipelines.vocabulary import Vocabulary
from semsam_jax.core.errors import DataError


class Source(abc.ABC):
    """A dataset in its native layout.

    Attributes:
        dataset: name out of `schema.DATASETS`, or that of the user's own set.
        root: the folder.
        split: `train`, `val`, or what the dataset calls its splits.
        vocabulary: the union vocabulary that gives the class indices.
        has_masks: False where the dataset has boxes only.
        is_federated: whether each image was annotated for some classes only and is scored by
            these alone, as LVIS is.
        example_ids: unique names in reading order.
        options: the reader's own options; they change what is read.
        annotation_files: files and folders that list the examples; `fingerprint` looks at
            their size and age, and at those of every example's own files.
        index_folder: index that came with the data (records have one), or None.
        is_displayed: the frame of annotations where the stored and the displayed image have one
            size and EXIF turns them.
        unused: what the annotation files hold and no example does.
    """

    has_masks: bool = True
    is_federated: bool = False
    index_folder: str | os.PathLike | None = None
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
                f"{dataset}: root {self.root} is not a folder; wanted the dataset's native folder; "
                "check the path"
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
        # Damage reaches every library that reads a file, and each has errors of its own
        # (RecursionError, OverflowError, struct.error, zlib.error ...). This is the one place
        # where a record that cannot be read becomes one that is counted.
        except Exception as error:
            raise self._broken(position, f"{type(error).__name__}: {error}") from error

    @property
    def fingerprint(self) -> str:
        """Sixteen letters that change with the options and with size or age of any file read."""
        content = f"{self.root.resolve()} {self.content_hash(range(len(self)))}"
        return hashlib.sha256(content.encode("utf-8", "surrogateescape")).hexdigest()[:16]

    def content_hash(self, positions: Sequence[int]) -> str:
        """The same for some examples: sixteen letters over options, annotations and their files."""
        what = {
            "data": [self.dataset, self.split, len(self)],
            "options": self.options,
            "files": self._annotation_stamps,
        }
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
            try:
                return [_stamp(file) for file in self._files(position)]
            except (ValueError, LookupError, TypeError):  # a damaged record has no file to name
                return []

        with futures.ThreadPoolExecutor(8) as pool:
            for start in range(0, len(positions), 4096):
                yield list(pool.map(look, positions[start : start + 4096], chunksize=64))

    def _files(self, position: int) -> Sequence[pathlib.Path]:
        """The files of one example alone: its image, and its annotations if they are apart."""
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
            f"wanted {wanted}; found {found}; check root and split"
        )

    def _is_pseudo(self, kind: str) -> bool:
        """Whether PROVENANCE.json beside the data calls `objects` or `parts` machine-made."""
        return self._pseudo.get(kind) == "pseudo"


class ExampleBuilder:
    """Collects the instances of one image; what cannot be used is left out and counted.

    Empty masks and boxes without area are left out, boxes clipped to the image. Boxes of masks
    are measured on the mask. A mask of another size than the image is an error, because nobody
    can know how it was meant to fit.

    Attributes:
        image: the image's bytes.
        height, width: of the frame that the annotations are in, in pixels.
    """

    def __init__(
        self, source: Source, position: int, path: pathlib.Path, image: bytes | None = None
    ):
        """Reads the image, or takes its bytes where the reader has them already."""
        self._source = source
        self._position = position
        self._path = path
        self.image = self._read_image() if image is None else image
        try:
            self._header = decode.read_header(self.image)
        except DataError as error:
            raise DataError(f"{self._where()}: {error}") from error
        self._is_frame_known = False
        self._is_displayed = source.is_displayed and self._header.orientation > 1
        self.instances: list[RawInstance] = []
        self.ignored: list[RawInstance] = []
        self._unused: list[Unused] = []
        self.annotated: tuple[tuple[int, int], ...] | None = None
        self.partial: tuple[tuple[int, int], ...] = ()
        self.is_exclusive = False

    @property
    def height(self) -> int:
        """Rows of the annotations' frame."""
        return self._header.size_hw(self._is_displayed)[0]

    @property
    def width(self) -> int:
        """Columns of the annotations' frame."""
        return self._header.size_hw(self._is_displayed)[1]

    def _where(self) -> str:
        name = self._source.example_ids[self._position]
        return clean_text(f"{self._source.dataset} example {name!r} ({self._path})")

    def broken(self, what: str) -> DataError:
        """Returns the error for this record; raise it."""
        return self._source._broken(self._position, what, self._path)

    def leave_out(self, reason: str, what: str, count: int = 1) -> None:
        """Counts annotations that are not used, or not as they say; `what` names them."""
        name = f"{self._source.example_ids[self._position]!r} {what}"
        self._unused.append(Unused(reason, (clean_text(name),), count))

    def expect_size(self, height: int, width: int) -> None:
        """Chooses the frame that has the size that the annotation file states.

        Raises:
            DataError: neither the stored nor the displayed image has it.
        """
        if not self._choose_frame((int(height), int(width))):
            rows, columns = self._header.size_hw(False)
            shown = ""
            if self._header.orientation > 4:
                shown = (
                    f", displayed {rows}x{columns} (EXIF orientation {self._header.orientation})"
                )
            raise self.broken(
                f"the annotation says {int(width)}x{int(height)} pixels, the stored image has "
                f"{columns}x{rows} (width x height){shown}"
            )

    def _choose_frame(self, size_hw: tuple[int, int]) -> bool:
        """Takes the frame of this size, the source's own choice first; False if none has it."""
        frames = (self._is_displayed, not self._is_displayed)
        if self._header.orientation == 1 or self._is_frame_known:
            frames = frames[:1]
        for frame in frames:
            if self._header.size_hw(frame) == size_hw:
                self._is_displayed, self._is_frame_known = frame, True
                return True
        return False

    def add_mask(
        self, rle: dict | None, *, is_crowd: bool = False, name: str = "", **labels: int | bool
    ) -> int:
        """Adds a mask given as compressed RLE.

        Args:
            rle: the mask; None has no outline.
            is_crowd: add it to `ignored` instead of `instances`.
            name: what it is called where it is left out.
            **labels: of the `RawInstance`.

        Returns:
            Its index in the list, or -1 if it was empty and left out.
        """
        if rle is None:
            self.leave_out(findings.NO_OUTLINE, name)
            return -1
        size = tuple(int(side) for side in rle["size"])
        if size != (self.height, self.width) and not self._choose_frame(size):
            raise self.broken(
                f"mask size {list(rle['size'])} (h, w), image size {[self.height, self.width]}"
            )
        self._is_frame_known = True
        if int(coco_mask.area(rle)) == 0:
            self.leave_out(findings.NO_PIXEL, name)
            return -1
        x, y, w, h = (float(value) for value in coco_mask.toBbox(rle))
        return self._append(RawInstance(rle=rle, box=(x, y, x + w, y + h), **labels), is_crowd)

    def add_array(self, mask: np.ndarray, *, name: str = "", **labels: int | bool) -> int:
        """Adds a bool or 0/1 mask [h,w]; see `add_mask`."""
        return self.add_mask(encode_mask(mask), name=name, **labels)

    def add_box(
        self,
        box_xywh: Sequence[float | int],
        *,
        is_crowd: bool = False,
        name: str = "",
        **labels: int | bool,
    ) -> int:
        """Adds a box (x, y, width, height) in pixels without a mask; see `add_mask`."""
        x, y, w, h = (float(value) for value in box_xywh)
        if not np.isfinite([x, y, w, h]).all():
            raise self.broken(f"{name or 'an annotation'}: box {list(box_xywh)} is not finite")
        self._is_frame_known = True
        x0, y0 = max(x, 0.0), max(y, 0.0)
        x1, y1 = min(x + w, float(self.width)), min(y + h, float(self.height))
        box = tuple(float(value) for value in np.float32([x0, y0, x1, y1]))
        if box[2] <= box[0] or box[3] <= box[1]:
            self.leave_out(findings.NO_AREA, name)
            return -1
        return self._append(RawInstance(rle=None, box=box, **labels), is_crowd)

    def build(self) -> RawExample:
        """Returns the finished example."""
        return RawExample(
            dataset=self._source.dataset,
            example_id=self._source.example_ids[self._position],
            image=self.image,
            height=self.height,
            width=self.width,
            instances=tuple(self.instances),
            ignored=tuple(self.ignored),
            is_displayed=self._is_displayed,
            unused=tuple(self._unused),
            annotated=self.annotated,
            partial=self.partial,
            is_exclusive=self.is_exclusive,
        )

    def _append(self, instance: RawInstance, is_crowd: bool) -> int:
        kept = self.ignored if is_crowd else self.instances
        kept.append(instance)
        return len(kept) - 1

    def _read_image(self) -> bytes:
        try:
            if self._path.exists() and not self._path.is_file():
                # A folder, where the record has no file_name, or a device, which never ends.
                raise self.broken("cannot read the image: this is not a file")
            return self._path.read_bytes()
        except FileNotFoundError as error:
            hint = _similar_name(self._path)
            raise self.broken(f"cannot read the image: {error.strerror}{hint}") from error
        except (OSError, ValueError) as error:  # ValueError: a name with a null byte
            detail = getattr(error, "strerror", None) or error
            raise self.broken(f"cannot read the image: {detail}") from error


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
            f"{dataset}: {path} holds a {type(content).__name__}; wanted an object with keys"
        )
    return content


def first_existing(
    candidates: Sequence[pathlib.Path], test: Callable[[pathlib.Path], bool]
) -> pathlib.Path | None:
    """Returns the first candidate that passes `test`, or None."""
    return next((path for path in candidates if test(path)), None)


def _stamp(file: pathlib.Path) -> tuple[int, int]:
    """Size and age of a file, (-1, -1) where there is none."""
    try:
        stat = file.stat()
    except (OSError, ValueError):
        return -1, -1
    return stat.st_size, stat.st_mtime_ns


def _similar_name(missing: pathlib.Path) -> str:
    """Names a file that differs from the missing one in capitals or suffix only, for its error."""
    try:
        names = sorted(os.listdir(missing.parent))
    except (OSError, ValueError):
        return ""
    wanted = missing.name.casefold()
    same = [name for name in names if name.casefold() == wanted]
    same += [name for name in names if pathlib.Path(name).stem == pathlib.Path(wanted).stem]
    return f"; the folder has {same[0]}: write the name as the file has it" if same else ""


def _read_provenance(root: pathlib.Path) -> dict[str, str]:
    path = root / "PROVENANCE.json"
    if not path.is_file():
        return {}
    content = read_json(path, root.name)
    return {str(kind): str(value) for kind, value in content.items()}
