"""Open Tree Quality: one tree of masks with names against another (COCOTree, arXiv 2605.22068).

    M          = one-to-one assignment of masks with the largest sum of IoUs, pairs of IoU >= 0.5
    MQ, LQ     = mean over M of the IoU, of the similarity of the labels (0..1, 1 if they are equal)
    meanNQ     = mean over M of IoU x similarity
    BQ         = share of the pairs of M whose lowest common ancestor among the matched masks is the
                 same in both trees; 1 without a pair
    recovery   = TP / (TP + FP / 2 + FN / 2)
    TQ         = BQ x recovery
    OTQ        = TQ x meanNQ, mean over images

As in the paper's profile, what a mask is a part of is found anew in both trees, from labels and
masks: among the masks on the nearest level above that overlap with it, the one with the largest
IoU, else on the next level above, else the root.

Differences: levels are paths of labels from the root, where the benchmark has ids of semantic
nodes. Labels are similar if they are equal, else not at all, unless another `similarity` is given;
the paper takes the cosine of MiniLM sentence embeddings, which this package does not have, so that
OTQ here is never above it. Masks without a label (`others`) are not scored in the truth.

Source: github.com/melonkick3090/COCOTree, benchmark/docs/METRIC_DEFINITIONS.md.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from pycocotools import mask as coco_mask
from scipy.optimize import linear_sum_assignment

from semsam_jax.evals.evaluator import Evaluator, exact_mean

MIN_IOU = 0.5
SCOPES = (1, 2, 3, None)
"""Depths up to which trees are compared; None: all of them."""

_FIELDS = ("otq", "tq", "bq", "nq", "mq", "lq", "recovery")


@dataclasses.dataclass(frozen=True)
class NamedTree:
    """Masks with labels and parents.

    Attributes:
        masks: COCO RLE, of one size.
        labels: lower-case words; empty for a mask without one.
        parents: position of each mask's parent, None for a root.
    """

    masks: tuple[dict, ...]
    labels: tuple[str, ...]
    parents: tuple[int | None, ...]

    def paths(self) -> list[tuple[str, ...]]:
        """Labels from the root down to each mask; its length is the depth."""
        found: list[tuple[str, ...]] = []
        for start in range(len(self.masks)):
            path, at = [self.labels[start]], self.parents[start]
            while at is not None:
                path.append(self.labels[at])
                at = self.parents[at]
            found.append(tuple(reversed(path)))
        return found

    def down_to(self, depth: int | None) -> "NamedTree":
        """The masks of at most this depth, 1 for roots."""
        if depth is None:
            return self
        kept = [i for i, path in enumerate(self.paths()) if len(path) <= depth]
        place = {i: number for number, i in enumerate(kept)}
        return NamedTree(
            tuple(self.masks[i] for i in kept),
            tuple(self.labels[i] for i in kept),
            tuple(None if (p := self.parents[i]) is None else place[p] for i in kept),
        )


@dataclasses.dataclass(frozen=True)
class TreeQuality:
    """How well one tree of an image agrees with the truth; see the head of the module.

    Attributes:
        otq, tq, bq, nq, mq, lq, recovery: 0..1.
        tp, fp, fn: masks.
    """

    otq: float
    tq: float
    bq: float
    nq: float
    mq: float
    lq: float
    recovery: float
    tp: int
    fp: int
    fn: int


Similarity = Callable[[str, str], float]


def same_label(a: str, b: str) -> float:
    """1 for equal labels, 0 for others and for none."""
    return float(a == b and bool(a))


def tree_quality(
    truth: NamedTree, found: NamedTree, similarity: Similarity = same_label
) -> TreeQuality:
    """Compares a tree with the truth.

    Args:
        truth: masks without a label are not scored.
        found: masks without a label are wrong names.
        similarity: of two labels, 0..1.
    """
    scored = [i for i, label in enumerate(truth.labels) if label]
    iou = _ious([truth.masks[i] for i in scored], list(found.masks))
    rows, columns = linear_sum_assignment(iou, maximize=True)
    pairs = [
        (scored[r], int(c)) for r, c in zip(rows, columns, strict=True) if iou[r, c] >= MIN_IOU
    ]
    values = [iou[scored.index(t), f] for t, f in pairs]
    alike = [
        1.0 if truth.labels[t] == found.labels[f] else similarity(truth.labels[t], found.labels[f])
        for t, f in pairs
    ]
    tp, fp, fn = len(pairs), len(found.masks) - len(pairs), len(scored) - len(pairs)
    total = tp + 0.5 * fp + 0.5 * fn
    recovery = tp / total if total else 0.0
    bq = _branch_quality(truth, found, pairs)
    mean = [exact_mean(v) if pairs else 0.0 for v in (values, alike, np.multiply(values, alike))]
    return TreeQuality(
        otq=bq * recovery * mean[2],
        tq=bq * recovery,
        bq=bq,
        nq=mean[2],
        mq=mean[0],
        lq=mean[1],
        recovery=recovery,
        tp=tp,
        fp=fp,
        fn=fn,
    )


def effective_parents(tree: NamedTree) -> list[int | None]:
    """What each mask is a part of by labels and masks, as the paper's profile says."""
    paths = tree.paths()
    at: dict[tuple[str, ...], list[int]] = {}
    for i, path in enumerate(paths):
        at.setdefault(path, []).append(i)
    found: list[int | None] = []
    for i, path in enumerate(paths):
        parent = None
        for length in range(len(path) - 1, 0, -1):
            level = at.get(path[:length], [])
            iou = _ious([tree.masks[i]], [tree.masks[j] for j in level])[0]
            if len(level) and iou.max() > 0:
                parent = level[int(iou.argmax())]
                break
        found.append(parent)
    return found


class TreeEvaluator(Evaluator):
    """Collects the qualities of images at all depths."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forgets everything that was processed."""
        self._rows: list[np.ndarray] = []

    def process(self, truth: NamedTree, found: NamedTree) -> None:
        """Takes the two trees of an image."""
        row = []
        for depth in SCOPES:
            quality = tree_quality(truth.down_to(depth), found.down_to(depth))
            row.append(
                [*(getattr(quality, n) for n in _FIELDS), quality.tp, quality.fp, quality.fn]
            )
        self._rows.append(np.asarray(row, np.float64))

    def state(self) -> dict:
        """One row for each image and depth."""
        shape = (-1, len(SCOPES), len(_FIELDS) + 3)
        return {"rows": np.asarray(self._rows, np.float64).reshape(shape)}

    def add(self, state: Mapping) -> None:
        """Adds the images of another evaluator."""
        self._rows += list(np.asarray(state["rows"], np.float64))

    def result(self) -> dict[str, float]:
        """`otq`, `otq@1`, ...: means over images in 0..1, nan without one; counts as sums."""
        rows = self.state()["rows"]
        out: dict[str, float] = {"num_images": float(len(rows))}
        for scope, depth in enumerate(SCOPES):
            ending = "" if depth is None else f"@{depth}"
            for column, name in enumerate(_FIELDS):
                out[f"{name}{ending}"] = exact_mean(rows[:, scope, column])
            for column, name in enumerate(("tp", "fp", "fn"), start=len(_FIELDS)):
                out[f"{name}{ending}"] = float(math.fsum(rows[:, scope, column]))
        return out


def _branch_quality(truth: NamedTree, found: NamedTree, pairs: Sequence[tuple[int, int]]) -> float:
    """Share of pairs of matches whose lowest common ancestor is the same; 1 without a pair."""
    count = len(pairs) * (len(pairs) - 1) // 2
    if not count:
        return 1.0
    to_truth = {f: t for t, f in pairs}
    of_truth = _matched_ancestors(effective_parents(truth), {t for t, _ in pairs})
    of_found = _matched_ancestors(effective_parents(found), set(to_truth))
    right = 0
    for first, (t1, f1) in enumerate(pairs):
        for t2, f2 in pairs[first + 1 :]:
            wanted = _common(of_truth[t1], of_truth[t2])
            got = _common(of_found[f1], of_found[f2])
            right += wanted == (None if got is None else to_truth[got])
    return right / count


def _matched_ancestors(parents: Sequence[int | None], matched: set[int]) -> dict[int, list[int]]:
    """Each matched mask with the matched ones above it, from itself up."""
    found: dict[int, list[int]] = {}
    for start in matched:
        path, at = [], start
        while at is not None:
            if at in matched:
                path.append(at)
            at = parents[at]
        found[start] = path
    return found


def _common(a: Sequence[int], b: Sequence[int]) -> int | None:
    """The first of one path that is on the other; None: only the root is."""
    other = set(b)
    return next((node for node in a if node in other), None)


def _ious(a: list[dict], b: list[dict]) -> np.ndarray:
    if not a or not b:
        return np.zeros((len(a), len(b)))
    return np.asarray(coco_mask.iou(a, b, [0] * len(b)), np.float64)
