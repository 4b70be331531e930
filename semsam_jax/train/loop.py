"""The training run, top to bottom: this is the page to read first.

Order of a step, which keeps checkpoint, data position and metrics in agreement:
restore -> (evaluate, save, next(data), step), and once more evaluate and save at the end.
"""

import dataclasses
import json
import os

from pathlib import Path

import jax
import numpy as np
from absl import logging
from clu import parameter_overview

from semsam_jax import config as config_lib
from semsam_jax.config import RunConfig
from semsam_jax.core import checkpoint_io
from semsam_jax.criterion.total import CriterionConfig, LossWeights
from semsam_jax.models import presets
from semsam_jax.models.semantic_sam import SemanticSAM
from semsam_jax.parallel.mesh import build_mesh, num_batch_shards
from semsam_jax.train import hooks
from semsam_jax.train.checkpoints import Checkpoints
from semsam_jax.train.input import Input, build_input
from semsam_jax.train.optimizer import build_optimizer
from semsam_jax.train.state import shard_state
from semsam_jax.train.step import TrainStep
from semsam_jax.train.text import build_text
from semsam_jax.train.warm_start import initial_params
from semsam_jax.train.writers import MetricWriter, ProgressLine


def train(run: RunConfig, workdir: str | os.PathLike) -> dict:
    """Trains, evaluates before and after, and leaves everything in `workdir`.

    Returns:
        The summary, which is also WORKDIR/summary.json.

    Raises:
        SemSamError: with the fix, for everything that a user can repair.
        SystemExit: code `hooks.RESTART_CODE` after SIGTERM, once the state is saved.
    """
    clock = hooks.Clock()
    guard = hooks.PreemptionGuard()
    workdir = Path(workdir)
    mesh = build_mesh(run.fsdp)
    config_lib.check_batch(run, num_batch_shards(mesh))
    checkpoints = Checkpoints(workdir, run.keep)

    data = build_input(run, mesh)
    hooks.announce(run, data, mesh, workdir)
    model_config = presets.model_config(run.model.preset)
    model = SemanticSAM(model_config, dtype=run.model.dtype, remat=run.model.remat)
    text = build_text(run, model_config, data.vocabulary, mesh)
    params = initial_params(run, model)
    frozen = hooks.frozen_groups(model_config)
    tx = build_optimizer(run.optimizer, run.steps, frozen)
    state = shard_state(params, tx, run.optimizer.ema > 0, mesh)
    del params
    _write_overview(workdir, state.params, data)

    meta = build_meta(run, data, text.meta)
    restored = checkpoints.restore(state, meta)
    if restored is not None:
        state, data_state = restored
        data.restore(data_state)
        saved = checkpoint_io.read_meta(workdir)
        meta = {**meta, "level_order": saved["level_order"], "before": saved["before"]}
        hooks.say(f"resumed at step {int(state.step)} of {run.steps}")

    step_fn = TrainStep(
        model=model,
        tx=tx,
        criterion=criterion_config(run, data),
        mesh=mesh,
        num_objects=data.vocabulary.num_objects,
        seed=run.seed,
        ema=run.optimizer.ema,
    )
    evaluator = hooks.Evaluator(run, model, data)
    writer = MetricWriter(workdir)
    progress = ProgressLine(run.steps)
    meter = hooks.Meter(rows=run.data.interactive_batch + run.data.generic_batch)
    watch = hooks.NonFiniteWatch(data)

    step = int(state.step)
    if step == 0:
        meta["before"] = evaluator.run(state, writer)
    while step < run.steps:
        if run.eval_every and step and step % run.eval_every == 0:
            meta["level_order"] = evaluator.calibrate(evaluator.run(state, writer))
        if guard.is_requested(step) or clock.is_over(run.time_limit_sec):
            checkpoints.save(state, data.state(step), meta, wait=True)
            checkpoints.close()
            writer.close()
            hooks.say(f"stopped at step {step} and saved; the same command resumes")
            raise SystemExit(hooks.RESTART_CODE)
        if step and step % run.save_every == 0:
            watch.check_all()
            checkpoints.save(state, data.state(step), meta)
        with meter.input():
            batch = next(data)
        with meter.step():
            state, metrics, report = step_fn(state, batch, text.inputs(step))
            meter.add_matching(report.host_sec)
            watch.add(step, metrics)
        step += 1
        if step == 1 or clock.first_step_sec is None:
            jax.block_until_ready(metrics)
            clock.first_step_sec = clock.elapsed()
            meter.restart()
        if step % run.log_every == 0 or step == run.steps:
            values = watch.check_all()
            values |= meter.values()
            writer.write_scalars(step, values)
            progress.report(step, values)

    after = evaluator.run(state, writer)
    meta["level_order"] = evaluator.calibrate(after)
    meta["after"] = after
    checkpoints.save(state, data.state(step), meta, wait=True)
    checkpoints.close()
    summary = hooks.summarize(run, data, clock, meter, watch, meta)
    if jax.process_index() == 0:
        evaluator.write_pictures(state, meta, workdir, writer)
        (workdir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        checkpoint_io.remember_last_run(workdir)
    writer.close()
    hooks.say_summary(summary, workdir)
    return summary


def criterion_config(run: RunConfig, data: Input) -> CriterionConfig:
    """Maps the config group `loss` to the criterion's own fields."""
    loss = run.loss
    weights = LossWeights(
        **{field.name: getattr(loss, field.name) for field in dataclasses.fields(LossWeights)}
    )
    return CriterionConfig(
        weights=weights,
        num_points=loss.num_points,
        match_points=loss.match_points,
        many_to_one=loss.many_to_one,
        detach_iou_target=loss.detach_iou_target,
        num_objects=data.vocabulary.num_objects,
        interactive=loss.interactive,
        generic=loss.generic,
    )


def build_meta(run: RunConfig, data: Input, text_meta: dict) -> dict:
    """Everything that a checkpoint says about itself (DESIGN section 3)."""
    model_config = presets.model_config(run.model.preset)
    labelled = any(share > 0 for name, share in run.data.datasets.items() if name != "sa1b")
    return {
        "preset": run.model.preset,
        "model_config": json.loads(presets.to_json(model_config)),
        "config": run.to_dict(),
        "image_size": run.data.image_size,
        "level_order": list(range(model_config.decoder.num_tokens)),
        "prompt_preset": "own",
        "class_heads_trained": labelled or run.data.generic_batch > 0,
        "has_ema": run.optimizer.ema > 0,
        "text": text_meta,
        "vocabulary": {
            "objects": list(dict.fromkeys(data.vocabulary.object_names)),
            "parts": list(dict.fromkeys(data.vocabulary.part_names)),
            "hash": data.vocabulary.fingerprint,
        },
        "mixture": data.mixture_table,
        "before": None,
        "must_match": {
            "preset": run.model.preset,
            "vocabulary": data.vocabulary.fingerprint,
            "seed": run.seed,
            "steps": run.steps,
            "data": json.loads(json.dumps(run.to_dict()["data"])) | {"num_workers": 0},
            "optimizer": json.loads(json.dumps(run.to_dict()["optimizer"])),
        },
    }


def _write_overview(workdir: Path, params: dict, data: Input) -> None:
    if jax.process_index() != 0:
        return
    shapes = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), params)
    overview = parameter_overview.get_parameter_overview(shapes, include_stats=False)
    (workdir / "parameters.txt").write_text(overview + "\n")
    (workdir / "mixture.txt").write_text(data.mixture_text + "\n")
    logging.info("parameters:\n%s", overview)
