"""A mask that the mask generator has found."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from semsam_jax.inference.results import ScoredName


@dataclasses.dataclass(frozen=True)
class FoundMask:
    """A mask that is kept, in pixels of the image, or of a tile of it.

    Attributes:
        runs: run lengths down the columns, after cleaning.
        area: pixels.
        clean_box: x0, y0, x1, y1 inclusive, after cleaning.
        changed: whether cleaning changed it.
        box: before cleaning.
        iou: predicted.
        stability: see `mask_selection`.
        point: the click, x, y.
        token: index of the output token.
        crop: the crop of the image that was segmented, x0, y0, x1, y1.
        object: best object name.
        part: best part name.
        granularity: what was asked for, None where levels were.
    """

    runs: Int[np.ndarray, " m"]
    area: int
    clean_box: Int[np.ndarray, "4"]
    changed: bool
    box: Int[np.ndarray, "4"]
    iou: float
    stability: float
    point: tuple[float, float]
    token: int
    crop: tuple[int, int, int, int]
    object: ScoredName | None
    part: ScoredName | None
    granularity: float | None = None


def drop_duplicates(found: Sequence[FoundMask]) -> list[FoundMask]:
    """Drops empty masks and duplicates; of equal masks the first stays."""
    seen: set[bytes] = set()
    kept = []
    for mask in found:
        key = mask.runs.tobytes()
        if mask.area and key not in seen:
            seen.add(key)
            kept.append(mask)
    return kept
