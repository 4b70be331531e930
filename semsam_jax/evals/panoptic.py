"""Panoptic quality of things and of stuff.

For each class, a predicted and a true segment match if IoU > 0.5 (at most one can):

    PQ = sum of IoU over matches / (TP + FP / 2 + FN / 2) = SQ * RQ
    SQ = mean IoU of matches,  RQ = TP / (TP + FP / 2 + FN / 2)

averaged over the classes that occur. IoU leaves out predicted pixels on void. Crowd segments
are never matched or missed; an unmatched prediction is no false positive if more than half of
it lies on void or on crowd of its own class (as in the published tool, the last crowd segment
of a class in an image).

Source: Kirillov et al., arXiv 1801.00868, section 4, and the rules of COCO panoptic.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Int

from semsam_jax.core.errors import DataError
from semsam_jax.evals.evaluator import Evaluator, add_sparse, exact_mean, sparse

VOID = 0
"""Id of pixels without a segment."""

MATCH_IOU = 0.5


@dataclasses.dataclass(frozen=True)
class PanopticSegments:
    """A panoptic map and the classes of its segments.

    Attributes:
        segment_map: int [h, w] id of each pixel, `VOID` where there is no segment.
        classes: id -> class index.
        crowd: ids of crowd regions.
    """

    segment_map: Int[np.ndarray, "h w"]
    classes: Mapping[int, int]
    crowd: frozenset[int] = frozenset()


@dataclasses.dataclass(frozen=True)
class ClassQuality:
    """Counts and qualities of one class."""

    pq: float
    sq: float
    rq: float
    tp: int
    fp: int
    fn: int


@dataclasses.dataclass(frozen=True)
class PanopticResult:
    """Qualities in 0..1; nan where no class occurs.

    Attributes:
        all, things, stuff: name -> value for "pq", "sq", "rq" and "num_classes".
        by_class: class index -> its quality, for classes that occur.
        num_images: how many images were compared.
    """

    all: dict[str, float]
    things: dict[str, float]
    stuff: dict[str, float]
    by_class: dict[int, ClassQuality]
    num_images: int

    def scalars(self) -> dict[str, float]:
        """Flat numbers for a log, percent."""
        groups = {"": self.all, "_things": self.things, "_stuff": self.stuff}
        return {
            f"{name}{suffix}": 100 * group[name]
            for suffix, group in groups.items()
            for name in ("pq", "sq", "rq")
        }


class PanopticEvaluator(Evaluator):
    """Sums matches, false positives and false negatives per class.

    Args:
        is_thing: bool per class index; its length is the number of classes.
    """

    def __init__(self, is_thing: np.ndarray) -> None:
        self._is_thing = np.asarray(is_thing, bool)
        self._table = np.full(1, -1, np.int32)
        self.reset()

    def reset(self) -> None:
        """Forgets everything that was processed."""
        size = len(self._is_thing)
        self._matched_iou: list[list[float]] = [[] for _ in range(size)]
        self._fp = np.zeros(size, np.int64)
        self._fn = np.zeros(size, np.int64)
        self._images = 0

    def process(self, truth: PanopticSegments, prediction: PanopticSegments) -> None:
        """Compares two maps of one image.

        Raises:
            DataError: sizes differ, a pixel has an id without class, a class is unknown.
        """
        if truth.segment_map.shape != prediction.segment_map.shape:
            raise DataError(
                f"PanopticEvaluator: prediction is {prediction.segment_map.shape}, truth is "
                f"{truth.segment_map.shape}; resize the prediction to the annotation."
            )
        true_ids, true_classes, true_rank = self._ranks(truth, "truth")
        pred_ids, pred_classes, pred_rank = self._ranks(prediction, "prediction")
        rows, columns = len(true_ids) + 1, len(pred_ids) + 1
        pairs = true_rank.astype(np.int32) * columns + pred_rank
        shared = np.bincount(pairs.ravel(), minlength=rows * columns).reshape(rows, columns)
        true_area, pred_area = shared.sum(1)[1:], shared.sum(0)[1:]
        on_void, shared = shared[0, 1:], shared[1:, 1:]

        is_crowd = np.isin(true_ids, list(truth.crowd))
        union = true_area[:, None] + (pred_area - on_void)[None, :] - shared
        iou = shared / np.maximum(union, 1)
        can_match = (true_classes[:, None] == pred_classes[None, :]) & ~is_crowd[:, None]
        hit_true, hit_pred = np.nonzero(can_match & (iou > MATCH_IOU))
        for t, p in zip(hit_true, hit_pred, strict=True):
            self._matched_iou[true_classes[t]].append(float(iou[t, p]))

        missed = ~is_crowd
        missed[hit_true] = False
        np.add.at(self._fn, true_classes[missed], 1)

        ignored = on_void.astype(np.float64)
        crowd_of_class = {int(true_classes[t]): t for t in np.flatnonzero(is_crowd)}
        for p, index in enumerate(pred_classes):
            if int(index) in crowd_of_class:
                ignored[p] += shared[crowd_of_class[int(index)], p]
        wrong = (pred_area > 0) & (ignored <= 0.5 * pred_area)
        wrong[hit_pred] = False
        np.add.at(self._fp, pred_classes[wrong], 1)
        self._images += 1

    def state(self) -> dict:
        """IoU and class of every match, false positives and false negatives by class."""
        tp = [len(ious) for ious in self._matched_iou]
        return {
            "match_class": np.repeat(np.arange(len(tp)), tp),
            "match_iou": np.asarray([iou for ious in self._matched_iou for iou in ious]),
            "fp": sparse(self._fp),
            "fn": sparse(self._fn),
            "images": self._images,
        }

    def add(self, state: Mapping) -> None:
        """Adds the matches and counts of another evaluator."""
        for index, iou in zip(state["match_class"], state["match_iou"], strict=True):
            self._matched_iou[index].append(float(iou))
        add_sparse(self._fp, state["fp"])
        add_sparse(self._fn, state["fn"])
        self._images += state["images"]

    def result(self) -> PanopticResult:
        """Computes the qualities of everything processed so far."""
        by_class = {}
        for index, ious in enumerate(self._matched_iou):
            tp, fp, fn = len(ious), int(self._fp[index]), int(self._fn[index])
            if tp + fp + fn:
                rq = tp / (tp + 0.5 * fp + 0.5 * fn)
                sq = exact_mean(ious) if tp else 0.0
                by_class[index] = ClassQuality(sq * rq, sq, rq, tp, fp, fn)
        things = {c: q for c, q in by_class.items() if self._is_thing[c]}
        stuff = {c: q for c, q in by_class.items() if not self._is_thing[c]}
        return PanopticResult(
            all=_mean_quality(by_class),
            things=_mean_quality(things),
            stuff=_mean_quality(stuff),
            by_class=by_class,
            num_images=self._images,
        )

    def _ranks(
        self, segments: PanopticSegments, where: str
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids, their classes, and the map with ids replaced by 1, 2, ... (0 for void)."""
        ids = np.fromiter(segments.classes.keys(), np.int64, len(segments.classes))
        classes = np.fromiter(segments.classes.values(), np.int64, len(ids))
        size = len(self._is_thing)
        if len(ids) and (ids.min() <= VOID or classes.min() < 0 or classes.max() >= size):
            raise DataError(
                f"PanopticEvaluator: {where} has segment ids {ids.min()}..{ids.max()} of classes "
                f"{classes.min()}..{classes.max()}; ids start at 1 and classes are below {size}."
            )
        pixels = segments.segment_map
        top = max(int(pixels.max(initial=0)), int(ids.max(initial=0)))
        if top >= len(self._table):
            self._table = np.full(top + 1, -1, np.int32)
        # One table look-up per pixel is several times faster than sorting the pixels; ids of
        # COCO's files reach 2^24, so the table is kept from image to image.
        self._table[VOID] = 0
        self._table[ids] = np.arange(1, len(ids) + 1)
        ranks = self._table[pixels]
        self._table[ids] = -1
        if ranks.min(initial=0) < 0:
            unknown = np.unique(pixels[ranks < 0])[:5].tolist()
            raise DataError(
                f"PanopticEvaluator: {where} has pixels with ids {unknown} that no segment "
                f"describes; list every id of the map."
            )
        return ids, classes, ranks


def _mean_quality(by_class: Mapping[int, ClassQuality]) -> dict[str, float]:
    rows = list(by_class.values())
    means = {name: exact_mean([getattr(q, name) for q in rows]) for name in ("pq", "sq", "rq")}
    return means | {"num_classes": len(rows)}
