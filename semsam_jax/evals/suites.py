"""The suites of `semsam evaluate`: each measures, draws and returns table rows."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from flax import linen as nn

from semsam_jax.evals import gallery, plots, report
from semsam_jax.evals.baselines import evaluate_baseline
from semsam_jax.evals.box_prompt import BoxProtocol, evaluate_box_prompt
from semsam_jax.evals.class_embeddings import KnownClasses, known_classes
from semsam_jax.evals.dataset_samples import ImageSet
from semsam_jax.evals.eval_loop import EvalLoop
from semsam_jax.evals.generic import evaluate_generic
from semsam_jax.evals.granularity import GranularityProtocol, evaluate_granularity
from semsam_jax.evals.interactive import InteractiveProtocol, evaluate_interactive
from semsam_jax.evals.levels import LevelCalibration, calibrate_levels
from semsam_jax.evals.naming import evaluate_names
from semsam_jax.evals.one_click import OneClickResult, evaluate_one_click
from semsam_jax.evals.part_ap import ClassList
from semsam_jax.evals.prompt_runner import PromptRunner
from semsam_jax.evals.proposals import evaluate_proposals
from semsam_jax.evals.report import TableRow
from semsam_jax.evals.samples import SIZE_NAMES, EvalSample
from semsam_jax.inference.loading import model_from_params
from semsam_jax.inference.mask_generator import MaskGenerator


@dataclasses.dataclass
class EvalContext:
    """Input of a suite.

    Attributes:
        model, params, meta: the checkpoint.
        clicked: images with masks for prompts, in the frame that is scored.
        images: images with masks in the stored image's pixels.
        whole: images with masks on the canvas.
        class_list: classes of the dataset with the names of objects and of parts.
        eval_loop: devices, processes, records and progress.
        out: folder for pictures and the table of clicks; None draws nothing.
        prompts_per_call: prompts decoded together.
        points_per_side: grid of `proposals`.
    """

    model: nn.Module
    params: dict
    meta: Mapping
    clicked: ImageSet
    images: ImageSet
    whole: ImageSet
    class_list: Callable[[], tuple[ClassList, list[str], list[str]]]
    eval_loop: EvalLoop
    out: Path | None = None
    prompts_per_call: int = 16
    points_per_side: int = 32

    @functools.cached_property
    def clicks(self) -> OneClickResult:
        """One click per mask; measured once for all suites."""
        return evaluate_one_click(
            self.model,
            self.params,
            self.clicked,
            prompts_per_call=self.prompts_per_call,
            eval_loop=self.eval_loop,
        )

    def levels(self) -> LevelCalibration:
        """The levels measured from the clicks."""
        return calibrate_levels(self.clicks.table)

    @property
    def draws(self) -> bool:
        """Whether this process draws the pictures."""
        return self.out is not None and jax.process_index() == 0

    @property
    def is_released(self) -> bool:
        """Whether the checkpoint was converted from released weights."""
        return self.meta.get("prompt_preset") == "released_v1"


@dataclasses.dataclass(frozen=True)
class SuiteResult:
    """Result of a suite.

    Attributes:
        rows: lines of the table.
        scalars: numbers for the JSON file.
        notes: head of the table.
        is_complete: False if classes had to be left out, so that no published figure fits.
        by_class: name of a class -> its figures in percent, without those that do not exist.
    """

    rows: list[TableRow]
    scalars: dict[str, float]
    notes: dict[str, str] = dataclasses.field(default_factory=dict)
    is_complete: bool = True
    by_class: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)


def one_click(context: EvalContext) -> SuiteResult:
    """1-click IoU with levels, reliability and a gallery."""
    result = context.clicks
    notes = {}
    if len(result.table):
        order = context.levels().level_order
        notes = _level_notes(context.levels())
        if context.draws:
            out, table = context.out, result.table
            report.write_click_table(out / "one_click.csv", table)
            plots.plot_iou_by_size(out / "iou_by_size.png", table)
            plots.plot_levels(out / "levels.png", table, order)
            plots.plot_reliability(out / "reliability.png", table)
            picked = np.concatenate(list(gallery.pick_rows(table).values()))
            wanted = set(table.image_id[picked].tolist())
            samples = {(s.dataset, s.image_id): s for s in context.clicked.named(wanted)}
            runner = PromptRunner(context.model, context.params, prompts_per_call=1)
            gallery.draw_gallery(out / "gallery.png", runner, samples, table)
    rows = _click_rows("1-click IoU", result, ("54.5 (T), 57.0 (L)", "73.8 (T), 74.2 (L)"))
    return SuiteResult(rows, _prefixed("one_click", result.scalars()), notes)


def levels(context: EvalContext) -> SuiteResult:
    """Which token is which level, and how well the levels are ordered by size."""
    found, result = context.levels(), context.clicks
    rows, scalars = [], {"levels/kendall_tau": found.kendall_tau}
    for level, token in enumerate(found.level_order, start=1):
        area, iou = 100 * found.mean_area[token], 100 * float(result.token_iou[token])
        rows.append(
            TableRow(f"level {level}, mean mask area, % of the image", area, "", f"token {token}")
        )
        rows.append(TableRow(f"level {level}, mean IoU", iou))
        scalars[f"levels/area/{level}"] = area
        scalars[f"levels/iou/{level}"] = iou
        for size, shares in found.coverage.items():
            best = 100 * float(shares[level - 1])
            rows.append(TableRow(f"level {level} is the best for {size} masks, %", best))
            scalars[f"levels/best/{level}/{size}"] = best
    rows.append(TableRow("Kendall tau x 100", 100 * found.kendall_tau, "", "100: always ordered"))
    if context.draws:
        plots.plot_levels(context.out / "levels.png", result.table, found.level_order)
    return SuiteResult(rows, scalars, _level_notes(found))


def _level_notes(found: LevelCalibration) -> dict[str, str]:
    return {
        "level order (token of level 1..6)": str(list(found.level_order)),
        "Kendall tau of levels and areas": f"{found.kendall_tau:.2f}, {found.num_clicks} clicks",
    }


def box(context: EvalContext) -> SuiteResult:
    """Box-prompt IoU."""
    result = evaluate_box_prompt(
        context.model,
        context.params,
        context.clicked,
        prompts_per_call=context.prompts_per_call,
        eval_loop=context.eval_loop,
        protocol=BoxProtocol(box_type=0 if context.is_released else 1),
    )
    rows = _click_rows("box prompt IoU", result, ("76.1 (T)", ""))
    return SuiteResult(rows, _prefixed("box", result.scalars()))


def granularity(context: EvalContext) -> SuiteResult:
    """1-IoU at all granularities: all outputs, three outputs, and three outputs of two clicks."""
    variants = (
        ("all outputs", "granularity", {}, "88.1 (T), 89.0 (L)"),
        ("3 outputs", "granularity_3", {"outputs_per_click": 3}, "83.5 (SAM-H)"),
        (
            "3 outputs, 2 clicks",
            "granularity_3x2",
            {"outputs_per_click": 3, "clicks_per_mask": 2},
            "86.5 (SAM-H)",
        ),
    )
    rows, scalars = [], {}
    for name, key, options, published in variants:
        result = evaluate_granularity(
            context.model,
            context.params,
            context.clicked,
            prompts_per_call=context.prompts_per_call,
            protocol=GranularityProtocol(**options),
            eval_loop=context.eval_loop,
            name=key,
        )
        note = f"{result.num_pairs} of {result.num_targets} masks matched"
        rows.append(
            TableRow(f"1-IoU@all granularity, {name}", 100 * result.iou_matched, published, note)
        )
        scalars |= _prefixed(key, result.scalars())
    rows.append(TableRow("the same, unmatched masks count 0", scalars["granularity/iou_full"]))
    return SuiteResult(rows, scalars)


def interactive(context: EvalContext) -> SuiteResult:
    """Number of clicks and IoU after k clicks."""
    rows, scalars = [], {}
    for choice in ("predicted", "oracle"):
        result = evaluate_interactive(
            context.model,
            context.params,
            context.clicked,
            prompts_per_call=context.prompts_per_call,
            protocol=InteractiveProtocol(choice=choice),
            eval_loop=context.eval_loop,
            name=f"interactive_{choice}",
        )
        if choice == "predicted" and result.num_instances and context.draws:
            plots.plot_clicks(context.out / "clicks.png", result)
        scalars |= _prefixed(f"interactive_{choice}", result.scalars())
        for q, value in result.noc.items():
            note = f"clicks, lower is better; {result.failed[q]} never got there"
            rows.append(TableRow(f"NoC@{round(100 * q)}, {choice}", value, "", note))
        for k in (1, 3, 5):
            rows.append(TableRow(f"IoU@{k}, {choice}", 100 * float(result.iou_at[k - 1])))
    return SuiteResult(rows, scalars)


def generic(context: EvalContext) -> SuiteResult:
    """PQ, mIoU, mask and box AP with the dataset's own names."""
    classes, object_names, _ = context.class_list()
    found = _with_text(context, classes, object_names, [])
    if not found.names:
        return _nothing_known(found)
    names = found.names
    result = evaluate_generic(
        context.model,
        context.params,
        found.text,
        context.images,
        found.classes,
        eval_loop=context.eval_loop,
    )
    if context.draws:
        if result.panoptic.by_class:
            plots.plot_class_quality(context.out / "pq_by_class.png", result.panoptic, names)
        plots.plot_precision_recall(context.out / "precision_recall.png", result.mask_ap, names)
    panoptic = result.panoptic
    rows = [
        TableRow("PQ", 100 * panoptic.all["pq"], "54.6 (T, COCO), 55.2 (T, +SA-1B)"),
        TableRow("PQ things", 100 * panoptic.things["pq"]),
        TableRow("PQ stuff", 100 * panoptic.stuff["pq"]),
        TableRow("SQ", 100 * panoptic.all["sq"]),
        TableRow("RQ", 100 * panoptic.all["rq"]),
        TableRow("mIoU", 100 * result.semantic.miou),
        TableRow("mask AP", 100 * result.mask_ap.ap, "46.1 (T, COCO), 47.4 (T, +SA-1B)"),
        TableRow("box AP", 100 * result.box_ap.ap, "50.1 (T, COCO), 52.3 (T, +SA-1B)"),
    ]
    return SuiteResult(
        rows,
        _prefixed("generic", result.scalars()),
        found.notes,
        found.is_complete,
        _by_class(names, ap=result.mask_ap.class_ap, ap50=result.mask_ap.class_ap50),
    )


def names(context: EvalContext) -> SuiteResult:
    """How often the best name of a clicked mask is right, among the dataset's own names."""
    classes, object_names, part_names = context.class_list()
    found = _with_text(context, classes, object_names, part_names)
    if not found.names:
        return _nothing_known(found)
    result = evaluate_names(
        context.model,
        context.params,
        found.text,
        context.clicked,
        found.classes,
        found.names,
        prompts_per_call=context.prompts_per_call,
        eval_loop=context.eval_loop,
    )
    note = f"{result.total.sum()} masks, {len(found.names)} names"
    rows = [TableRow("name accuracy of clicks, %", 100 * result.accuracy, "", note)]
    return SuiteResult(
        rows,
        _prefixed("names", result.scalars()),
        found.notes,
        found.is_complete,
        _by_class(found.names, name_accuracy=result.class_accuracy),
    )


def part(context: EvalContext) -> SuiteResult:
    """AP of parts as pairs of object and part."""
    classes, object_names, part_names = context.class_list()
    found = _with_text(context, classes, object_names, part_names)
    notes = found.notes
    result = evaluate_generic(
        context.model,
        context.params,
        found.text,
        context.images,
        found.classes,
        tasks=("part",),
        eval_loop=context.eval_loop,
        name="part",
    )
    mask_ap, box_ap = result.part_mask_ap, result.part_box_ap
    if not mask_ap.num_truths:
        notes["nothing to score"] = "no human-made masks of parts among these images"
    rows = [
        TableRow("part box AP", 100 * box_ap.ap, "27.0 (T), 28.0 (T, +SA-1B)"),
        TableRow("part mask AP", 100 * mask_ap.ap, "30.5 (T), 31.4 (T, +SA-1B)"),
        TableRow("part mask AP50", 100 * mask_ap.ap50),
    ]
    return SuiteResult(rows, _prefixed("part", result.scalars()), notes, found.is_complete)


def proposals(context: EvalContext) -> SuiteResult:
    """Average recall of all masks of an image, and their AP, without names."""
    generate = _proposal_maker(context.params, context.meta, context.points_per_side)
    result = evaluate_proposals(generate, context.whole, context.eval_loop)
    rows = [TableRow(f"AR@{count}", 100 * value) for count, value in result.ar.items()]
    rows += [TableRow(f"AR@1000 {name}", 100 * v) for name, v in result.ar_by_size.items()]
    rows.append(TableRow("mask AP, classes ignored", 100 * result.ap))
    return SuiteResult(rows, _prefixed("proposals", result.scalars()))


def baselines(context: EvalContext) -> SuiteResult:
    """Scores without a model, on the same clicks."""
    rows, scalars = [], {}
    for kind in ("blob", "superpixels"):
        result = evaluate_baseline(kind, context.clicked, context.eval_loop)
        rows += _click_rows(f"baseline {kind}, 1-click IoU", result, ("", ""))
        scalars |= _prefixed(f"baseline_{kind}", result.scalars())
    return SuiteResult(rows, scalars)


SUITES: dict[str, Callable[[EvalContext], SuiteResult]] = {
    "one_click": one_click,
    "levels": levels,
    "box": box,
    "granularity": granularity,
    "interactive": interactive,
    "generic": generic,
    "names": names,
    "part": part,
    "proposals": proposals,
    "baselines": baselines,
}


def _proposal_maker(
    params: dict, meta: Mapping, points_per_side: int
) -> Callable[[EvalSample], tuple[list[dict], np.ndarray]]:
    """All masks of the valid part of the canvas, from the mask generator of the inference.

    The quality filters are off and more overlapping masks are kept, since recall at 1,000 needs
    many candidates in the right order (SAM's protocol for proposals).
    """

    @functools.cache
    def generator() -> MaskGenerator:
        return MaskGenerator(
            model_from_params(params, meta),
            points_per_side=points_per_side,
            pred_iou_thresh=0.0,
            stability_score_thresh=0.0,
            box_nms_thresh=0.9,
            output_mode="coco_rle",
            size="native",
        )

    def generate(sample: EvalSample) -> tuple[list[dict], np.ndarray]:
        h, w = sample.size_hw
        records = generator().generate(sample.image[:h, :w])
        scores = [r["predicted_iou"] + r["stability_score"] for r in records]
        return [r["segmentation"] for r in records], np.asarray(scores, np.float64)

    return generate


def _click_rows(name: str, result: OneClickResult, published: tuple[str, str]) -> list[TableRow]:
    note = f"{result.num_instances} masks of {result.num_images} images"
    rows = [
        TableRow(f"{name}, Max", 100 * result.iou_max, published[0], note),
        TableRow(f"{name}, Oracle", 100 * result.iou_oracle, published[1], note),
    ]
    for size in SIZE_NAMES:
        if size in result.by_size:
            group = result.by_size[size]
            count = f"{group['count']} masks"
            rows.append(TableRow(f"{name}, Max, {size}", 100 * group["iou_max"], "", count))
    return rows


def _with_text(
    context: EvalContext, classes: ClassList, object_names: list[str], part_names: list[str]
) -> KnownClasses:
    return known_classes(
        context.model, context.params, context.meta, classes, object_names, part_names
    )


def _nothing_known(found: KnownClasses) -> SuiteResult:
    """Without a name that has an embedding there is nothing to score."""
    return SuiteResult([], {}, found.notes, is_complete=False)


def _by_class(names: Sequence[str], **figures: np.ndarray) -> dict[str, dict[str, float]]:
    """Figures in 0..1 of each class, as percent; what is nan is left out."""
    table: dict[str, dict[str, float]] = {}
    for key, values in figures.items():
        for name, value in zip(names, values.tolist(), strict=True):
            if not np.isnan(value):
                table.setdefault(name, {})[key] = 100 * value
    return table


def _prefixed(prefix: str, scalars: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in scalars.items()}
