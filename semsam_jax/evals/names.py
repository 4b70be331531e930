"""Names of true masks: is the best name of the dataset the right one, and is its score honest?

Each annotated mask with a class is prompted with its tight box and with a click at its centre.

    accuracy     = share of the clicks whose chosen mask, the one with the highest predicted IoU,
                   has the right name: what a user gets
    top-1, top-5 = share of the prompts whose mask that fits the truth best has the right name as
                   its best one, or among its five best
    majority     = top-1 of always saying the most frequent name
    ECE          = sum over ten bins of the score of
                   share of the names in it x |share of them that is right - their mean score|

The names are those of the dataset of one kind, objects or parts; names of one text are one. The
scores of objects are those of results: as what a mask is, or as what it is a part of.

Source: expected calibration error, Guo et al., arXiv 1706.04599.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping

import numpy as np
from flax import linen as nn

from semsam_jax.evals.box_prompt import box_prompts
from semsam_jax.evals.class_embeddings import KnownClasses
from semsam_jax.evals.clicks import click_boxes
from semsam_jax.evals.eval_loop import EvalLoop
from semsam_jax.evals.evaluator import Evaluator
from semsam_jax.evals.one_click import clicks_of, scored_masks
from semsam_jax.evals.prompt_runner import PromptQuery, PromptRunner, PromptWork
from semsam_jax.evals.report import TableRow
from semsam_jax.evals.samples import EvalSample
from semsam_jax.inference.name_scores import AS_THEY_ARE, KINDS, ScoreScale

PROMPTS = ("box", "click")
NUM_BINS = 10
MIN_IOU = 0.5
"""Of a mask that counts for the calibration: the name of another thing is no wrong name."""


@dataclasses.dataclass(frozen=True)
class NameTable:
    """One row per prompt of a named mask; all columns have the same length N.

    Attributes:
        kind: int64 [N] index into `KINDS`.
        prompt: int64 [N] index into `PROMPTS`.
        truth: int64 [N] the right name, an index into the names of its kind.
        chosen_rank: int64 [N] other names with at least the score of the right one, of the mask
            with the highest predicted IoU.
        rank: int64 [N] the same of the mask that fits the truth best.
        score: float64 [N] of its best name, 0..1.
        iou: float64 [N] of it with the truth.
    """

    kind: np.ndarray
    prompt: np.ndarray
    truth: np.ndarray
    chosen_rank: np.ndarray
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

    def accuracy(self) -> float:
        """Share of clicks whose chosen mask has the right name; nan without rows."""
        clicks = self.prompt == PROMPTS.index("click")
        return float((self.chosen_rank[clicks] == 0).mean()) if clicks.any() else float("nan")

    def class_accuracy(self, kind: str, count: int) -> np.ndarray:
        """`accuracy` of each of the `count` names of a kind, float64; nan without rows."""
        own = self.of(kind, "click")
        right = np.bincount(own.truth, own.chosen_rank == 0, count)
        total = np.bincount(own.truth, minlength=count)
        return np.where(total > 0, right / np.maximum(total, 1), np.nan)


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
    if not len(table):
        return [], {}
    clicks, errors = len(table) // len(PROMPTS), calibrations(table)
    value = 100 * table.accuracy()
    rows = [TableRow("name accuracy of clicks", value, "", f"{clicks} masks")]
    scalars = {"accuracy": value, "num_instances": float(clicks)}
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


class NameEvaluator(Evaluator):
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


def evaluate_names(
    model: nn.Module,
    params: dict,
    known: KnownClasses,
    samples: Iterable[EvalSample],
    *,
    box_type: int = 1,
    prompts_per_call: int = 16,
    eval_loop: EvalLoop | None = None,
    scales: tuple[ScoreScale, ScoreScale] = AS_THEY_ARE,
) -> NameTable:
    """Names every annotated mask from its box and from a click; one row for each prompt.

    Args:
        model: `SemanticSAM` with trained class heads.
        params: its parameters.
        known: classes of the dataset with their names and embeddings; masks of others and crowd
            regions are left out.
        samples: images with labelled masks.
        box_type: type index of a box (1 in our own training, 0 for released weights).
        prompts_per_call: prompts of an image that are decoded together.
        eval_loop: devices, progress and records; one device and no records by default.
        scales: how scores of objects and of parts come from logits.
    """
    eval_loop = eval_loop or EvalLoop()
    runner = PromptRunner.on(
        eval_loop, model, params, prompts_per_call, isolate=True, text=known.text
    )
    names = unique_names(known)
    work = functools.partial(_name_all, names=names, box_type=box_type, scales=scales)
    scorer = runner.scorer(work)
    return eval_loop.run("names", NameEvaluator(), samples, scorer).result()


def empty_table() -> NameTable:
    """A table without rows."""
    return NameTable(*[np.zeros(0, np.int64)] * 5, *[np.zeros(0)] * 2)


@dataclasses.dataclass(frozen=True)
class UniqueNames:
    """The names of one kind; classes of one text have one name.

    Attributes:
        texts: the names, str, all different.
        row: int64 [n] name of each row of the embeddings.
        by_class: name of each class index of the samples.
    """

    texts: tuple[str, ...]
    row: np.ndarray
    by_class: dict[int, int]

    def scores(self, logits: np.ndarray) -> np.ndarray:
        """Highest logit of the rows of each name: float [..., n] to [..., len(texts)]."""
        best = np.full((*logits.shape[:-1], len(self.texts)), -np.inf)
        np.maximum.at(best, (..., self.row), logits)
        return best


def unique_names(known: KnownClasses) -> tuple[UniqueNames, UniqueNames]:
    """The names of objects and of parts."""
    split = len(known.classes.object_ids)
    found = []
    for names, ids in (
        (known.names[:split], known.classes.object_ids),
        (known.names[split:], known.classes.part_ids),
    ):
        texts = {}
        for name in names:
            texts.setdefault(name.casefold(), (len(texts), name))
        row = np.array([texts[name.casefold()][0] for name in names], np.int64)
        by_class = dict(zip(ids.tolist(), row.tolist(), strict=True))
        found.append(UniqueNames(tuple(name for _, name in texts.values()), row, by_class))
    return tuple(found)


def _name_all(
    sample: EvalSample,
    names: tuple[UniqueNames, UniqueNames],
    box_type: int,
    scales: tuple[ScoreScale, ScoreScale],
) -> PromptWork:
    """Gives the rows of one image."""
    rows, masks = scored_masks(sample, skip_crowd=True)
    objects, parts = sample.classes("object_ids")[rows], sample.classes("part_ids")[rows]
    kind = (parts >= 0).astype(np.int64)
    classes = np.where(parts >= 0, parts, objects).tolist()
    truth = [names[k].by_class.get(one, -1) for k, one in zip(kind, classes, strict=True)]
    truth = np.array(truth, np.int64)
    kept = np.flatnonzero(truth >= 0)
    if not len(kept):
        return (empty_table(),)
    rows, masks = [rows[at] for at in kept], [masks[at] for at in kept]
    kind, truth = kind[kept], truth[kept]
    clicks = click_boxes(clicks_of(sample, rows, masks), sample.image.shape[:2])
    boxes = np.concatenate([box_prompts(sample, masks), clicks])
    prompt = np.repeat(np.arange(len(PROMPTS)), len(rows))
    types = np.where(prompt == PROMPTS.index("box"), box_type, 0)
    answer = yield PromptQuery(boxes, types, [[mask] for mask in masks * len(PROMPTS)])
    iou = answer.iou[..., 0]
    kind, truth = np.tile(kind, len(PROMPTS)), np.tile(truth, len(PROMPTS))
    best, chosen = iou.argmax(1), answer.pred_ious.argmax(1)
    rank, chosen_rank = np.zeros((2, len(boxes)), np.int64)
    highest = np.zeros(len(boxes))
    for number, (own, logits) in enumerate(zip(names, answer.name_logits, strict=True)):
        at = np.flatnonzero(kind == number)
        if not len(at):
            continue
        for token, ranks in ((chosen, chosen_rank), (best, rank)):
            scores = own.scores(logits[at, token[at]])
            right = scores[np.arange(len(at)), truth[at]]
            ranks[at] = (scores >= right[:, None]).sum(1) - 1
        highest[at] = scores.max(1)
    score = np.empty(len(boxes))
    for number, scale in enumerate(scales):
        score[kind == number] = scale.scores(highest[kind == number])
    fit = iou[np.arange(len(boxes)), best]
    return (NameTable(kind, prompt, truth, chosen_rank, rank, score, fit),)
