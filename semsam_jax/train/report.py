"""Messages at the start and the end of a run."""

import dataclasses
import json
from collections.abc import Mapping

import jax
import numpy as np
from clu import parameter_overview
from flax import traverse_util
from jax.sharding import Mesh

from semsam_jax.config import LossChoice, RunConfig
from semsam_jax.core.paths import AnyPath
from semsam_jax.evals.dataset_samples import EvalDataset
from semsam_jax.evals.report import class_cells
from semsam_jax.train.best import BestCheckpoint
from semsam_jax.train.hooks import Clock, NonFiniteWatch
from semsam_jax.train.input import Input, data_name
from semsam_jax.train.writers import format_duration

_NAMED = {"mask_ap": "mask AP", "mask_ap50": "AP50", "name_accuracy": "name accuracy"}
_MAX_CLASSES = 20
"""A longer list of classes is in summary.json only."""


def log_info(text: str, end: str = "\n") -> None:
    """Prints on process 0 only."""
    if jax.process_index() == 0:
        print(text, end=end, flush=True)


def log_start(
    run: RunConfig, data: Input, held_out: EvalDataset | None, mesh: Mesh, workdir: AnyPath
) -> None:
    """Prints the preset and the data of the run, and how to get the real datasets."""
    log_info(
        f"semsam_jax: preset {run.model.preset}, {run.steps} steps of "
        f"{run.data.interactive_batch} interactive + {run.data.generic_batch} generic images at "
        f"{run.data.image_size} px, {run.model.dtype}, on {mesh.size} "
        f"{jax.devices()[0].platform} device{'s' if mesh.size > 1 else ''} "
        f"({', '.join(f'{axis} {size}' for axis, size in mesh.shape.items())}); workdir {workdir}"
    )
    if run.data.root or run.data.custom:
        log_info(f"data: {data_name(run)}")
    else:
        log_info(
            "data: the embedded sample (about a hundred images in all seven formats; part labels "
            "are stand-ins or machine-made).\n"
            "  To train on the real datasets, see data_pipelines/README.md for downloads and "
            "docs/recipes.md for pretrained weights. The first of two stages is\n"
            "  semsam train --config=configs/sa1b.py:swin_t --data.root=DIR "
            "--config.model.backbone_weights=FILE --workdir=DIR"
        )
    if held_out is not None:
        count = len(held_out.samples())
        log_info(f"evaluation: {count} held-out images, one click per instance")
    elif run.keep_best:
        log_info("evaluation: none (eval_images=0), so keep_best=True keeps no model in best/")
    log_info(data.text)
    held_out_notes = [] if held_out is None else held_out.notes
    for note in (*data.notes, *(f"evaluation, {note}" for note in held_out_notes)):
        log_info(note)


def log_inherited_loss(asked: LossChoice, loss: LossChoice) -> None:
    """Prints what a checkpoint decided of the loss: a key that was set to its default, too."""
    keys = [field.name for field in dataclasses.fields(loss) if field.name != "from_checkpoint"]
    taken = [f"{key}={new}" for key in keys if (new := getattr(loss, key)) != getattr(asked, key)]
    if taken:
        log_info(
            f"loss as the checkpoint was trained: {', '.join(taken)} "
            f"(not with --config.loss.from_checkpoint=False)"
        )


def log_evaluation(step: int, found: Mapping, is_best: bool) -> None:
    """Prints the scores of an evaluation, also per class if there are few classes."""
    words = [
        f"one-click IoU {found['iou_max']:.4f}, best of the masks {found['iou_oracle']:.4f}",
        *(f"{text} {found[key]:.4f}" for key, text in _NAMED.items() if key in found),
    ]
    log_info(
        f"step {step}: {', '.join(words)} ({found['num_instances']} instances)"
        f"{', new best' if is_best else ''}"
    )
    classes = found.get("classes", {})
    if 0 < len(classes) <= _MAX_CLASSES:
        log_info(class_table(classes))


def class_table(classes: Mapping[str, Mapping[str, float]]) -> str:
    """The scores of each class (`evals.report.CLASS_FIGURES`) as lines of text, in percent."""
    cells = class_cells(classes)
    cells[0][0] += " (%)"
    width = max(len(row[0]) for row in cells)
    return "\n".join(
        f"  {row[0]:<{width}}" + "".join(f"{cell:>12}" for cell in row[1:]) for row in cells
    )


def config_text(run: RunConfig) -> str:
    """Every key of a run as `--config.KEY=VALUE` has it, a line each."""
    flat = traverse_util.flatten_dict(run.to_dict(), sep=".")
    return "\n".join(f"{key} = {value!r}" for key, value in flat.items())


def write_overviews(workdir: AnyPath, run: RunConfig, params: Mapping, mixture_text: str) -> None:
    """Writes parameters.txt, mixture.txt and config.txt."""
    if jax.process_index() != 0:
        return
    shapes = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), params)
    overview = parameter_overview.get_parameter_overview(shapes, include_stats=False)
    for name, text in (
        ("parameters.txt", overview),
        ("mixture.txt", mixture_text),
        ("config.txt", config_text(run)),
    ):
        (workdir / name).write_text(text + "\n")


def measured(
    clock: Clock, totals: Mapping[str, float], watch: NonFiniteWatch, earlier: Mapping
) -> dict:
    """Measurements so far, including earlier parts of an interrupted run.

    Args:
        clock: of this part.
        totals: rates of this part, empty before its second step.
        watch: losses of this part.
        earlier: the result of this function in the checkpoint that this part resumed from; empty
            for a fresh run.
    """
    first = (watch.first or {}).get("loss")
    return {
        "seconds": earlier.get("seconds", 0.0) + clock.elapsed(),
        "seconds_to_first_step": earlier.get("seconds_to_first_step") or clock.first_step_sec,
        "loss_first": first if earlier.get("loss_first") is None else earlier["loss_first"],
        "loss_last": watch.last.get("loss", earlier.get("loss_last")),
        "skipped_steps": earlier.get("skipped_steps", 0) + watch.num_skipped,
        **{key: totals.get(key, earlier.get(key)) for key in _RATES},
    }


_RATES = ("images_per_sec", "host_matching_share", "input_wait_share")


def summarize(run: RunConfig, meta: Mapping, best: BestCheckpoint) -> dict:
    """Collects the summary of a finished run; IoU figures are fractions.

    Args:
        run: the run.
        meta: with `measured`, and `before` and `after` of its evaluations.
        best: the best model that was kept.
    """
    totals, before, after = meta["measured"], meta.get("before") or {}, meta.get("after") or {}
    return {
        "preset": run.model.preset,
        "data": data_name(run),
        "steps": run.steps,
        "seconds": round(totals["seconds"], 1),
        "seconds_to_first_step": _rounded(totals["seconds_to_first_step"], 1),
        "images_per_sec": _rounded(totals["images_per_sec"], 2),
        "loss_first": totals["loss_first"],
        "loss_last": totals["loss_last"],
        "one_click_iou_max_before": before.get("iou_max"),
        "one_click_iou_max_after": after.get("iou_max"),
        "one_click_iou_oracle_before": before.get("iou_oracle"),
        "one_click_iou_oracle_after": after.get("iou_oracle"),
        **{
            f"{key}_{when}": found[key]
            for key in _NAMED
            for when, found in (("before", before), ("after", after))
            if key in found
        },
        **({} if best.score is None else _of_best(best, run.steps)),
        "host_matching_share": _rounded(totals["host_matching_share"], 4),
        "input_wait_share": _rounded(totals["input_wait_share"], 4),
        "skipped_steps": totals["skipped_steps"],
        **({"classes": after["classes"]} if after.get("classes") else {}),
    }


def _of_best(best: BestCheckpoint, last_step: int) -> dict:
    found = best.evaluation
    figures = {f"{key}_best": found[key] for key in _NAMED if key in found}
    if best.step < last_step and found.get("classes"):
        figures["classes_best"] = found["classes"]
    return {"one_click_iou_max_best": best.score, "best_step": best.step} | figures


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def finished_summary(workdir: AnyPath) -> dict | None:
    """The summary of a finished run; None if there is none."""
    try:
        return json.loads((workdir / "summary.json").read_text())
    except (OSError, ValueError):
        return None


def log_summary(summary: Mapping, workdir: AnyPath, best: BestCheckpoint) -> None:
    """Prints the summary as a short table and what to do next."""
    log_info(f"\ndone in {format_duration(summary['seconds'])}:")
    for key, value in summary.items():
        if isinstance(value, Mapping):
            continue
        shown = f"{value:.4g}" if isinstance(value, float) else value
        log_info(f"  {key:<28} {shown}")
    after = summary.get("one_click_iou_max_after")
    is_best_earlier = best.score is not None and (after is None or best.score > after)
    model = best.folder if is_best_earlier else workdir
    why = f"  (the best model, of step {best.step})" if is_best_earlier else ""
    if is_best_earlier and best.step == 0:
        why = "  (the model that the run started from: training did not improve its one-click IoU)"
    classes = summary.get("classes_best" if is_best_earlier else "classes") or {}
    if classes:
        log_info(f"scores by class of {model}:")
        is_long = len(classes) > _MAX_CLASSES
        log_info(f"  {len(classes)}, see summary.json" if is_long else class_table(classes))
    log_info(
        f"figures: {workdir}/predictions.png\n"
        f"try it: semsam segment IMAGE --checkpoint {model} --point X,Y{why}"
    )
