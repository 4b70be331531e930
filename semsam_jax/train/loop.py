"""Training loop; start reading here.

Order of a step, which keeps checkpoint, data position and metrics in agreement:
restore -> (evaluate, save, next(data), step), and once more evaluate and save at the end.
"""

import dataclasses
import json
import os
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from clu import parameter_overview
from jax.sharding import Mesh

from data_pipelines.vocabulary import Vocabulary
from semsam_jax import config as config_lib
from semsam_jax.config import RunConfig
from semsam_jax.convert import zoo
from semsam_jax.core import checkpoint_io
from semsam_jax.core.model_files import save_model
from semsam_jax.criterion.total import CriterionConfig, LossWeights
from semsam_jax.models import presets
from semsam_jax.models.semantic_sam import SemanticSAM
from semsam_jax.parallel.distributed import RESTART_CODE, ending_together
from semsam_jax.parallel.mesh import build_mesh, num_batch_shards
from semsam_jax.train import figures, hooks, report
from semsam_jax.train import input as input_lib
from semsam_jax.train.abstract import abstract_batch
from semsam_jax.train.aot import compile_ahead, model_flops
from semsam_jax.train.best import BestCheckpoint
from semsam_jax.train.checkpoints import Checkpoints
from semsam_jax.train.evaluation import HeldOutEvaluation, inference_params
from semsam_jax.train.micro import MicroBatches
from semsam_jax.train.optimizer import build_optimizer
from semsam_jax.train.state import shard_state
from semsam_jax.train.step import TrainStep
from semsam_jax.train.text import build_text
from semsam_jax.train.warm_start import check_start, initial_params, level_order
from semsam_jax.train.writers import MetricWriter, ProgressLine


def train(
    run: RunConfig, workdir: str | os.PathLike, profile: tuple[int, int] | None = None
) -> dict:
    """Trains, evaluates before and after, and leaves everything in `workdir`.

    Args:
        run: the run.
        workdir: its folder; a run that is there is resumed.
        profile: (first step, step after the last one) to record for the profiler, or None.

    Returns:
        The summary, which is also WORKDIR/summary.json.

    Raises:
        SemSamError: with the fix, for everything that a user can repair.
        SystemExit: code `RESTART_CODE` after SIGTERM, once the state is saved.
    """
    with ending_together():
        return _train(run, Path(workdir), profile)


def _train(run: RunConfig, workdir: Path, profile: tuple[int, int] | None) -> dict:
    if config_lib.needs_checkpoint(run):
        run = config_lib.inherit_from_checkpoint(
            run, checkpoint_io.read_meta(zoo.resolve(run.model.warm_start))
        )
    if not checkpoint_io.complete_steps(workdir):
        check_start(run)
    clock, guard = hooks.Clock(), hooks.PreemptionGuard()
    mesh = build_mesh(run.fsdp, slices=run.slices)
    config_lib.check_batch(run, num_batch_shards(mesh))
    with Checkpoints(workdir, run.keep) as checkpoints:
        return _train_on(mesh, run, workdir, checkpoints, clock, guard, profile)


def _train_on(
    mesh: Mesh,
    run: RunConfig,
    workdir: Path,
    checkpoints: Checkpoints,
    clock: hooks.Clock,
    guard: hooks.PreemptionGuard,
    profile: tuple[int, int] | None,
) -> dict:
    vocabulary = input_lib.open_vocabulary(run, input_lib.used_datasets(run))
    model_config = config_lib.model_config(run.model)
    text = build_text(run, model_config, vocabulary.names, vocabulary.num_objects, mesh)
    held_out = input_lib.evaluation_data(run, vocabulary)
    data = input_lib.build_input(run, vocabulary, text.class_mask, mesh)
    samples = [] if held_out is None else held_out.samples()
    report.log_start(run, data.text, len(samples), mesh, workdir)
    held_back_notes = [f"evaluation, {note}" for note in held_out.notes] if held_out else []
    for note in (*data.notes, *held_back_notes):
        report.log_info(note)

    model = build_model(run)
    params = initial_params(run, model)
    tx = build_optimizer(run.optimizer, run.steps, frozen_groups(model_config, run))
    state = shard_state(params, tx, run.optimizer.ema > 0, mesh)
    del params
    _write_overviews(workdir, state.params, data.text)

    meta = build_meta(run, model_config, vocabulary, text.meta, data.mixture)
    restored = checkpoints.restore(state, meta)
    if restored is not None:
        state, data_state = restored
        data.restore(data_state)
        saved = checkpoint_io.read_meta(workdir)
        meta |= {"level_order": saved["level_order"], "before": saved["before"]}
        report.log_info(f"resumed at step {int(state.step)} of {run.steps}")

    step_fn = build_step(run, model, tx, mesh, vocabulary.num_objects)
    parts = input_lib.part_evaluation_data(run, vocabulary)
    evaluator = HeldOutEvaluation(model, held_out, meta, run.eval_suites, parts)
    writer, progress = MetricWriter(workdir), ProgressLine(run.steps)
    meter = hooks.Meter(rows=run.data.interactive_batch + run.data.generic_batch)
    watch = hooks.NonFiniteWatch(data.describe)
    recorder = hooks.Profile(workdir, profile)

    best = BestCheckpoint(workdir, run.keep_best)

    def evaluate() -> dict | None:
        result = evaluator.run(state, writer)
        meta["level_order"] = evaluator.level_order(meta["level_order"])
        if result is not None and best.update(result["iou_max"], evaluator.params, meta, step):
            report.log_info(f"step {step}: one-click IoU {result['iou_max']:.4f}, new best")
        if step and jax.process_index() == 0:
            picture = figures.draw_predictions(evaluator.params, meta, samples)
            if picture is not None:
                writer.write_images(step, {"predictions": picture})
                figures.save_figure(workdir, picture)
        return result

    step = first_step = int(state.step)
    if step < run.steps:
        shapes = abstract_batch(run, mesh, len(vocabulary))
        compiling = compile_ahead(step_fn, state, shapes, text.inputs(step))
    if step == 0:
        meta["before"] = evaluate()
    while step < run.steps:
        if run.eval_every and step and step % run.eval_every == 0:
            with meter.paused():
                evaluate()
        if guard.is_requested(step) or clock.is_over(run.time_limit_sec):
            watch.check_all()
            checkpoints.save(state, data.state(step), meta, wait=True)
            report.log_info(f"stopped and saved at step {step}; run the same command to resume")
            raise SystemExit(RESTART_CODE)
        if step and step % run.save_every == 0:
            watch.check_all()
            checkpoints.save(state, data.state(step), meta)
        with meter.input():
            batch = next(data)
        if step == first_step:
            compiling.result()
            meter.flops_per_step = model_flops(step_fn, state, batch, text.inputs(step))
        recorder.at(step)
        is_timed = step > first_step and (step + 1) % run.log_every == 0
        if is_timed:
            jax.block_until_ready(state)
        state, metrics, _ = meter.step(partial(step_fn, state, batch, text.inputs(step)), is_timed)
        watch.add(step, metrics)
        step += 1
        if clock.first_step_sec is None:
            jax.block_until_ready(metrics)
            clock.first_step_sec = clock.elapsed()
            meter.restart()
        if step % run.log_every == 0 or step == run.steps:
            values = watch.check_all() | meter.values()
            writer.write_scalars(step, values)
            progress.report(step, values)
    data.close()
    recorder.close()

    meta["after"] = evaluate()
    checkpoints.save(state, data.state(step), meta, wait=True)
    params = inference_params(state)
    if jax.process_index() == 0:
        model = workdir / checkpoint_io.MODEL
        save_model(model, jax.device_get(params), meta | {"step": step}, overwrite=True)
    summary = report.summarize(run, clock, meter.totals(), watch, meta)
    if jax.process_index() == 0:
        (workdir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        checkpoint_io.remember_last_run(workdir)
    writer.close()
    report.log_summary(summary, workdir)
    return summary


def build_model(run: RunConfig) -> SemanticSAM:
    """The network of a run."""
    config = config_lib.model_config(run.model)
    return SemanticSAM(config, dtype=jnp.dtype(run.model.dtype), remat=run.model.remat)


def build_step(
    run: RunConfig,
    model: SemanticSAM,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    num_objects: int,
) -> TrainStep:
    """The compiled step of a run."""
    return TrainStep(
        model=model,
        tx=tx,
        criterion=criterion_config(run),
        mesh=mesh,
        num_objects=num_objects,
        seed=run.seed,
        ema=run.optimizer.ema,
        micro=MicroBatches(run.accumulate, run.accumulate_per_stream),
        frozen=frozen_groups(model.config, run),
    )


def frozen_groups(config: presets.ModelConfig, run: RunConfig) -> tuple[str, ...]:
    """Parts of the parameters that never change in this run."""
    is_fixed = isinstance(config.backbone, presets.EfficientNetLiteConfig)
    frozen = ["backbone"] if is_fixed and not config.backbone.is_trained else []
    if run.text.source != "encoder" and config.text is not None:
        frozen.append("text_encoder")
    return (*frozen, *run.optimizer.frozen)


def criterion_config(run: RunConfig) -> CriterionConfig:
    """Maps the config group `loss` to the criterion's own fields."""
    loss = run.loss
    weights = [field.name for field in dataclasses.fields(LossWeights)]
    # By name, so that no key of the group can be forgotten here.
    own = {field.name for field in dataclasses.fields(CriterionConfig)}
    shared = own & {field.name for field in dataclasses.fields(loss)}
    is_exact = run.model.dtype == "float32"
    return CriterionConfig(
        weights=LossWeights(**{name: getattr(loss, name) for name in weights}),
        precision=jax.lax.Precision.HIGHEST if is_exact else jax.lax.Precision.DEFAULT,
        **{name: getattr(loss, name) for name in shared},
    )


def build_meta(
    run: RunConfig,
    model_config: presets.ModelConfig,
    vocabulary: Vocabulary,
    text_meta: dict,
    mixture: dict,
) -> dict:
    """Everything that a checkpoint says about itself (docs/design.md, "Checkpoints")."""
    has_labels = any(share > 0 for name, share in run.data.datasets.items() if name != "sa1b")
    plain = json.loads(json.dumps(run.to_dict()))
    return {
        "preset": run.model.preset,
        "model_config": json.loads(presets.to_json(model_config)),
        "config": plain,
        "image_size": run.data.image_size,
        "level_order": level_order(run, model_config.decoder.num_tokens),
        "prompt_preset": "default",
        "class_heads_trained": has_labels or run.data.generic_batch > 0,
        "has_ema": run.optimizer.ema > 0,
        "text": text_meta,
        "vocabulary": {
            "objects": list(dict.fromkeys(vocabulary.object_names)),
            "parts": list(dict.fromkeys(vocabulary.part_names)),
            "hash": vocabulary.fingerprint,
        },
        "mixture": mixture,
        "before": None,
        "must_match": {
            "preset": run.model.preset,
            "model_config": json.loads(presets.to_json(model_config)),
            "lora_rank": run.model.lora_rank,
            "vocabulary": vocabulary.fingerprint,
            "seed": run.seed,
            "steps": run.steps,
            "accumulate": [run.accumulate, run.accumulate_per_stream],
            "data": plain["data"] | {"num_workers": 0, "root": ""},
            "text": plain["text"],
            "loss": plain["loss"],
            "optimizer": plain["optimizer"],
        },
    }


def _write_overviews(workdir: Path, params: dict, mixture_text: str) -> None:
    if jax.process_index() != 0:
        return
    shapes = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), params)
    overview = parameter_overview.get_parameter_overview(shapes, include_stats=False)
    (workdir / "parameters.txt").write_text(overview + "\n")
    (workdir / "mixture.txt").write_text(mixture_text + "\n")
