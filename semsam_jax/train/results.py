"""What a run leaves in WORKDIR besides its checkpoints: best model, pictures, model and summary."""

import json
from collections.abc import Sequence

import jax

from semsam_jax.core import checkpoint_io
from semsam_jax.core.model_files import save_model
from semsam_jax.core.paths import AnyPath
from semsam_jax.evals.samples import EvalSample
from semsam_jax.evals.thresholds import with_stored
from semsam_jax.train import figures, report
from semsam_jax.train.best import BestCheckpoint
from semsam_jax.train.evaluation import HeldOutEvaluation
from semsam_jax.train.state import TrainState
from semsam_jax.train.writers import MetricWriter


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
    (workdir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    checkpoint_io.remember_last_run(workdir)
