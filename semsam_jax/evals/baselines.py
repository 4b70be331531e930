"""Baselines without a model: one-click scores of discs and superpixels.

`centre blob`: discs around the click, one per level, the areas fixed shares of the image.
`superpixels`: SLIC superpixels merged bottom-up by colour; the level's mask is the segment
that contains the click. Both are scored on the same clicks and with the same table as the
model; `Max` takes one fixed level (there is no predicted quality), `Oracle` the best.

Source: SLIC, Achanta et al. 2012; merging by mean colour as in hierarchical segmentation.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import cv2
import numpy as np
from skimage import segmentation

from semsam_jax.evals.eval_loop import EvalLoop, SingleImageScorer
from semsam_jax.evals.one_click import (
    ClickTable,
    OneClickEvaluator,
    OneClickResult,
    clicks_of,
    empty_table,
    scored_masks,
)
from semsam_jax.evals.samples import EvalSample

BLOB_AREAS = (0.4, 0.2, 0.1, 0.05, 0.02, 0.005)
"""Shares of the image covered by the disc of level 1..6."""

SEGMENT_COUNTS = (2, 5, 12, 30, 80, 200)
"""Number of segments of the image at level 1..6."""

CHOSEN_LEVEL = 3
"""Level (from 1) that is used for `Max`."""

Answer = Callable[[np.ndarray, tuple[int, int]], Sequence[np.ndarray]]


def evaluate_baseline(
    kind: Literal["blob", "superpixels"],
    samples: Iterable[EvalSample],
    eval_loop: EvalLoop | None = None,
) -> OneClickResult:
    """Scores a baseline with the 1-click protocol (same clicks, without crowd regions)."""
    scorer = SingleImageScorer(functools.partial(score_baseline, kind))
    eval_loop = eval_loop or EvalLoop()
    return eval_loop.run(f"baseline_{kind}", OneClickEvaluator(), samples, scorer).result()


def score_baseline(
    kind: Literal["blob", "superpixels"], sample: EvalSample
) -> tuple[ClickTable, int]:
    """Rows of one image and the number of its masks that were not scored."""
    rows, truths = scored_masks(sample, skip_crowd=True)
    skipped = len(sample.masks) - len(rows) + sample.num_lost
    if not rows:
        return empty_table(), skipped
    h, w = sample.size_hw
    levels = superpixel_levels(sample.image[:h, :w]) if kind == "superpixels" else None
    clicks_xy = clicks_of(sample, rows, truths)
    iou, areas = [], []
    for (x, y), truth in zip(clicks_xy.tolist(), truths, strict=True):
        masks = blob_masks((h, w), (x, y)) if levels is None else masks_at(levels, (x, y))
        masks = _in_frame(masks, truth.shape)
        shared = (masks & truth).sum((1, 2))
        area = masks.sum((1, 2))
        iou.append(shared / np.maximum(area + truth.sum() - shared, 1))
        areas.append(area / truth.size)
    quality = np.zeros((len(rows), len(areas[0])), np.float32)
    quality[:, CHOSEN_LEVEL - 1] = 1.0
    truth_area = np.asarray([truth.sum() for truth in truths], np.float64)
    table = ClickTable(
        image_id=np.full(len(rows), sample.image_id, dtype=object),
        dataset=np.full(len(rows), sample.dataset, dtype=object),
        instance_id=sample.ids()[rows],
        is_thing=sample.flags("is_thing", True)[rows],
        object_id=sample.classes("object_ids")[rows],
        part_id=sample.classes("part_ids")[rows],
        click_xy=clicks_xy,
        iou=np.asarray(iou),
        pred_iou=quality,
        pred_area=np.asarray(areas),
        area=truth_area / np.prod(sample.frame_hw),
        area_px=sample.image_area(truth_area),
    )
    return table, skipped


def _in_frame(masks: np.ndarray, frame_hw: tuple[int, int]) -> np.ndarray:
    """Masks of the canvas in the scored frame, by nearest neighbour."""
    if masks.shape[1:] == frame_hw:
        return masks
    resized = [
        cv2.resize(mask.astype(np.uint8), frame_hw[::-1], interpolation=cv2.INTER_NEAREST)
        for mask in masks
    ]
    return np.stack(resized) > 0


def blob_masks(size_hw: tuple[int, int], click_xy: tuple[int, int]) -> np.ndarray:
    """Discs of `BLOB_AREAS` around the click, cut at the border: bool [levels, h, w]."""
    rows, columns = np.ogrid[: size_hw[0], : size_hw[1]]
    square = (columns - click_xy[0]) ** 2 + (rows - click_xy[1]) ** 2
    limits = np.asarray(BLOB_AREAS) * size_hw[0] * size_hw[1] / np.pi
    return square[None] <= limits[:, None, None]


def superpixel_levels(image: np.ndarray) -> np.ndarray:
    """Nested segmentations of an image, coarse to fine.

    Args:
        image: uint8 [h, w, 3].

    Returns:
        int32 [levels, h, w] segment numbers; level i has about `SEGMENT_COUNTS[i]` segments,
        and every segment lies inside one segment of the level above.
    """
    finest = segmentation.slic(image, SEGMENT_COUNTS[-1], compactness=10, start_label=0)
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB).astype(np.float64)
    parent = merge_by_colour(finest, lab, SEGMENT_COUNTS[:-1])
    return np.stack([*(labels[finest] for labels in parent), finest]).astype(np.int32)


def merge_by_colour(
    finest: np.ndarray, colours: np.ndarray, counts: Sequence[int]
) -> list[np.ndarray]:
    """Merges the two most similar neighbours until `counts` segments are left.

    Dissimilarity is the squared distance of mean colours times |a||b| / (|a| + |b|), the growth of
    the variance within segments (Ward), between segments that touch.

    Args:
        finest: int [h, w] segment numbers 0..n-1.
        colours: float [h, w, 3].
        counts: wanted numbers of segments, ascending.

    Returns:
        For each count an int [n] array: the merged segment of each finest segment.
    """
    size = int(finest.max()) + 1
    area = np.bincount(finest.ravel(), minlength=size).astype(np.float64)
    mean = np.stack(
        [np.bincount(finest.ravel(), colours[..., c].ravel(), minlength=size) for c in range(3)], 1
    )
    mean /= np.maximum(area, 1)[:, None]
    touches = np.zeros((size, size), bool)
    for a, b in ((finest[1:], finest[:-1]), (finest[:, 1:], finest[:, :-1])):
        touches[a, b] = touches[b, a] = True
    np.fill_diagonal(touches, False)
    group = np.arange(size)
    alive = area > 0
    left = int(alive.sum())
    found = {}
    for count in sorted(counts, reverse=True):
        while left > count:
            cost = ((mean[:, None] - mean[None]) ** 2).sum(-1)
            cost *= area[:, None] * area[None] / np.maximum(area[:, None] + area[None], 1)
            cost[~touches] = np.inf
            a, b = np.unravel_index(int(cost.argmin()), cost.shape)
            if not np.isfinite(cost[a, b]):
                break
            total = area[a] + area[b]
            mean[a] = (mean[a] * area[a] + mean[b] * area[b]) / total
            area[a], area[b], alive[b] = total, 0.0, False
            touches[a] |= touches[b]
            touches[:, a] |= touches[:, b]
            touches[b] = touches[:, b] = False
            touches[a, a] = False
            group[group == b] = a
            left -= 1
        found[count] = group.copy()
    return [found[count] for count in counts]


def masks_at(levels: np.ndarray, click_xy: tuple[int, int]) -> np.ndarray:
    """Segments that contain the click, one per level: bool [levels, h, w]."""
    x, y = click_xy
    return levels == levels[:, y, x][:, None, None]
