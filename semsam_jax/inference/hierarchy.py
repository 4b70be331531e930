"""Masks of one image as a tree of wholes and parts, and without overlap.

Both work on run lengths, so that hundreds of masks of a large image need little memory.
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
) -> list[tuple[int, Bool[np.ndarray, "h w"]]]:
    """Gives every pixel to at most one mask: small ones lie on top of large ones.

    Args:
        masks: COCO RLE, of one size.
        scores: of masks of equal size, the one with the higher score lies on top.
        min_visible: share of a mask that must stay visible; a mask with less is dropped, and its
            pixels go to the others.
        min_piece: visible pieces with fewer pixels are dropped.

    Returns:
        Position and visible part of each mask that stays, in the order of the positions.
    """
    if not masks:
        return []
    areas = rle.mask_areas(masks)
    order: Int[np.ndarray, " n"] = np.lexsort((-np.asarray(scores), areas))
    taken = np.zeros(masks[0]["size"], bool)
    kept = []
    for i in order.tolist():
        visible = rle.decode(masks[i]) & ~taken
        if min_piece > 1:
            visible = large_pieces(visible, min_piece)
        if not visible.any() or visible.sum() < min_visible * areas[i]:
            continue
        taken |= visible
        kept.append((i, visible))
    return sorted(kept, key=lambda row: row[0])


def large_pieces(mask: Bool[np.ndarray, "h w"], area: int) -> Bool[np.ndarray, "h w"]:
    """The pieces of a mask (8-connected) that have at least so many pixels."""
    _, pieces, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    is_large = stats[:, cv2.CC_STAT_AREA] >= area
    is_large[0] = False
    return is_large[pieces]
