"""Builds an example from an image and its annotations; what cannot be used is counted or
refused.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipelines import decode, findings
from data_pipelines.findings import Unused
from data_pipelines.schema import RawExample, RawInstance
from data_pipelines.sources.base import Source
from data_pipelines.sources.outlines import is_in_fractions, to_rle
from data_pipelines.sources.values import clean_text, short
from semsam_jax.core.errors import DataError
from semsam_jax.core.rle import encode_mask, mask_areas, mask_boxes, merge_masks


class ExampleBuilder:
    """Collects the instances of one image; what cannot be used is left out and counted.

    Empty masks and boxes without area are left out, boxes clipped to the image. Boxes of masks
    are measured on the mask. A mask of another size than the image is an error.

    Attributes:
        image: the image's bytes.
        height, width: of the frame that the annotations are in, in pixels.
    """

    def __init__(
        self, source: Source, position: int, path: pathlib.Path, image: bytes | None = None
    ):
        """Reads the image, or takes its bytes if the reader has them already."""
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
        self._missing: set[tuple[int, int]] = set()
        self._known: set[tuple] = set()
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

    def listed(self, content: dict, key: str, file: pathlib.Path) -> list[dict]:
        """The objects that an annotation file lists under a key.

        Raises:
            DataError: it is no list of objects.
        """
        found = content.get(key)
        if not isinstance(found, list):
            raise self.broken(f"{file.name}: {key} is {short(found)}, expected a list of objects")
        for number, item in enumerate(found):
            if not isinstance(item, dict):
                raise self.broken(
                    f"{file.name}: {key}[{number}] is {short(item)}, expected an object"
                )
        return found

    def leave_out(self, reason: str, what: str, count: int = 1, **labels: int | bool) -> None:
        """Counts annotations that are not used, or not as annotated.

        Args:
            reason: of `findings`.
            what: names them.
            count: how many there are.
            **labels: of an instance that the image shows all the same; it would count as background
                if its class were not one of `RawExample.partial`.
        """
        name = f"{self._source.example_ids[self._position]!r} {what}"
        self._unused.append(Unused(reason, (clean_text(name),), count))
        label = int(labels.get("object_id", -1)), int(labels.get("part_id", -1))
        if max(label) >= 0:
            self._missing.add(label)

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
        """Selects the frame of this size, the source's default first; False if none has it."""
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
            rle: the mask; None for no outline.
            is_crowd: add it to `ignored` instead of `instances`.
            name: of the annotation, for reports.
            **labels: of the `RawInstance`.

        Returns:
            Its index in the list, or -1 if it was empty and left out.
        """
        if rle is None:
            self.leave_out(findings.NO_OUTLINE, name, **labels)
            return -1
        size = tuple(int(side) for side in rle["size"])
        if size != (self.height, self.width) and not self._choose_frame(size):
            raise self.broken(
                f"mask size {list(rle['size'])} (h, w), image size {[self.height, self.width]}"
            )
        self._is_frame_known = True
        if not mask_areas([rle])[0]:
            self.leave_out(findings.NO_PIXEL, name)
            return -1
        x, y, w, h = (float(value) for value in mask_boxes([rle])[0])
        instance = RawInstance(rle=rle, box=(x, y, x + w, y + h), **labels)
        return self._append(instance, is_crowd, name)

    def add_outline(
        self,
        segmentation: Any,
        *,
        name: str = "",
        file: pathlib.Path | None = None,
        **labels: int | bool,
    ) -> int:
        """Adds a mask in any of COCO's notations (`outlines.to_rle`); see `add_mask`.

        Args:
            segmentation: the outline.
            name: of the annotation, for reports.
            file: where it is written, for errors.
            **labels: of the `RawInstance`, and `is_crowd`.

        Raises:
            DataError: the outline is damaged.
        """
        try:
            rle = to_rle(segmentation, self.height, self.width)
        except ValueError as error:
            where = "" if file is None else f" in {file}"
            raise self.broken(f"{name or 'an annotation'}{where}: {error}") from error
        if rle is not None and self._shows_fractions() and is_in_fractions(segmentation):
            self.leave_out(findings.FRACTIONS, name, **labels)
            return -1
        return self.add_mask(rle, name=name, **labels)

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
        if self._shows_fractions() and min(x, y) >= 0 and max(box) <= 1:
            self.leave_out(findings.FRACTIONS, name, **labels)
            return -1
        return self._append(RawInstance(rle=None, box=box, **labels), is_crowd, name)

    def join_last(self, into: int) -> None:
        """Adds the pixels, or the box, of the last instance to another one, and removes it.

        Args:
            into: the other one's index.
        """
        piece, whole = self.instances.pop(), self.instances[into]
        x0, y0, x1, y1 = zip(whole.box, piece.box, strict=True)
        box = (min(x0), min(y0), max(x1), max(y1))
        rle = None if whole.rle is None else merge_masks([whole.rle, piece.rle])
        self.instances[into] = dataclasses.replace(whole, rle=rle, box=box)

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
            partial=tuple(sorted({*self.partial, *self._missing})),
            is_exclusive=self.is_exclusive,
        )

    def _shows_fractions(self) -> bool:
        """Whether the image is larger than what coordinates of 0 to 1 could outline in pixels."""
        return min(self.height, self.width) > 2

    def _append(self, instance: RawInstance, is_crowd: bool, name: str) -> int:
        if not is_crowd and max(instance.object_id, instance.part_id) >= 0:
            outline = instance.box if instance.rle is None else instance.rle["counts"]
            key = (instance.object_id, instance.part_id, outline)
            if key in self._known:
                self.leave_out(findings.REPEATED, name)
            self._known.add(key)
        kept = self.ignored if is_crowd else self.instances
        kept.append(instance)
        return len(kept) - 1

    def _read_image(self) -> bytes:
        try:
            # A folder, if the record has no file_name, or a device, which never ends.
            if self._path.is_file() or not self._path.exists():
                return self._path.read_bytes()
        except FileNotFoundError as error:
            hint = "; this is a link that leads nowhere"
            hint = hint if self._path.is_symlink() else _similar_name(self._path)
            raise self.broken(f"cannot read the image: {error.strerror}{hint}") from error
        except (OSError, ValueError) as error:  # ValueError: a name with a null byte
            detail = getattr(error, "strerror", None) or error
            raise self.broken(f"cannot read the image: {detail}") from error
        raise self.broken("cannot read the image: this is not a file")


def _similar_name(missing: pathlib.Path) -> str:
    """Names a file that differs from the missing one in capitals or suffix only, for its error."""
    names = _names_in(missing.parent)
    wanted = missing.name.casefold()
    found = names.get(wanted) or names.get(pathlib.PurePath(wanted).stem)
    return f"; the folder has {found}: write the name as the file has it" if found else ""


@functools.lru_cache(maxsize=8)
def _names_in(folder: pathlib.Path) -> dict[str, str]:
    """Files of a folder by lower-case name and stem; listed once: thousands may be missing."""
    try:
        names = sorted(os.listdir(folder))
    except (OSError, ValueError):
        return {}
    by_stem = {pathlib.PurePath(name.casefold()).stem: name for name in reversed(names)}
    return by_stem | {name.casefold(): name for name in names}
