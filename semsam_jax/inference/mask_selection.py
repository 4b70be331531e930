"""Filters the masks of a grid of clicks by predicted IoU, stability and overlap.

Source: docs/reference.md, section 10, mask generator. The filters run in this order: predicted IoU,
stability, crop border, box NMS, removal of small regions, box NMS again.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from semsam_jax.core import rle
from semsam_jax.core.errors import PromptError
from semsam_jax.inference.granularity import is_finite_number
from semsam_jax.ops.nms import nms

_CROP_BORDER_PX = 20


@dataclasses.dataclass(frozen=True)
class Filters:
    """Thresholds of the mask generator.

    Attributes:
        pred_iou_thresh: predicted IoU must be above.
        stability_score_thresh: stability must reach it.
        stability_score_offset: stability = area(> +offset) / area(> -offset).
        box_nms_thresh: box IoU above which the worse of two masks of a crop is dropped.
        crop_nms_thresh: the same between crops.
        min_mask_region_area: smaller holes are filled and islands removed, image pixels; 0 off.
    """

    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.92
    stability_score_offset: float = 1.0
    box_nms_thresh: float = 0.7
    crop_nms_thresh: float = 0.7
    min_mask_region_area: int = 10

    def __post_init__(self) -> None:
        """Raises PromptError for a value without meaning."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            # A predicted IoU is a plain number of the network: it may well be below 0.
            is_free = field.name == "pred_iou_thresh"
            if not is_finite_number(value) or not (is_free or value >= 0):
                wanted = "a number" if is_free else "a number of at least 0"
                raise PromptError(f"{field.name}: got {str(value)[:60]}; expected {wanted}.")


def checkpoint_thresholds(
    meta: Mapping, pred_iou: float | None, stability: float | None
) -> tuple[float, float]:
    """Thresholds of predicted IoU and stability, as given or as stored with a checkpoint.

    Args:
        meta: its `config.json`, where `calibrate` stores them; else they are Semantic-SAM's.
        pred_iou: None for the stored one.
        stability: None for the stored one.
    """
    stored = meta.get("mask_thresholds") or {}
    if pred_iou is None:
        pred_iou = float(stored.get("pred_iou", Filters.pred_iou_thresh))
    if stability is None:
        stability = float(stored.get("stability", Filters.stability_score_thresh))
    return pred_iou, stability


@dataclasses.dataclass(frozen=True)
class KeptMasks:
    """Masks that passed, in the order of the rows they came from.

    Attributes:
        rows: index among all masks of the call.
        ious: predicted IoU.
        stability: stability score.
        boxes: x0, y0, x1, y1 with inclusive maxima, pixels of the measured size.
    """

    rows: Int[np.ndarray, " n"]
    ious: Float[np.ndarray, " n"]
    stability: Float[np.ndarray, " n"]
    boxes: Int[np.ndarray, "n 4"]

    def take(self, index: Int[np.ndarray, " m"]) -> "KeptMasks":
        """Returns the masks of these positions, in this order."""
        return KeptMasks(
            self.rows[index], self.ious[index], self.stability[index], self.boxes[index]
        )

    @classmethod
    def joined(cls, parts: Sequence["KeptMasks"]) -> "KeptMasks":
        """All masks of several."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


Measure = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@functools.partial(jax.jit, static_argnames="stride")
def measure_masks(
    logits: Float[Array, "n h w"],
    valid_hw: Int[Array | np.ndarray, "2"],
    offset: float | Float[Array, ""],
    stride: int,
) -> tuple[Float[Array, " n"], Int[Array, "n 4"]]:
    """Measures masks at `stride` times the size of their logits, without storing them.

    Between two logits lie `stride` pixels on each axis. All pixels of the same phase are one
    weighted sum of shifted copies of the map, so pixels are computed and counted in one
    pass, without being stored.

    Args:
        logits: maps at a stride.
        valid_hw: height and width of the part to measure, in pixels.
        offset: stability = area(> +offset) / area(> -offset), nan for an empty mask.
        stride: pixels for each logit and axis; bilinear with half-pixel centres.

    Returns:
        Stability, and x0, y0, x1, y1 of the outermost pixels (inclusive, zeros if empty).
    """
    num, h, w = logits.shape
    offset = jnp.asarray(offset, jnp.float32)
    rows_in = _positions(h, stride) < valid_hw[0]
    columns_in = _positions(w, stride) < valid_hw[1]
    padded = jnp.pad(logits, ((0, 0), (1, 1), (1, 1)), mode="edge")
    above, below, in_row, in_column = [], [], [], []
    for r in range(stride):
        band = _phase(padded, r, stride, axis=1)
        pixels = [_phase(band, s, stride, axis=2) for s in range(stride)]
        inside = [(rows_in[:, r, None] & columns_in[None, :, s])[None] for s in range(stride)]
        above.append(_count(pixels, offset, inside))
        below.append(_count(pixels, -offset, inside))
        in_row.append(_count(pixels, 0.0, inside))
    # The same over columns, on transposed maps: sums along the last axis are the fast ones.
    turned = padded.swapaxes(1, 2)
    for s in range(stride):
        band = _phase(turned, s, stride, axis=1)
        pixels = [_phase(band, r, stride, axis=2) for r in range(stride)]
        inside = [(columns_in[:, s, None] & rows_in[None, :, r])[None] for r in range(stride)]
        in_column.append(_count(pixels, 0.0, inside))
    rows = jnp.stack(in_row, axis=-1).reshape(num, -1) > 0
    columns = jnp.stack(in_column, axis=-1).reshape(num, -1) > 0
    boxes = jnp.stack([_first(columns), _first(rows), _last(columns), _last(rows)], axis=1)
    boxes = jnp.where(rows.any(1)[:, None], boxes, 0)
    return sum(above).sum(1) / sum(below).sum(1), boxes.astype(jnp.int32)


def filter_masks(ious: Float[np.ndarray, " n"], measure: Measure, filters: Filters) -> KeptMasks:
    """Filters by predicted IoU, then measures only those and filters by stability.

    Args:
        ious: predicted IoU of every mask.
        measure: stability [m] and boxes [m, 4] of the masks with these row numbers.
        filters: thresholds.
    """
    rows = np.flatnonzero(ious > filters.pred_iou_thresh)
    if not len(rows):
        empty = np.zeros(0, np.float32)
        return KeptMasks(rows, empty, empty, np.zeros((0, 4), np.int32))
    stability, boxes = measure(rows)
    kept = KeptMasks(rows, ious[rows], stability, boxes)
    return kept.take(np.flatnonzero(stability >= filters.stability_score_thresh))


def touches_crop_border(
    boxes: Float[np.ndarray, "n 4"],
    crop: tuple[int, int, int, int],
    image_hw: tuple[int, int],
) -> Bool[np.ndarray, " n"]:
    """Whether a box (image pixels) ends at a border of its crop that is not the image's."""
    image = np.array([0, 0, image_hw[1], image_hw[0]], np.float64)
    near_crop = np.abs(boxes - np.array(crop, np.float64)) <= _CROP_BORDER_PX
    near_image = np.abs(boxes - image) <= _CROP_BORDER_PX
    return (near_crop & ~near_image).any(1)


def suppress(kept: KeptMasks, iou_threshold: float) -> Int[np.ndarray, " m"]:
    """Positions that survive box NMS by predicted IoU, best first."""
    return nms(kept.boxes, kept.ious, iou_threshold)


def clean_mask(mask: Bool[np.ndarray, "h w"], area: int) -> tuple[Bool[np.ndarray, "h w"], bool]:
    """Fills holes and removes islands smaller than `area` pixels; returns whether any were."""
    mask, filled = remove_small_regions(mask, area, "holes")
    mask, cut = remove_small_regions(mask, area, "islands")
    return mask, filled or cut


def suppress_cleaned(
    boxes: Int[np.ndarray, "n 4"], changed: Bool[np.ndarray, " n"], filters: Filters
) -> Int[np.ndarray, " m"]:
    """Positions that survive box NMS after cleaning; unchanged masks are preferred."""
    threshold = max(filters.box_nms_thresh, filters.crop_nms_thresh)
    return nms(boxes, np.where(changed, 0.0, 1.0).astype(np.float32), threshold)


def remove_small_regions(
    mask: Bool[np.ndarray, "h w"], area: int, mode: str
) -> tuple[Bool[np.ndarray, "h w"], bool]:
    """Fills holes or removes islands smaller than `area` pixels (8-connected).

    If all islands are small the largest one stays.

    Args:
        mask: the mask.
        area: pixels.
        mode: `"holes"` or `"islands"`.

    Returns:
        The new mask and whether it differs.
    """
    work = ~mask if mode == "holes" else mask
    _, regions, stats, _ = cv2.connectedComponentsWithStats(work.astype(np.uint8), connectivity=8)
    sizes = stats[1:, cv2.CC_STAT_AREA]
    small = np.flatnonzero(sizes < area) + 1
    if not len(small):
        return mask, False
    if mode == "holes":
        return mask | np.isin(regions, small), True
    large = np.flatnonzero(sizes >= area) + 1
    return np.isin(regions, large if len(large) else [int(sizes.argmax()) + 1]), True


def inclusive_box(mask: Bool[np.ndarray, "h w"]) -> Int[np.ndarray, "4"]:
    """x0, y0, x1, y1 of the outermost pixels; zeros if the mask is empty."""
    x, y, w, h = rle.box_xywh(mask)
    if w == 0:
        return np.zeros(4, np.int64)
    return np.array([x, y, x + w - 1, y + h - 1], np.int64)


def _count(
    pixels: list[Array], level: float | Float[Array, ""], inside: list[Array]
) -> Int[Array, "n h"]:
    """Pixels above a level in each row, over all phases."""
    hits = sum(((p > level) & i).astype(jnp.int32) for p, i in zip(pixels, inside, strict=True))
    return hits.sum(2)


def _positions(size: int, stride: int) -> Int[np.ndarray, "size stride"]:
    return np.arange(size)[:, None] * stride + np.arange(stride)[None]


def _phase(padded: Array, phase: int, stride: int, axis: int) -> Array:
    """Pixels of one phase along an axis that is padded by one on both sides."""
    size = padded.shape[axis] - 2
    position = (phase + 0.5) / stride - 0.5
    low = math.floor(position)
    first = jax.lax.slice_in_dim(padded, 1 + low, 1 + low + size, axis=axis)
    if position == low:
        return first
    second = jax.lax.slice_in_dim(padded, 2 + low, 2 + low + size, axis=axis)
    return first * (1 - (position - low)) + second * (position - low)


def _first(present: Bool[Array, "n s"]) -> Int[Array, " n"]:
    return jnp.argmax(present, axis=1)


def _last(present: Bool[Array, "n s"]) -> Int[Array, " n"]:
    return present.shape[1] - 1 - jnp.argmax(present[:, ::-1], axis=1)
