"""Masks of one image as a tree of wholes and parts, and without overlap.

Masks are run lengths, and pixels only within their boxes, so that hundreds of masks of a large
image need little memory.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int

from semsam_jax.core import rle

CONTAINED = 0.9
"""Share of a mask that lies inside another one for the other to be its whole."""

_LARGER = 1.05


def parents(rles: Sequence[dict], levels: Sequence[int]) -> list[int | None]:
    """For each mask the position of the smallest one that contains it, None for a root.

    A parent is larger, contains nine tenths of the child, and its level is not finer.

    Args:
        rles: COCO RLE of the masks, of one size.
        levels: 1 coarsest, 6 finest.
    """
    if not rles:
        return []
    areas, inside = rle.mask_areas(rles), rle.mask_coverage(rles, rles)
    order = np.asarray(levels)
    found: list[int | None] = []
    for i in range(len(rles)):
        is_parent = (inside[i] >= CONTAINED) & (areas >= _LARGER * areas[i]) & (order <= order[i])
        candidates = np.flatnonzero(is_parent)
        found.append(int(candidates[areas[candidates].argmin()]) if len(candidates) else None)
    return found


def depths(parent: Sequence[int | None]) -> list[int]:
    """Steps from the root of each mask; parents are larger, so there is no cycle."""
    found: list[int] = []
    for start in range(len(parent)):
        depth, above = 0, parent[start]
        while above is not None:
            depth, above = depth + 1, parent[above]
        found.append(depth)
    return found


def without_overlap(
    masks: Sequence[dict],
    scores: Float[np.ndarray, " n"],
    *,
    min_visible: float,
    min_piece: int,
) -> list[tuple[int, dict]]:
    """Gives every pixel to at most one mask: small ones lie on top of large ones.

    Args:
        masks: COCO RLE, of one size.
        scores: of masks of equal size, the one with the higher score lies on top.
        min_visible: share of a mask that must stay visible; a mask with less is dropped, and its
            pixels go to the others.
        min_piece: visible pieces with fewer pixels are dropped.

    Returns:
        Position and visible part of each mask that stays, as COCO RLE, in the order of the
        positions.
    """
    if not masks:
        return []
    areas, free = rle.mask_areas(masks), FreePixels(tuple(masks[0]["size"]))
    order: Int[np.ndarray, " n"] = np.lexsort((-np.asarray(scores), areas))
    kept = []
    for i in order.tolist():
        least = max(1.0, min_visible * areas[i])
        visible, _ = free.take(masks[i], least, areas[i], min_piece)
        if visible is not None:
            kept.append((i, visible))
    return sorted(kept, key=lambda row: row[0])


class FreePixels:
    """Pixels of an image, or of a mask, that masks take one after the other.

    What is there as pixels are the boxes of the mask and of what takes from it.

    Args:
        image_hw: height and width of the image.
        within: COCO RLE of the mask; None for all pixels.
    """

    def __init__(self, image_hw: tuple[int, int], within: dict | None = None):
        self._image_hw = image_hw
        self._box = (0, 0, image_hw[1], image_hw[0]) if within is None else _bounds(within)
        x0, y0, x1, y1 = self._box
        self._free = np.ones((y1 - y0, x1 - x0), bool)
        if within is not None:
            self._free = rle.decode_window(within, *self._box)

    def take(
        self, mask: dict, least: float, most: float, min_piece: int
    ) -> tuple[dict | None, int]:
        """What of a mask is free, as COCO RLE, and its area; None takes nothing.

        Args:
            mask: COCO RLE.
            least: smallest area.
            most: largest area.
            min_piece: pieces with fewer pixels do not count.
        """
        x, y = self._box[:2]
        box = _bounds(mask)
        x0, y0 = max(box[0], x), max(box[1], y)
        x1, y1 = min(box[2], self._box[2]), min(box[3], self._box[3])
        if x0 >= x1 or y0 >= y1:
            return None, 0
        here = self._free[y0 - y : y1 - y, x0 - x : x1 - x]
        visible = rle.decode_window(mask, x0, y0, x1, y1) & here
        if min_piece > 1 and visible.any():
            visible = large_pieces(visible, min_piece)
        area = int(visible.sum())
        if not least <= area <= most:
            return None, area
        here &= ~visible
        runs = rle.run_lengths(visible, (y0, x0), self._image_hw)
        return rle.compress(runs, self._image_hw), area


def large_pieces(mask: Bool[np.ndarray, "h w"], area: int) -> Bool[np.ndarray, "h w"]:
    """The pieces of a mask (8-connected) that have at least so many pixels."""
    _, pieces, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    is_large = stats[:, cv2.CC_STAT_AREA] >= area
    is_large[0] = False
    return is_large[pieces]


def _bounds(mask: dict) -> tuple[int, int, int, int]:
    """Box x0, y0, x1, y1 of a mask, ends exclusive; without area for an empty mask."""
    x, y, w, h = (int(v) for v in rle.mask_boxes([mask])[0])
    return x, y, x + w, y + h
