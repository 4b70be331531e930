"""What a run leaves in WORKDIR besides its checkpoints: best model, pictures, model and summary."""

import json
import shutil
from collections.abc import Sequence

import jax
from jax.experimental import multihost_utils

from semsam_jax.core import checkpoint_io
from semsam_jax.core.model_files import save_model
from semsam_jax.core.paths import AnyPath, is_local
from semsam_jax.evals.samples import EvalSample
from semsam_jax.evals.thresholds import with_stored
from semsam_jax.train import figures, report
from semsam_jax.train.best import BestCheckpoint
from semsam_jax.train.evaluation import HeldOutEvaluation
from semsam_jax.train.state import TrainState
from semsam_jax.train.writers import MetricWriter

_SUMMARY = "summary.json"


def set_aside(workdir: AnyPath) -> str:
    """Renames model and summary of an earlier run, which a new run would be taken for.

    All processes call it, once they have read the model that the run starts from.

    Returns:
        What was renamed, a line each; "" for nothing.
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("the start has been read")
    if jax.process_index() != 0:
        return ""
    said = ""
    for name in (checkpoint_io.MODEL, _SUMMARY):
        file = workdir / name
        if not file.exists():
            continue
        aside = file.with_name(f"{file.stem}-earlier{file.suffix}")
        if aside.is_dir():
            shutil.rmtree(aside) if is_local(aside) else aside.rmtree()
        aside.unlink(missing_ok=True)
        file.rename(aside)
        said += f"{file} is of an earlier run in this workdir; renamed {aside.name}\n"
    return said


def evaluate(
    evaluator: HeldOutEvaluation,
    best: BestCheckpoint,
    writer: MetricWriter,
    samples: Sequence[EvalSample],
    workdir: AnyPath,
    state: TrainState,
    meta: dict,
) -> dict | None:
    """Evaluates a state; `meta` gets its levels, WORKDIR the best model and a picture.

    All processes call it.

    Returns:
        See `HeldOutEvaluation.run`; None without images.
    """
    step, found = int(state.step), evaluator.run(state, writer)
    meta |= evaluator.levels()
    if found is None:
        return None
    is_best = best.update(found, evaluator.params, meta, step)
    report.log_evaluation(step, found, is_best)
    if step and meta.get("prompts_trained", True) and jax.process_index() == 0:
        picture = figures.draw_predictions(evaluator.params, meta, samples, evaluator.names())
        if picture is not None:
            writer.write_images(step, {"predictions": picture})
            figures.save_figure(workdir, picture)
    return found


def write(
    workdir: AnyPath,
    params: dict,
    meta: dict,
    summary: dict,
    evaluator: HeldOutEvaluation,
    best: BestCheckpoint,
) -> None:
    """Writes the model of a finished run with the thresholds that suit it, and the summary.

    The first process writes. The best model gets its thresholds, too.

    Args:
        workdir: folder of the run.
        params: whole, as inference uses them.
        meta: of the run, with its step.
        summary: of `report.summarize`.
        evaluator: has the images on which thresholds are measured.
        best: where the best model is.
    """
    if jax.process_index() != 0:
        return
    folder = workdir / checkpoint_io.MODEL
    save_model(folder, jax.device_get(params), meta, overwrite=True)
    found = evaluator.thresholds(params, meta)
    checkpoint_io.update_meta(folder, with_stored(meta, found))
    if best.step is not None:
        of_best = checkpoint_io.read_meta(best.folder)
        if best.step != meta["step"]:
            found = evaluator.thresholds(*checkpoint_io.read_model(best.folder))
        checkpoint_io.update_meta(best.folder, with_stored(of_best, found))
    (workdir / _SUMMARY).write_text(json.dumps(summary, indent=2) + "\n")
    checkpoint_io.remember_last_run(workdir)
