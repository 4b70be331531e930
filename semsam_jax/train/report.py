"""Messages at the start and the end of a run."""

from pathlib import Path

import jax

from semsam_jax.config import RunConfig
from semsam_jax.train.hooks import Clock, NonFiniteWatch
from semsam_jax.train.input import data_name
from semsam_jax.train.writers import format_duration


def log_info(text: str) -> None:
    """Prints on process 0 only."""
    if jax.process_index() == 0:
        print(text, flush=True)


def log_start(run: RunConfig, mixture_text: str, num_eval: int, mesh, workdir: Path) -> None:
    """Prints the preset and the data of the run, and how to get the real datasets."""
    log_info(
        f"semsam_jax: preset {run.model.preset}, {run.steps} steps of "
        f"{run.data.interactive_batch} interactive + {run.data.generic_batch} generic images at "
        f"{run.data.image_size} px, {dict(mesh.shape)} x {jax.devices()[0].platform}, "
        f"{run.model.dtype}; workdir {workdir}"
    )
    if run.data.root or run.data.custom:
        log_info(f"data: {data_name(run)}")
    else:
        log_info(
            "data: the embedded sample (about a hundred images in all seven formats; part labels "
            "are stand-ins or machine-made).\n"
            "  The real datasets: data_pipelines/README.md says what to download, docs/recipes.md "
            "where the weights come from; then, as the first of two stages,\n"
            "  python -m semsam_jax.main --config=configs/sa1b.py:swin_t --config.data.root=DIR "
            "--config.model.backbone_weights=FILE --workdir=DIR"
        )
    if num_eval:
        log_info(f"evaluation: {num_eval} held-out images, one click per instance")
    log_info(mixture_text)


def summarize(
    run: RunConfig, clock: Clock, totals: dict, watch: NonFiniteWatch, meta: dict
) -> dict:
    """Collects the summary of a finished run; IoU figures are fractions."""
    first_step = clock.first_step_sec
    before, after = meta.get("before") or {}, meta.get("after") or {}
    return {
        "preset": run.model.preset,
        "data": data_name(run),
        "steps": run.steps,
        "seconds": round(clock.elapsed(), 1),
        "seconds_to_first_step": first_step and round(first_step, 1),
        "images_per_sec": round(totals["images_per_sec"], 2),
        "loss_first": (watch.first or {}).get("loss"),
        "loss_last": watch.last.get("loss"),
        "one_click_iou_max_before": before.get("iou_max"),
        "one_click_iou_max_after": after.get("iou_max"),
        "one_click_iou_oracle_before": before.get("iou_oracle"),
        "one_click_iou_oracle_after": after.get("iou_oracle"),
        "host_matching_share": round(totals["host_matching_share"], 4),
        "input_wait_share": round(totals["input_wait_share"], 4),
    }


def log_summary(summary: dict, workdir: Path) -> None:
    """Prints the summary as a short table and what to do next."""
    log_info(f"\ndone in {format_duration(summary['seconds'])}:")
    for key, value in summary.items():
        shown = f"{value:.4g}" if isinstance(value, float) else value
        log_info(f"  {key:<28} {shown}")
    log_info(
        f"figures: {workdir}/predictions.png\n"
        f"try it: semsam segment IMAGE --checkpoint {workdir} --point X,Y"
    )
