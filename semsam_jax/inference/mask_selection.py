"""Which of the many masks of a grid of clicks are kept: functions of logits and IoUs.

Source: SPEC (ix), mask generator. The filters run in this order: predicted IoU, stability,
crop border, box NMS, removal of small regions, box NMS again.
"""

import dataclasses
from collections.abc import Callable, Sequence

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from semsam_jax.core.errors import PromptError
from semsam_jax.inference.files import box_xywh, decode_rle, encode_rle
from semsam_jax.ops.nms import nms

_CROP_BORDER_PX = 20


@dataclasses.dataclass(frozen=True)
class Filters:
    """Thresholds of the mask generator.

    Attributes:
        pred_iou_thresh: predicted IoU must be above.
        stability_score_thresh: stability must reach it.
        stability_score_offset: stability = area(> +offset) / area(> -offset).
        box_nms_thresh: box IoU above which the worse mask of one crop goes.
        crop_nms_thresh: the same between crops.
        min_mask_region_area: smaller holes are filled and islands removed, photo pixels; 0 off.
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
            if not (np.isfinite(value) and value >= 0):
                raise PromptError(f"{field.name}: got {value}; wanted a number of at least 0.")


@dataclasses.dataclass(frozen=True)
class Kept:
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

    def take(self, index: Int[np.ndarray, " m"]) -> "Kept":
        """Returns the masks of these positions, in this order."""
        return Kept(self.rows[index], self.ious[index], self.stability[index], self.boxes[index])


Measure = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@jax.jit
def measure_masks(
    logits: Float[Array, "n h w"], offset: float | Float[Array, ""]
) -> tuple[Float[Array, " n"], Int[Array, "n 4"]]:
    """Stability (nan if the mask is empty) and box of every mask, on the device."""
    larger = jnp.sum(logits > -offset, axis=(1, 2), dtype=jnp.int32)
    smaller = jnp.sum(logits > offset, axis=(1, 2), dtype=jnp.int32)
    mask = logits > 0
    columns, rows = mask.any(1), mask.any(2)
    boxes = jnp.stack([_first(columns), _first(rows), _last(columns), _last(rows)], axis=1)
    boxes = jnp.where(mask.any((1, 2))[:, None], boxes, 0)
    return smaller / larger, boxes.astype(jnp.int32)


def filter_masks(ious: Float[np.ndarray, " n"], measure: Measure, filters: Filters) -> Kept:
    """Filters by predicted IoU, then measures only those and filters by stability.

    Args:
        ious: predicted IoU of every mask.
        measure: stability [m] and boxes [m, 4] of the masks with these row numbers.
        filters: thresholds.
    """
    rows = np.flatnonzero(ious > filters.pred_iou_thresh)
    if not len(rows):
        empty = np.zeros(0, np.float32)
        return Kept(rows, empty, empty, np.zeros((0, 4), np.int32))
    stability, boxes = measure(rows)
    kept = Kept(rows, ious[rows], stability, boxes)
    return kept.take(np.flatnonzero(stability >= filters.stability_score_thresh))


def touches_crop_border(
    boxes: Float[np.ndarray, "n 4"],
    crop: tuple[int, int, int, int],
    photo_hw: tuple[int, int],
) -> Bool[np.ndarray, " n"]:
    """Whether a box (photo pixels) ends at a border of its crop that is not the photo's."""
    photo = np.array([0, 0, photo_hw[1], photo_hw[0]], np.float64)
    near_crop = np.abs(boxes - np.array(crop, np.float64)) <= _CROP_BORDER_PX
    near_photo = np.abs(boxes - photo) <= _CROP_BORDER_PX
    return (near_crop & ~near_photo).any(1)


def suppress(kept: Kept, iou_threshold: float) -> Int[np.ndarray, " m"]:
    """Positions that survive box NMS by predicted IoU, best first."""
    return nms(kept.boxes, kept.ious, iou_threshold)


def clean_masks(rles: Sequence[dict], filters: Filters) -> tuple[list[dict], Int[np.ndarray, " m"]]:
    """Removes small holes and islands, then suppresses masks that became equal.

    Unchanged masks are preferred over changed ones.

    Args:
        rles: COCO RLE of every mask, in order of preference.
        filters: `min_mask_region_area` and the NMS thresholds.

    Returns:
        The cleaned RLEs (all of them), and the positions to keep, in order.
    """
    if not filters.min_mask_region_area or not rles:
        return list(rles), np.arange(len(rles))
    cleaned, boxes, scores = [], [], []
    for rle in rles:
        mask, filled = remove_small_regions(decode_rle(rle), filters.min_mask_region_area, "holes")
        mask, cut = remove_small_regions(mask, filters.min_mask_region_area, "islands")
        cleaned.append(encode_rle(mask) if filled or cut else rle)
        boxes.append(inclusive_box(mask))
        scores.append(0.0 if filled or cut else 1.0)
    threshold = max(filters.box_nms_thresh, filters.crop_nms_thresh)
    return cleaned, nms(np.stack(boxes), np.array(scores, np.float32), threshold)


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
    x, y, w, h = box_xywh(mask)
    if w == 0:
        return np.zeros(4, np.int64)
    return np.array([x, y, x + w - 1, y + h - 1], np.int64)


def _first(present: Bool[Array, "n s"]) -> Int[Array, " n"]:
    return jnp.argmax(present, axis=1)


def _last(present: Bool[Array, "n s"]) -> Int[Array, " n"]:
    return present.shape[1] - 1 - jnp.argmax(present[:, ::-1], axis=1)
