"""The suites of `python -m semsam_jax evaluate`: each measures, draws and returns table rows."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from flax import linen as nn

from semsam_jax.evals import gallery, plots, report
from semsam_jax.evals.baselines import evaluate_baseline
from semsam_jax.evals.box_prompt import BoxProtocol, evaluate_box_prompt
from semsam_jax.evals.generic import ClassList, evaluate_generic
from semsam_jax.evals.granularity import GranularityProtocol, evaluate_granularity
from semsam_jax.evals.interactive import InteractiveProtocol, evaluate_interactive
from semsam_jax.evals.levels import calibrate_levels
from semsam_jax.evals.names import embed_classes, text_table
from semsam_jax.evals.one_click import OneClickResult, evaluate_one_click
from semsam_jax.evals.part_ap import PairVocabulary
from semsam_jax.evals.prompt_runner import PromptRunner
from semsam_jax.evals.proposals import evaluate_proposals
from semsam_jax.evals.report import Row
from semsam_jax.evals.samples import EvalSample

_LEFT_OUT = "left out, no embedding of the name"


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a suite works on.

    Attributes:
        model, params, meta: the checkpoint.
        click_samples: photos with masks on the canvas, anew on each call.
        photo_samples: photos with masks in the photo's frame, anew on each call.
        class_list: classes of the dataset with the names of objects and of parts.
        generate: all masks of an image, for `proposals`.
        out: folder for plots and tables.
        prompts_per_call: prompts decoded together.
        is_released: the checkpoint was converted from released weights.
    """

    model: nn.Module
    params: dict
    meta: Mapping
    click_samples: Callable[[], Iterator[EvalSample]]
    photo_samples: Callable[[], Iterator[EvalSample]]
    class_list: Callable[[], tuple[ClassList, list[str], list[str]]]
    generate: Callable[[EvalSample], tuple[list[dict], np.ndarray]]
    out: Path
    prompts_per_call: int
    is_released: bool


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a suite found.

    Attributes:
        rows: lines of the table.
        scalars: numbers for the JSON file.
        notes: head of the table.
        is_complete: False if classes had to be left out, so that no published figure fits.
    """

    rows: list[Row]
    scalars: dict[str, float]
    notes: dict[str, str] = dataclasses.field(default_factory=dict)
    is_complete: bool = True


def one_click(setting: Setting) -> Outcome:
    """1-click IoU with levels, reliability and a gallery."""
    result = evaluate_one_click(
        setting.model,
        setting.params,
        setting.click_samples(),
        prompts_per_call=setting.prompts_per_call,
    )
    notes = {}
    if len(result.table):
        levels = calibrate_levels(result.table)
        notes["level order (token of level 1..6)"] = str(list(levels.level_order))
        notes["Kendall tau of levels and areas"] = f"{levels.kendall_tau:.2f}"
        out = setting.out
        report.write_click_table(out / "one_click.csv", result.table)
        plots.plot_iou_by_size(out / "iou_by_size.png", result.table)
        plots.plot_levels(out / "levels.png", result.table, levels.level_order)
        plots.plot_reliability(out / "reliability.png", result.table)
        picked = np.concatenate(list(gallery.pick_rows(result.table).values()))
        wanted = {(result.table.dataset[row], result.table.image_id[row]) for row in picked}
        samples = {
            (s.dataset, s.image_id): s
            for s in setting.click_samples()
            if (s.dataset, s.image_id) in wanted
        }
        runner = PromptRunner(setting.model, setting.params, prompts_per_call=1)
        gallery.draw_gallery(out / "gallery.png", runner, samples, result.table)
    rows = _click_rows("1-click IoU", result, ("54.5 (T), 57.0 (L)", "73.8 (T), 74.2 (L)"))
    return Outcome(rows, _prefixed("one_click", result.scalars()), notes)


def box(setting: Setting) -> Outcome:
    """Box-prompt IoU."""
    result = evaluate_box_prompt(
        setting.model,
        setting.params,
        setting.click_samples(),
        prompts_per_call=setting.prompts_per_call,
        protocol=BoxProtocol(box_type=0 if setting.is_released else 1),
    )
    rows = _click_rows("box prompt IoU", result, ("76.1 (T)", ""))
    return Outcome(rows, _prefixed("box", result.scalars()))


def granularity(setting: Setting) -> Outcome:
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
            setting.model,
            setting.params,
            setting.click_samples(),
            prompts_per_call=setting.prompts_per_call,
            protocol=GranularityProtocol(**options),
        )
        note = f"{result.num_pairs} of {result.num_targets} masks matched"
        rows.append(
            Row(f"1-IoU@all granularity, {name}", 100 * result.iou_matched, published, note)
        )
        scalars |= _prefixed(key, result.scalars())
    rows.append(Row("the same, unmatched masks count 0", scalars["granularity/iou_full"]))
    return Outcome(rows, scalars)


def interactive(setting: Setting) -> Outcome:
    """Number of clicks and IoU after k clicks."""
    rows, scalars = [], {}
    for choice in ("predicted", "oracle"):
        result = evaluate_interactive(
            setting.model,
            setting.params,
            setting.click_samples(),
            prompts_per_call=setting.prompts_per_call,
            protocol=InteractiveProtocol(choice=choice),
        )
        if choice == "predicted" and result.num_instances:
            plots.plot_clicks(setting.out / "clicks.png", result)
        scalars |= _prefixed(f"interactive_{choice}", result.scalars())
        for q, value in result.noc.items():
            note = f"clicks, lower is better; {result.failed[q]} never got there"
            rows.append(Row(f"NoC@{round(100 * q)}, {choice}", value, "", note))
        for k in (1, 3, 5):
            rows.append(Row(f"IoU@{k}, {choice}", 100 * float(result.iou_at[k - 1])))
    return Outcome(rows, scalars)


def generic(setting: Setting) -> Outcome:
    """PQ, mIoU, mask and box AP with the dataset's own names."""
    classes, object_names, _ = setting.class_list()
    classes, text, names, notes = _with_text(setting, classes, object_names, [])
    result = evaluate_generic(setting.model, setting.params, text, setting.photo_samples(), classes)
    if result.panoptic.by_class:
        plots.plot_class_quality(setting.out / "pq_by_class.png", result.panoptic, names)
    plots.plot_precision_recall(setting.out / "precision_recall.png", result.mask_ap, names)
    panoptic = result.panoptic
    rows = [
        Row("PQ", 100 * panoptic.all["pq"], "54.6 (T, COCO), 55.2 (T, +SA-1B)"),
        Row("PQ things", 100 * panoptic.things["pq"]),
        Row("PQ stuff", 100 * panoptic.stuff["pq"]),
        Row("SQ", 100 * panoptic.all["sq"]),
        Row("RQ", 100 * panoptic.all["rq"]),
        Row("mIoU", 100 * result.semantic.miou),
        Row("mask AP", 100 * result.mask_ap.ap, "46.1 (T, COCO), 47.4 (T, +SA-1B)"),
        Row("box AP", 100 * result.box_ap.ap, "50.1 (T, COCO), 52.3 (T, +SA-1B)"),
    ]
    return Outcome(rows, _prefixed("generic", result.scalars()), notes, _LEFT_OUT not in notes)


def part(setting: Setting) -> Outcome:
    """AP of parts as pairs of object and part."""
    classes, object_names, part_names = setting.class_list()
    classes, text, _, notes = _with_text(setting, classes, object_names, part_names)
    result = evaluate_generic(
        setting.model, setting.params, text, setting.photo_samples(), classes, tasks=("part",)
    )
    mask_ap, box_ap = result.part_mask_ap, result.part_box_ap
    rows = [
        Row("part box AP", 100 * box_ap.ap, "27.0 (T), 28.0 (T, +SA-1B)", "PASCAL Part"),
        Row("part mask AP", 100 * mask_ap.ap, "30.5 (T), 31.4 (T, +SA-1B)", "PASCAL Part"),
        Row("part mask AP50", 100 * mask_ap.ap50),
    ]
    return Outcome(rows, _prefixed("part", result.scalars()), notes, _LEFT_OUT not in notes)


def proposals(setting: Setting) -> Outcome:
    """Average recall of all masks of an image."""
    result = evaluate_proposals(setting.generate, setting.click_samples())
    rows = [Row(f"AR@{count}", 100 * value) for count, value in result.ar.items()]
    rows += [Row(f"AR@1000 {name}", 100 * v) for name, v in result.ar_by_size.items()]
    return Outcome(rows, _prefixed("proposals", result.scalars()))


def baselines(setting: Setting) -> Outcome:
    """What a click scores without a model, on the same clicks."""
    rows, scalars = [], {}
    for kind in ("blob", "superpixels"):
        result = evaluate_baseline(kind, setting.click_samples())
        rows += _click_rows(f"baseline {kind}, 1-click IoU", result, ("", ""))
        scalars |= _prefixed(f"baseline_{kind}", result.scalars())
    return Outcome(rows, scalars)


SUITES: dict[str, Callable[[Setting], Outcome]] = {
    "one_click": one_click,
    "box": box,
    "granularity": granularity,
    "interactive": interactive,
    "generic": generic,
    "part": part,
    "proposals": proposals,
    "baselines": baselines,
}


def _click_rows(name: str, result: OneClickResult, published: tuple[str, str]) -> list[Row]:
    note = f"{result.num_instances} masks of {result.num_images} photos"
    rows = [
        Row(f"{name}, Max", 100 * result.iou_max, published[0], note),
        Row(f"{name}, Oracle", 100 * result.iou_oracle, published[1], note),
    ]
    for size, group in result.by_size.items():
        count = f"{group['count']} masks"
        rows.append(Row(f"{name}, Max, {size}", 100 * group["iou_max"], "", count))
    return rows


def _with_text(
    setting: Setting, classes: ClassList, object_names: list[str], part_names: list[str]
):
    """Embeds the names; classes whose name has no embedding are left out and told."""
    names = object_names + part_names
    rows, found = embed_classes(setting.model, setting.params, setting.meta, names)
    num_objects = len(object_names)
    keep, keep_parts = np.flatnonzero(found[:num_objects]), np.flatnonzero(found[num_objects:])
    pairs = classes.pairs
    if pairs is not None and part_names:
        kept = np.isin(pairs.objects, keep) & np.isin(pairs.parts, keep_parts)
        pairs = PairVocabulary(
            np.searchsorted(keep, pairs.objects[kept]),
            np.searchsorted(keep_parts, pairs.parts[kept]),
        )
    has_parts = bool(part_names)
    reduced = ClassList(
        object_ids=classes.object_ids[keep],
        is_thing=classes.is_thing[keep],
        part_ids=classes.part_ids[keep_parts] if has_parts else np.zeros(0, np.int64),
        pairs=pairs if has_parts else None,
    )
    left_out = [name for name, is_found in zip(names, found, strict=True) if not is_found]
    notes = {"classes": f"{len(keep)} of {num_objects} objects"}
    if part_names:
        notes["classes"] += f", {len(keep_parts)} of {len(part_names)} parts"
    if left_out:
        notes[_LEFT_OUT] = ", ".join(left_out)
    return reduced, text_table(rows[found], len(keep)), [object_names[i] for i in keep], notes


def _prefixed(prefix: str, scalars: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in scalars.items()}
