"""Names of true masks: is the best of a data set's names the right one, and is its score honest?

Each annotated mask with a name is prompted with its tight box and with a click at its centre. Of
the masks that a prompt gives, the one that fits the truth best is named:

    top-1, top-5 = share of the masks whose name is the best, or one of the five best, of all names
                   of the data set of its kind (objects, or words of parts)
    majority     = top-1 of always saying the most frequent name
    ECE          = sum over ten bins of the score of
                   share of the names in it x |share of them that is right - their mean score|

The objects' scores are those of results: as what a mask is, or as what it is a part of.

Source: expected calibration error, Guo et al., arXiv 1706.04599.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from semsam_jax.evals.box_prompt import tight_box
from semsam_jax.evals.clicks import centre_click
from semsam_jax.evals.eval_loop import EvalLoop, SingleImageScorer
from semsam_jax.evals.evaluator import Evaluator
from semsam_jax.evals.report import TableRow
from semsam_jax.evals.samples import EvalSample
from semsam_jax.inference.decoding import decode_prompts, prompt_logits
from semsam_jax.inference.labels import LabelSet, label_set, object_logits
from semsam_jax.inference.loading import LoadedModel
from semsam_jax.inference.preprocess import Frame

KINDS = ("object", "part")
PROMPTS = ("box", "click")
NUM_BINS = 10
MIN_IOU = 0.5
"""Of a mask that counts for the calibration: the name of another thing is no wrong name."""

_MASK_STRIDE = 4


@dataclasses.dataclass(frozen=True)
class NameTable:
    """One row per prompt of a named mask; all columns have the same length N.

    Attributes:
        kind: int64 [N] index into `KINDS`.
        prompt: int64 [N] index into `PROMPTS`.
        truth: int64 [N] the right name, an index into the names of its kind.
        rank: int64 [N] names with a higher score than the right one.
        score: float64 [N] of the best name, 0..1.
        iou: float64 [N] of the named mask with the truth, at the resolution of mask logits.
    """

    kind: np.ndarray
    prompt: np.ndarray
    truth: np.ndarray
    rank: np.ndarray
    score: np.ndarray
    iou: np.ndarray

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.kind)

    def select(self, rows: np.ndarray) -> "NameTable":
        """Rows by bool mask."""
        return NameTable(*(getattr(self, f.name)[rows] for f in dataclasses.fields(self)))

    def of(self, kind: str, prompt: str | None = None) -> "NameTable":
        """Rows of a kind of names, and of a kind of prompts."""
        rows = self.kind == KINDS.index(kind)
        if prompt is not None:
            rows &= self.prompt == PROMPTS.index(prompt)
        return self.select(rows)

    @property
    def is_right(self) -> np.ndarray:
        """Whether the best name is the right one, bool [N]."""
        return self.rank == 0

    def top(self, count: int) -> float:
        """Share of rows whose right name is among the `count` best; nan without rows."""
        return float((self.rank < count).mean()) if len(self) else float("nan")

    def majority(self) -> float:
        """Share of the most frequent name; nan without rows."""
        return float(np.bincount(self.truth).max() / len(self)) if len(self) else float("nan")


@dataclasses.dataclass(frozen=True)
class Reliability:
    """How scores of names compare with how often they are right.

    Attributes:
        count: int64 [10] names by their score, in tenths.
        score: float64 [10] their mean score, 0 where there are none.
        right: float64 [10] the share of them that is right, 0 where there are none.
    """

    count: np.ndarray
    score: np.ndarray
    right: np.ndarray

    @property
    def error(self) -> float:
        """Expected calibration error; nan without names."""
        total = self.count.sum()
        return float(np.abs(self.right - self.score) @ self.count / total) if total else np.nan


def reliability(table: NameTable) -> Reliability:
    """Bins the best names by their scores."""
    which = np.minimum((table.score * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    count = np.bincount(which, minlength=NUM_BINS)
    sums = (np.bincount(which, x, NUM_BINS) for x in (table.score, table.is_right.astype(float)))
    return Reliability(count, *(total / np.maximum(count, 1) for total in sums))


def calibrations(table: NameTable) -> dict[str, Reliability]:
    """Reliability of each kind of names, over masks that fit the truth (IoU at least 0.5)."""
    found = {kind: table.of(kind) for kind in KINDS}
    found = {kind: own.select(own.iou >= MIN_IOU) for kind, own in found.items()}
    return {kind: reliability(own) for kind, own in found.items() if len(own)}


def score_rows(table: NameTable) -> tuple[list[TableRow], dict[str, float]]:
    """Lines of a report and numbers of a log, percent."""
    rows, scalars, errors = [], {}, calibrations(table)
    for kind in KINDS:
        own = table.of(kind)
        if not len(own):
            continue
        count = len(own) // len(PROMPTS)
        note = f"{count} masks, {len(np.unique(own.truth))} names"
        scalars |= {f"{kind}/majority": 100 * own.majority(), f"{kind}/count": float(count)}
        rows.append(TableRow(f"{kind} names, most frequent", 100 * own.majority(), "", note))
        for prompt in PROMPTS:
            for top in (1, 5):
                value = 100 * own.of(kind, prompt).top(top)
                rows.append(TableRow(f"{kind} names, {prompt}, top-{top}", value))
                scalars[f"{kind}/{prompt}/top{top}"] = value
        if kind in errors:
            value = scalars[f"{kind}/ece"] = 100 * errors[kind].error
            note = f"{errors[kind].count.sum()} masks of IoU >= {MIN_IOU}"
            rows.append(TableRow(f"{kind} names, calibration error", value, "", note))
    return rows, scalars


class NameScoreEvaluator(Evaluator):
    """Collects `NameTable` rows image by image."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forgets everything that was processed."""
        self._tables: list[NameTable] = []

    def process(self, table: NameTable) -> None:
        """Adds the rows of one image."""
        self._tables.append(table)

    def state(self) -> dict:
        """All rows, column by column."""
        return dataclasses.asdict(self.result())

    def add(self, state: Mapping) -> None:
        """Adds the rows of another evaluator."""
        self.process(NameTable(**state))

    def result(self) -> NameTable:
        """All rows, in an order that does not depend on how the images came."""
        names = [f.name for f in dataclasses.fields(NameTable)]
        tables = self._tables or [empty_table()]
        columns = [np.concatenate([getattr(t, name) for t in tables]) for name in names]
        order = np.lexsort(columns)
        return NameTable(*(column[order] for column in columns))


def evaluate_name_scores(
    model: LoadedModel,
    samples: Iterable[EvalSample],
    object_names: Mapping[int, str],
    part_names: Mapping[int, str],
    eval_loop: EvalLoop | None = None,
) -> tuple[NameTable, tuple[str, ...]]:
    """Names every annotated mask from its box and from a click.

    Args:
        model: with trained class heads.
        samples: images with masks on the canvas; crowd regions are left out.
        object_names: names by the `object_ids` of the samples.
        part_names: names by their `part_ids`.
        eval_loop: progress and records; no records by default.

    Returns:
        (one row for each prompt, names that the model does not know; their masks are left out).

    Raises:
        CheckpointError: the class heads were never trained.
    """
    labels = label_set(
        model, {"objects": list(object_names.values()), "parts": list(part_names.values())}
    )
    places = [
        {i: known.index(name) for i, name in names.items() if name in known}
        for names, known in ((object_names, labels.objects), (part_names, labels.parts))
    ]
    scorer = SingleImageScorer(functools.partial(_name_masks, model, labels, places))
    table = (
        (eval_loop or EvalLoop()).run("name_scores", NameScoreEvaluator(), samples, scorer).result()
    )
    return table, tuple(unknown.name for unknown in labels.unknown)


def empty_table() -> NameTable:
    """A table without rows."""
    return NameTable(*[np.zeros(0, np.int64)] * 4, *[np.zeros(0)] * 2)


def _name_masks(
    model: LoadedModel, labels: LabelSet, places: Sequence[Mapping[int, int]], sample: EvalSample
) -> tuple[NameTable]:
    """Rows of one image."""
    objects, parts = sample.classes("object_ids"), sample.classes("part_ids")
    crowd = sample.flags("is_crowd", False)
    kinds, truths, masks = [], [], []
    for index in range(len(sample.masks)):
        kind = int(parts[index] >= 0)
        truth = places[kind].get(int((objects, parts)[kind][index]))
        mask = sample.mask(index) if truth is not None and not crowd[index] else None
        if mask is not None and mask.any():
            kinds.append(kind)
            truths.append(truth)
            masks.append(mask)
    if not masks:
        return (empty_table(),)
    canvas = tuple(sample.image.shape[:2])
    frame = Frame(tuple(sample.size_hw), tuple(sample.size_hw), canvas, model.prompt_preset)
    pyramid = model.encode(sample.image[None], [frame])
    tight = np.array([tight_box(mask) for mask in masks], np.float64)
    corners = np.concatenate([tight[:, :2] - tight[:, 2:] / 2, tight[:, :2] + tight[:, 2:] / 2], 1)
    clicks = np.array([centre_click(mask) for mask in masks], np.float64) + 0.5
    boxes = np.concatenate([frame.box_prompts(corners), frame.click_boxes(clicks)])
    count = len(masks)
    types = np.repeat(np.array([frame.box_type(), 0], np.int32), count)
    found = decode_prompts(model, pyramid, boxes, types, labels, isolate=True)
    logits = np.concatenate(list(prompt_logits(pyramid.mask_features[0], found, [1] * len(boxes))))
    iou = _ious(logits > 0, masks * len(PROMPTS))
    token, every = iou.argmax(1), np.arange(len(boxes))
    whole = object_logits(found, len(labels.parts))[every, token, : len(labels.objects)]
    part = np.asarray(found.part_logits)[every, token, : len(labels.parts)]
    kind, truth = np.tile(kinds, len(PROMPTS)), np.tile(truths, len(PROMPTS))
    rank, best = np.zeros(len(boxes), np.int64), np.zeros(len(boxes))
    for row in every:
        scores = (whole, part)[kind[row]][row].astype(np.float64)
        rank[row], best[row] = (scores > scores[truth[row]]).sum(), scores.max()
    prompt = np.repeat(np.arange(len(PROMPTS)), count)
    return (NameTable(kind, prompt, truth, rank, 1 / (1 + np.exp(-best)), iou[every, token]),)


def _ious(found: np.ndarray, masks: Sequence[np.ndarray]) -> np.ndarray:
    """IoU float64 [p, k] of masks at stride 4 with true ones, which fill cells in part.

    Cells beyond the image, which true masks have the size of, do not count.
    """
    stride = _MASK_STRIDE
    rows, columns = (-(-side // stride) for side in masks[0].shape)
    padding = [
        (0, cells * stride - side)
        for cells, side in zip((rows, columns), masks[0].shape, strict=True)
    ]
    padded = np.array([np.pad(mask, padding) for mask in masks])
    truth = padded.reshape(-1, 1, rows, stride, columns, stride).mean((3, 5))
    found = found[:, :, :rows, :columns]
    shared = np.minimum(found, truth).sum((2, 3))
    return shared / np.maximum(np.maximum(found, truth).sum((2, 3)), 1e-9)
