"""Evaluation samples: an image on its canvas with its ground truth."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from semsam_jax.core import rle
from semsam_jax.core.errors import DataError

SMALL_PX, MEDIUM_PX = 32.0**2, 96.0**2
"""Borders of COCO's size classes, areas in pixels of the original image."""

SIZE_NAMES = ("small", "medium", "large")


@dataclasses.dataclass(frozen=True)
class ClassNames:
    """Names of a dataset's classes, by the class indices that its samples have.

    Attributes:
        objects, parts: class index -> name.
    """

    objects: Mapping[int, str] = dataclasses.field(default_factory=dict)
    parts: Mapping[int, str] = dataclasses.field(default_factory=dict)

    def text(self, object_id: int, part_id: int) -> str:
        """Gives "cat", "cat:head", ":head" for a part of no known object, "" without a name."""
        thing, part = self.objects.get(object_id, ""), self.parts.get(part_id, "")
        return f"{thing}:{part}" if part else thing


@dataclasses.dataclass(frozen=True)
class EvalSample:
    """One image, resized and zero-padded right and bottom to its canvas, with annotations.

    Attributes:
        image: uint8 [H, W, 3] canvas; H and W are multiples of 32.
        size_hw: (h, w) valid pixels of the canvas; scores are taken inside them only.
        masks: COCO RLE dicts or bool [H, W] arrays, all in the canvas frame (an array or
            an RLE of exactly the valid size is accepted too).
        image_id: unique name of the image.
        instance_ids: one id per mask; 0..n-1 where not given.
        dataset: name under which the scores are grouped.
        is_thing: per mask, countable or not; all True where not given.
        is_crowd: per mask, COCO's crowd flag; all False where not given.
        object_ids, part_ids: class index per mask, -1 none.
        annotated, partial: pairs (object, part) of the classes that this image was annotated for
            completely, or not completely (`data_pipelines.schema.RawExample`); None: all.
        clicks_xy: optional given clicks, integer pixels [n, 2]; else computed from the masks.
        scale: canvas pixels per pixel of the original image, for the size classes.
        truth_hw: set when the masks are in another frame than the canvas, usually that of
            the original image; everything is scored there.
        num_lost: masks that are not here, since they have no pixel on the canvas.
    """

    image: np.ndarray
    size_hw: tuple[int, int]
    masks: Sequence[dict | np.ndarray] | np.ndarray
    image_id: str
    instance_ids: Sequence[int] | np.ndarray | None = None
    dataset: str = "all"
    is_thing: Sequence[bool] | np.ndarray | None = None
    is_crowd: Sequence[bool] | np.ndarray | None = None
    object_ids: Sequence[int] | np.ndarray | None = None
    part_ids: Sequence[int] | np.ndarray | None = None
    annotated: Sequence[tuple[int, int]] | None = None
    partial: Sequence[tuple[int, int]] = ()
    clicks_xy: np.ndarray | None = None
    scale: float = 1.0
    truth_hw: tuple[int, int] | None = None
    num_lost: int = 0

    def __post_init__(self):
        """Checks what would otherwise give wrong results."""
        h, w = self.size_hw
        height, width = self.image.shape[:2]
        if not (0 < h <= height and 0 < w <= width):
            raise DataError(
                f"EvalSample {self.image_id}: size_hw {self.size_hw} does not lie inside the "
                f"canvas {height}x{width}; pass the valid size of the resized image."
            )
        for name in ("instance_ids", "is_thing", "is_crowd", "object_ids", "part_ids", "clicks_xy"):
            value = getattr(self, name)
            if value is not None and len(value) != len(self.masks):
                raise DataError(
                    f"EvalSample {self.image_id}: {name} has {len(value)} entries for "
                    f"{len(self.masks)} masks; give one per mask."
                )

    def ids(self) -> np.ndarray:
        """Instance ids, int64 [n]."""
        given = range(len(self.masks)) if self.instance_ids is None else self.instance_ids
        return np.asarray(list(given), np.int64)

    def flags(self, name: str, default: bool) -> np.ndarray:
        """`is_thing` or `is_crowd` as bool [n], filled with `default` where not given."""
        value = getattr(self, name)
        return np.full(len(self.masks), default) if value is None else np.asarray(value, bool)

    def classes(self, name: str) -> np.ndarray:
        """`object_ids` or `part_ids` as int64 [n], -1 where not given."""
        value = getattr(self, name)
        return np.full(len(self.masks), -1) if value is None else np.asarray(value, np.int64)

    def mask(self, index: int) -> np.ndarray:
        """Ground-truth mask cropped to the valid pixels, bool [h, w]."""
        decoded = self._decoded(index)
        h, w = self.size_hw
        if decoded.shape not in (self.image.shape[:2], (h, w)):
            raise DataError(
                f"EvalSample {self.image_id}: mask {index} is {decoded.shape}, expected the canvas "
                f"{self.image.shape[:2]} or the valid size {(h, w)}."
            )
        return decoded[:h, :w]

    @property
    def frame_hw(self) -> tuple[int, int]:
        """Size of the frame that is scored: `truth_hw`, or the valid pixels of the canvas."""
        return tuple(self.size_hw if self.truth_hw is None else self.truth_hw)

    def on_canvas(self, xy: np.ndarray | Sequence) -> np.ndarray:
        """Pixels (x, y) of the scored frame as pixels of the canvas, int64 [n, 2]."""
        xy = np.asarray(xy, np.int64).reshape(-1, 2)
        if self.truth_hw is None:
            return xy
        ratio = np.asarray(self.size_hw[::-1]) / np.asarray(self.truth_hw[::-1])
        return np.floor((xy + 0.5) * ratio).astype(np.int64)

    def image_area(self, area: np.ndarray) -> np.ndarray:
        """Areas in the scored frame as pixels of the original image."""
        if self.truth_hw is None:
            return area / self.scale**2
        return area * (np.prod(self.size_hw) / np.prod(self.truth_hw)) / self.scale**2

    def truth_mask(self, index: int) -> np.ndarray:
        """Ground-truth mask in its own frame: `truth_hw`, or the valid pixels of the canvas."""
        if self.truth_hw is None:
            return self.mask(index)
        decoded = self._decoded(index)
        if decoded.shape != tuple(self.truth_hw):
            raise DataError(
                f"EvalSample {self.image_id}: mask {index} is {decoded.shape}, expected truth_hw "
                f"{tuple(self.truth_hw)}."
            )
        return decoded

    def _decoded(self, index: int) -> np.ndarray:
        stored = self.masks[index]
        return rle.decode(stored) if isinstance(stored, dict) else np.asarray(stored, bool)


def size_class(area_px: np.ndarray) -> np.ndarray:
    """Index into `SIZE_NAMES` of areas in original pixels (COCO: 32^2 and 96^2)."""
    return np.searchsorted([SMALL_PX, MEDIUM_PX], np.asarray(area_px, np.float64), side="right")
