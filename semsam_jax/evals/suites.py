"""The suites of `semsam evaluate`: each measures, draws and returns table rows."""

import functools
from collections.abc import Callable, Mapping

import numpy as np

from semsam_jax.evals import gallery, plots, report
from semsam_jax.evals.baselines import evaluate_baseline
from semsam_jax.evals.box_prompt import BoxProtocol, evaluate_box_prompt
from semsam_jax.evals.class_suites import everything, generic, names, part
from semsam_jax.evals.continuous_suite import measure_continuous
from semsam_jax.evals.granularity import GranularityProtocol, evaluate_granularity
from semsam_jax.evals.interactive import InteractiveProtocol, evaluate_interactive
from semsam_jax.evals.levels import LevelCalibration
from semsam_jax.evals.one_click import OneClickResult, class_figures
from semsam_jax.evals.prompt_runner import PromptRunner
from semsam_jax.evals.proposals import evaluate_proposals
from semsam_jax.evals.report import TableRow
from semsam_jax.evals.samples import SIZE_NAMES, EvalSample
from semsam_jax.evals.suite_context import EvalContext, SuiteResult, prefixed
from semsam_jax.evals.tree_suite import TreeSamples, measure_trees
from semsam_jax.inference.loading import model_from_params
from semsam_jax.inference.mask_generator import MaskGenerator


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
    by_class = class_figures(result.table, context.class_names())
    return SuiteResult(rows, prefixed("one_click", result.scalars()), notes, by_class=by_class)


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
    return SuiteResult(rows, prefixed("box", result.scalars()))


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
        scalars |= prefixed(key, result.scalars())
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
        scalars |= prefixed(f"interactive_{choice}", result.scalars())
        for q, value in result.noc.items():
            note = f"clicks, lower is better; {result.failed[q]} never got there"
            rows.append(TableRow(f"NoC@{round(100 * q)}, {choice}", value, "", note))
        for k in (1, 3, 5):
            rows.append(TableRow(f"IoU@{k}, {choice}", 100 * float(result.iou_at[k - 1])))
    return SuiteResult(rows, scalars)


def continuous(context: EvalContext) -> SuiteResult:
    """Granularity between 0 and 1: at the ground truth, and the best of several tries."""
    result, rows, scalars, notes = measure_continuous(
        context.model,
        context.params,
        context.meta,
        context.clicked,
        context.prompts_per_call,
        context.eval_loop,
    )
    if context.draws and result.num_masks:
        plots.plot_continuous(context.out / "continuous.png", result)
    return SuiteResult(rows, scalars, notes)


def otq(context: EvalContext) -> SuiteResult:
    """Open Tree Quality of segment-everything's tree."""
    samples = TreeSamples(context.images.source, len(context.images))
    rows, scalars = measure_trees(
        context.params, context.meta, samples, context.points_per_side, context.eval_loop
    )
    notes = {
        "labels": "scored as equal or not: no sentence embeddings",
        "frame": "images are resized as segment-everything does by default",
    }
    return SuiteResult(rows, scalars, notes | context.grid)


def proposals(context: EvalContext) -> SuiteResult:
    """Average recall of all masks of an image, and their AP, without names."""
    generate = _proposal_maker(context.params, context.meta, context.points_per_side)
    result = evaluate_proposals(generate, context.whole, context.eval_loop)
    rows = [TableRow(f"AR@{count}", 100 * value) for count, value in result.ar.items()]
    rows += [TableRow(f"AR@1000 {name}", 100 * v) for name, v in result.ar_by_size.items()]
    rows.append(TableRow("mask AP, classes ignored", 100 * result.ap))
    return SuiteResult(rows, prefixed("proposals", result.scalars()), context.grid)


def baselines(context: EvalContext) -> SuiteResult:
    """Scores without a model, on the same clicks."""
    rows, scalars = [], {}
    for kind in ("blob", "superpixels"):
        result = evaluate_baseline(kind, context.clicked, context.eval_loop)
        rows += _click_rows(f"baseline {kind}, 1-click IoU", result, ("", ""))
        scalars |= prefixed(f"baseline_{kind}", result.scalars())
    return SuiteResult(rows, scalars)


SUITES: dict[str, Callable[[EvalContext], SuiteResult]] = {
    "one_click": one_click,
    "levels": levels,
    "box": box,
    "granularity": granularity,
    "interactive": interactive,
    "continuous": continuous,
    "generic": generic,
    "names": names,
    "part": part,
    "everything": everything,
    "proposals": proposals,
    "otq": otq,
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
    if result.num_skipped:
        note += f"; {result.num_skipped} crowd regions and masks without a pixel left out"
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
