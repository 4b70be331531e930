"""1-click IoU: one click per ground-truth mask, `Max` and `Oracle` over the tokens.

    IoU(P, G) = |P n G| / |P u G|,  thresholded at logit 0
    Max    = mean over instances of IoU of the token with the highest predicted quality
    Oracle = mean over instances of the best IoU of all tokens

Two frames can be scored. `released_v1`, the published one: image and masks resized to the
canvas, clicks and IoU there. `original_size`: masks in the stored image's pixels; clicks are
found there and moved to the canvas, and mask logits are resized bilinearly to the image.
The frame is the samples' (`EvalSample.truth_hw`).

Source: docs/reference.md, section 11; arXiv 2307.04767, section 4.2; SAM arXiv
2304.02643.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping

import numpy as np
from flax import linen as nn

from semsam_jax.evals.clicks import CLICK_BOX_PX, centre_click, click_boxes
from semsam_jax.evals.eval_loop import EvalLoop
from semsam_jax.evals.evaluator import Evaluator, exact_mean
from semsam_jax.evals.prompt_runner import PromptQuery, PromptRunner, PromptWork
from semsam_jax.evals.samples import SIZE_NAMES, ClassNames, EvalSample, size_class

_TEXT_COLUMNS = ("image_id", "dataset")


@dataclasses.dataclass(frozen=True)
class ClickProtocol:
    """How clicks are made and passed to the model.

    Attributes:
        click_box_px: side of the box that represents a click, in canvas pixels.
        point_type: type index of a click (0: released weights and our own training).
        isolate: prompts of a call do not see each other.
        skip_crowd: crowd regions are no samples (COCO panoptic protocol).
    """

    click_box_px: float = CLICK_BOX_PX
    point_type: int = 0
    isolate: bool = True
    skip_crowd: bool = True


@dataclasses.dataclass(frozen=True)
class ClickTable:
    """One row per scored instance; all columns have the same length N.

    Attributes:
        image_id, dataset: str [N].
        instance_id: int64 [N].
        is_thing: bool [N].
        object_id, part_id: int64 [N] class index, -1 none.
        click_xy: int64 [N, 2] canvas pixels.
        iou: float64 [N, k] IoU of each token's mask with the clicked instance.
        pred_iou: float32 [N, k] quality predicted by the model.
        pred_area: float64 [N, k] area of each token's mask, fraction of the valid image.
        area: float64 [N] area of the instance, fraction of the valid image.
        area_px: float64 [N] area of the instance in pixels of the original image.
    """

    image_id: np.ndarray
    dataset: np.ndarray
    instance_id: np.ndarray
    is_thing: np.ndarray
    object_id: np.ndarray
    part_id: np.ndarray
    click_xy: np.ndarray
    iou: np.ndarray
    pred_iou: np.ndarray
    pred_area: np.ndarray
    area: np.ndarray
    area_px: np.ndarray

    def __len__(self) -> int:
        """Number of scored instances."""
        return len(self.instance_id)

    @property
    def chosen(self) -> np.ndarray:
        """Token with the highest predicted quality, int64 [N] (the first on a tie)."""
        return self.pred_iou.argmax(1) if len(self) else np.zeros(0, np.int64)

    @property
    def iou_max(self) -> np.ndarray:
        """IoU of the chosen token, float64 [N]."""
        return self.iou[np.arange(len(self)), self.chosen]

    @property
    def iou_oracle(self) -> np.ndarray:
        """IoU of the best token, float64 [N]."""
        return self.iou.max(1) if len(self) else np.zeros(0)

    def select(self, rows: np.ndarray) -> "ClickTable":
        """Rows by index or by bool mask."""
        columns = {f.name: getattr(self, f.name)[rows] for f in dataclasses.fields(self)}
        return ClickTable(**columns)


@dataclasses.dataclass(frozen=True)
class OneClickResult:
    """Means over instances, in 0..1; nan where there is nothing to average.

    Attributes:
        iou_max, iou_oracle: the two figures of the protocol.
        num_instances, num_images: what was scored.
        num_skipped: masks without a pixel (no click exists) and crowd regions.
        token_iou: float64 [k] mean IoU of each token.
        token_area: float64 [k] mean mask area of each token, fraction of the image.
        by_dataset, by_size, by_kind: name -> {"iou_max", "iou_oracle", "count"}.
        table: the rows behind it, sorted by dataset, image and instance.
    """

    iou_max: float
    iou_oracle: float
    num_instances: int
    num_images: int
    num_skipped: int
    token_iou: np.ndarray
    token_area: np.ndarray
    by_dataset: dict[str, dict[str, float]]
    by_size: dict[str, dict[str, float]]
    by_kind: dict[str, dict[str, float]]
    table: ClickTable

    def scalars(self) -> dict[str, float]:
        """Flat numbers for a log: percent, except counts and areas."""
        out = {
            "iou_max": 100 * self.iou_max,
            "iou_oracle": 100 * self.iou_oracle,
            "num_instances": float(self.num_instances),
        }
        for group in (self.by_dataset, self.by_size, self.by_kind):
            for name, row in group.items():
                out[f"iou_max/{name}"] = 100 * row["iou_max"]
                out[f"iou_oracle/{name}"] = 100 * row["iou_oracle"]
        for token, (iou, area) in enumerate(zip(self.token_iou, self.token_area, strict=True)):
            out[f"token{token}/iou"] = 100 * float(iou)
            out[f"token{token}/area"] = float(area)
        return out


class OneClickEvaluator(Evaluator):
    """Collects `ClickTable` rows image by image; see `evaluate_one_click` for the eval_loop."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forgets everything that was processed."""
        self._tables: list[ClickTable] = []
        self._skipped = 0

    def process(self, table: ClickTable, num_skipped: int = 0) -> None:
        """Adds the rows of one image and the number of its masks that were not scored."""
        self._skipped += num_skipped
        if len(table):
            self._tables.append(table)

    def state(self) -> dict:
        """All rows, column by column, and the number of masks that were skipped."""
        table = _joined(self._tables)
        columns = {f.name: getattr(table, f.name) for f in dataclasses.fields(table)}
        for name in _TEXT_COLUMNS:
            columns[name] = columns[name].tolist()
        return {"columns": columns, "skipped": self._skipped}

    def add(self, state: Mapping) -> None:
        """Adds the rows of another evaluator."""
        columns = dict(state["columns"])
        for name in _TEXT_COLUMNS:
            columns[name] = np.asarray(columns[name], object)
        self.process(ClickTable(**columns), state["skipped"])

    def result(self) -> OneClickResult:
        """Computes the means; nan figures if no instance was scored."""
        table = _sorted(_joined(self._tables))
        size = np.asarray(SIZE_NAMES)[size_class(table.area_px)] if len(table) else np.zeros(0)
        kind = np.where(table.is_thing, "thing", "stuff")
        tokens = range(table.iou.shape[1])
        return OneClickResult(
            iou_max=exact_mean(table.iou_max),
            iou_oracle=exact_mean(table.iou_oracle),
            num_instances=len(table),
            num_images=len(set(zip(table.dataset.tolist(), table.image_id.tolist(), strict=True))),
            num_skipped=self._skipped,
            token_iou=np.asarray([exact_mean(table.iou[:, k]) for k in tokens]),
            token_area=np.asarray([exact_mean(table.pred_area[:, k]) for k in tokens]),
            by_dataset=_grouped(table, table.dataset),
            by_size=_grouped(table, size),
            by_kind=_grouped(table, kind),
            table=table,
        )


def evaluate_one_click(
    model: nn.Module,
    params: dict,
    samples: Iterable[EvalSample],
    *,
    prompts_per_call: int = 16,
    protocol: ClickProtocol | None = None,
    eval_loop: EvalLoop | None = None,
    name: str = "one_click",
) -> OneClickResult:
    """Runs the 1-click protocol.

    Args:
        model: `SemanticSAM`.
        params: its parameters.
        samples: images with masks; equal canvas sizes share one compiled program.
        prompts_per_call: clicks per decoder call (padded; no influence on the result).
        protocol: how clicks are made; the published protocol by default.
        eval_loop: devices, progress and records; one device and no records by default.
        name: of the eval_loop's records.
    """
    protocol = protocol or ClickProtocol()
    eval_loop = eval_loop or EvalLoop()
    runner = PromptRunner.on(eval_loop, model, params, prompts_per_call, protocol.isolate)
    scorer = runner.scorer(functools.partial(click_all, protocol=protocol))
    return eval_loop.run(name, OneClickEvaluator(), samples, scorer).result()


def class_figures(table: ClickTable, names: ClassNames) -> dict[str, dict[str, float]]:
    """For each class with a name: how many of its masks were clicked, and their IoU in percent.

    Args:
        table: the clicks.
        names: of the dataset's classes.

    Returns:
        "cat", "cat:head" or ":head" (a part of no known object) -> "masks" and "iou", the mean of
        `ClickTable.iou_max`; in the order of the classes.
    """
    pairs = zip(table.object_id.tolist(), table.part_id.tolist(), strict=True)
    rows: dict[tuple[int, int], list[int]] = {}
    for row, pair in enumerate(pairs):
        rows.setdefault(pair, []).append(row)
    found: dict[str, list[int]] = {}
    for pair in sorted(rows):
        text = names.text(*pair)
        if text:
            found.setdefault(text, []).extend(rows[pair])
    iou = table.iou_max
    return {
        text: {"masks": float(len(own)), "iou": 100 * exact_mean(iou[own])}
        for text, own in found.items()
    }


def click_all(sample: EvalSample, protocol: ClickProtocol) -> PromptWork:
    """Clicks every instance of one image; gives its rows and the number of masks skipped."""
    rows, masks = scored_masks(sample, protocol.skip_crowd)
    clicks_xy = clicks_of(sample, rows, masks)
    boxes = click_boxes(clicks_xy, sample.image.shape[:2], protocol.click_box_px)
    types = np.full(len(rows), protocol.point_type)
    table = yield from tabulate(sample, rows, masks, clicks_xy, boxes, types)
    return table, len(sample.masks) - len(rows) + sample.num_lost


def clicks_of(sample: EvalSample, rows: list[int], masks: list[np.ndarray]) -> np.ndarray:
    """Given clicks, or the centres of non-empty masks of the scored frame, on the canvas."""
    if sample.clicks_xy is not None:
        return np.asarray(sample.clicks_xy, np.int64).reshape(-1, 2)[rows]
    return sample.on_canvas([centre_click(mask) for mask in masks])


def scored_masks(sample: EvalSample, skip_crowd: bool) -> tuple[list[int], list[np.ndarray]]:
    """Indices and masks of the instances that count: with a pixel, and no crowd."""
    crowd = sample.flags("is_crowd", False)
    rows, masks = [], []
    for index in range(len(sample.masks)):
        if crowd[index] and skip_crowd:
            continue
        mask = sample.truth_mask(index)
        if mask.any():
            rows.append(index)
            masks.append(mask)
    return rows, masks


def tabulate(
    sample: EvalSample,
    rows: list[int],
    masks: list[np.ndarray],
    clicks_xy: np.ndarray,
    boxes: np.ndarray,
    types: np.ndarray,
) -> PromptWork:
    """Runs one prompt per instance and returns a `ClickTable` of the scores.

    Args:
        sample: the image.
        rows: indices of the scored instances of the sample, n of them.
        masks: their masks, bool [h, w].
        clicks_xy: int [n, 2], kept for the report.
        boxes: float32 [n, 4] prompts, cxcywh fractions of the canvas.
        types: int [n] prompt types.
    """
    if not rows:
        return empty_table()
    scores = yield PromptQuery(boxes, types, [[mask] for mask in masks])
    pixels = float(np.prod(sample.frame_hw))
    area = scores.target_area[:, 0]
    return ClickTable(
        image_id=np.full(len(rows), sample.image_id, dtype=object),
        dataset=np.full(len(rows), sample.dataset, dtype=object),
        instance_id=sample.ids()[rows],
        is_thing=sample.flags("is_thing", True)[rows],
        object_id=sample.classes("object_ids")[rows],
        part_id=sample.classes("part_ids")[rows],
        click_xy=clicks_xy,
        iou=scores.iou[..., 0],
        pred_iou=scores.pred_ious,
        pred_area=scores.pred_area / pixels,
        area=area / pixels,
        area_px=sample.image_area(area),
    )


def empty_table() -> ClickTable:
    """A table without rows."""
    return ClickTable(
        image_id=np.zeros(0, object),
        dataset=np.zeros(0, object),
        instance_id=np.zeros(0, np.int64),
        is_thing=np.zeros(0, bool),
        object_id=np.zeros(0, np.int64),
        part_id=np.zeros(0, np.int64),
        click_xy=np.zeros((0, 2), np.int64),
        iou=np.zeros((0, 0)),
        pred_iou=np.zeros((0, 0), np.float32),
        pred_area=np.zeros((0, 0)),
        area=np.zeros(0),
        area_px=np.zeros(0),
    )


def _joined(tables: list[ClickTable]) -> ClickTable:
    if not tables:
        return empty_table()
    names = [field.name for field in dataclasses.fields(ClickTable)]
    return ClickTable(**{n: np.concatenate([getattr(t, n) for t in tables]) for n in names})


def _sorted(joined: ClickTable) -> ClickTable:
    """The rows in a canonical order."""
    if not len(joined):
        return joined
    keys = (joined.instance_id, joined.image_id.astype(str), joined.dataset.astype(str))
    return joined.select(np.lexsort(keys))


def _grouped(table: ClickTable, labels: np.ndarray) -> dict[str, dict[str, float]]:
    groups = {}
    for name in sorted(set(labels.tolist())):
        rows = labels == name
        groups[name] = {
            "iou_max": exact_mean(table.iou_max[rows]),
            "iou_oracle": exact_mean(table.iou_oracle[rows]),
            "count": int(rows.sum()),
        }
    return groups
