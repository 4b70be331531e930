"""What every reader shares: the protocol, and the careful handling of one annotation.

A reader turns a dataset's native folder into `RawExample`s. It checks the layout when built,
lists its examples in a fixed order, and reads only the photo and the annotation that are asked
for. Photos pass through as stored bytes: grey, CMYK and rotated (EXIF) photos are the decoder's
business, and annotations are in the frame of the stored pixels. Masks stay compressed RLE.
"""

import abc
import hashlib
import io
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image, UnidentifiedImageError
from pycocotools import mask as coco_mask

from data_pipelines.schema import RawExample, RawInstance
from data_pipelines.transforms import masks
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
        example_ids: unique names in reading order.
        options: the reader's own options; they change what is read.
        annotation_files: files and folders that list the examples; `fingerprint` looks at
            their size and age.
        index_folder: index that came with the data (records have one), or None.
    """

    has_masks: bool = True
    index_folder: str | os.PathLike | None = None

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
        except (OSError, EOFError, KeyError, TypeError, ValueError, IndexError) as error:
            if isinstance(error, DataError):
                raise
            raise self._broken(position, f"{type(error).__name__}: {error}") from error

    @property
    def fingerprint(self) -> str:
        """Sixteen letters that change with the folder, the options or the annotation files."""
        stats = [(file.name, file.stat()) for file in self.annotation_files]
        what = {
            "root": str(self.root.resolve()),
            "data": [self.dataset, self.split, len(self)],
            "options": self.options,
            "files": [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats],
        }
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]

    @abc.abstractmethod
    def _read(self, position: int) -> RawExample:
        """Reads example `position`; may raise any I/O or lookup error."""

    def _broken(
        self, position: int, what: str, file: str | pathlib.Path | None = None
    ) -> DataError:
        where = f" ({file})" if file is not None else ""
        return DataError(
            f"{self.dataset} example {self.example_ids[position]!r}{where}: {what}; "
            "repair the file or leave the record out of the index"
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
    """Collects the instances of one photo and drops what cannot be used.

    Empty masks and boxes without area are dropped, boxes clipped to the photo. Boxes of masks
    are measured on the mask. A mask of another size than the photo is an error, because nobody
    can know how it was meant to fit.
    """

    def __init__(
        self, source: Source, position: int, photo: pathlib.Path, image: bytes | None = None
    ):
        """Reads the photo, or takes its bytes where the reader has them already."""
        self._source = source
        self._position = position
        self._photo = photo
        try:
            self.image = photo.read_bytes() if image is None else image
        except OSError as error:
            raise self.broken(f"cannot read the photo: {error.strerror or error}") from error
        self.height, self.width = self._stored_size()
        self.instances: list[RawInstance] = []
        self.ignored: list[RawInstance] = []

    def broken(self, what: str) -> DataError:
        """Returns the error for this record; raise it."""
        return self._source._broken(self._position, what, self._photo)

    def expect_size(self, height: int, width: int) -> None:
        """Checks the size that the annotation file states.

        Raises:
            DataError: it is not that of the stored photo.
        """
        if (int(height), int(width)) != (self.height, self.width):
            raise self.broken(
                f"the annotation says {width}x{height} pixels, the stored photo has "
                f"{self.width}x{self.height} (width x height, before EXIF rotation)"
            )

    def add_mask(self, rle: dict | None, *, is_crowd: bool = False, **labels: int | bool) -> int:
        """Adds a mask given as compressed RLE.

        Args:
            rle: the mask; None has no pixel.
            is_crowd: add it to `ignored` instead of `instances`.
            **labels: of the `RawInstance`.

        Returns:
            Its index in the list, or -1 if it was empty and dropped.
        """
        if rle is None:
            return -1
        if [int(side) for side in rle["size"]] != [self.height, self.width]:
            raise self.broken(
                f"mask size {list(rle['size'])} (h, w), photo size {[self.height, self.width]}"
            )
        if int(coco_mask.area(rle)) == 0:
            return -1
        x, y, w, h = (float(value) for value in coco_mask.toBbox(rle))
        return self._append(RawInstance(rle=rle, box=(x, y, x + w, y + h), **labels), is_crowd)

    def add_array(self, mask: np.ndarray, **labels: int | bool) -> int:
        """Adds a bool or 0/1 mask [h,w]; see `add_mask`."""
        return self.add_mask(encode_mask(mask), **labels)

    def add_box(
        self, box_xywh: Sequence[float | int], *, is_crowd: bool = False, **labels: int | bool
    ) -> int:
        """Adds a box (x, y, width, height) in pixels without a mask; see `add_mask`."""
        x, y, w, h = (float(value) for value in box_xywh)
        if not np.isfinite([x, y, w, h]).all():
            raise self.broken(f"box {list(box_xywh)} is not finite")
        x0, y0 = max(x, 0.0), max(y, 0.0)
        x1, y1 = min(x + w, float(self.width)), min(y + h, float(self.height))
        box = tuple(float(value) for value in np.float32([x0, y0, x1, y1]))
        if box[2] <= box[0] or box[3] <= box[1]:
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
        )

    def _append(self, instance: RawInstance, is_crowd: bool) -> int:
        kept = self.ignored if is_crowd else self.instances
        kept.append(instance)
        return len(kept) - 1

    def _stored_size(self) -> tuple[int, int]:
        try:
            with Image.open(io.BytesIO(self.image)) as image:
                width, height = image.size
        except (UnidentifiedImageError, OSError, ValueError) as error:
            raise self.broken(f"not a readable photo ({len(self.image)} bytes)") from error
        return height, width


def encode_mask(mask: np.ndarray) -> dict:
    """Encodes a mask [h,w] (non-zero = inside) as compressed COCO RLE."""
    return coco_mask.encode(np.asfortranarray(mask != 0).view(np.uint8))


def to_rle(segmentation: list | dict, height: int, width: int) -> dict | None:
    """Turns COCO's three spellings of a mask into compressed RLE.

    Args:
        segmentation: polygons [[x, y, ...], ...], uncompressed RLE (counts is a list), or
            compressed RLE (counts is text).
        height: rows of the photo, for polygons.
        width: columns of the photo, for polygons.

    Returns:
        RLE with counts as bytes, or None when there is no outline at all.

    Raises:
        ValueError: the value is none of these or is damaged.
    """
    if isinstance(segmentation, list):
        polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
        if not polygons:
            return None
        return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= set(segmentation):
        raise ValueError(
            f"segmentation is {type(segmentation).__name__}, wanted polygons or COCO RLE"
        )
    rows, columns = (int(side) for side in segmentation["size"])
    counts = segmentation["counts"]
    if isinstance(counts, list):
        rle = coco_mask.frPyObjects(segmentation, rows, columns)
    else:
        rle = {
            "size": [rows, columns],
            "counts": counts.encode("ascii") if isinstance(counts, str) else bytes(counts),
        }
    # The C decoder trusts its input: runs that do not fill the mask exactly are damage.
    masks.rle_toggles(rle, rows, columns)
    return rle


def merge_masks(rles: Sequence[dict]) -> dict:
    """Returns the union of masks of one photo."""
    return coco_mask.merge(list(rles))


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
    except ValueError as error:
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


def _read_provenance(root: pathlib.Path) -> dict[str, str]:
    path = root / "PROVENANCE.json"
    if not path.is_file():
        return {}
    content = read_json(path, root.name)
    return {str(kind): str(value) for kind, value in content.items()}
