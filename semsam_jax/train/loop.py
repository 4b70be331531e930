"""Training loop; start reading here.

Order of a step, which keeps checkpoint, data position and metrics in agreement:
restore -> (evaluate, save, next(data), step), and once more evaluate and save at the end.
"""

import contextlib
import os
import time
from collections.abc import Sequence
from typing import NoReturn

import jax

from semsam_jax import config as config_lib
from semsam_jax.config import RunConfig
from semsam_jax.core.paths import as_path
from semsam_jax.evals.eval_loop import EvaluationStopped
from semsam_jax.parallel.distributed import RESTART_CODE, ending_together
from semsam_jax.parallel.mesh import build_mesh, num_batch_shards
from semsam_jax.train import build, hooks, refit, report, results
from semsam_jax.train import input as input_lib
from semsam_jax.train.aot import model_flops
from semsam_jax.train.best import BestCheckpoint
from semsam_jax.train.checkpoints import Checkpoints, check_same_run, sole_run
from semsam_jax.train.evaluation import HeldOutEvaluation, inference_params
from semsam_jax.train.optimizer import schedule
from semsam_jax.train.text import build_text, learned_names
from semsam_jax.train.warm_start import check_start, start_meta
from semsam_jax.train.writers import MetricWriter, ProgressLine

_KEPT = (
    *("level_order", "level_sizes", "image_size", "mask_thresholds", "name_thresholds"),
    *("name_scales", "panoptic_source", "prompts_trained", "class_heads_trained", "parts_trained"),
    *("before", "measured", "refitted"),
)
"""What a resumed run takes from the meta of its checkpoint."""


def train(
    run: RunConfig,
    workdir: str | os.PathLike,
    profile: tuple[int, int] | None = None,
    allow_change: Sequence[str] = (),
) -> dict:
    """Trains, evaluates before and after, and leaves everything in `workdir`.

    Args:
        run: the run.
        workdir: its folder, or a bucket (`gs://...`). A run that is there is resumed; one that
            is finished is left as it is.
        profile: (first step, step after the last one) to record for the profiler, or None.
        allow_change: keys in which a resumed run may differ (`checkpoints.CHANGEABLE`).

    Returns:
        The summary, which is also WORKDIR/summary.json.

    Raises:
        SemSamError: for everything that a user can fix.
        SystemExit: code `RESTART_CODE` after SIGTERM, once the state is saved.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(ending_together())
        clock, guard, workdir = hooks.Clock(), hooks.PreemptionGuard(), as_path(workdir)
        stack.callback(guard.close)
        mesh = build_mesh(run.fsdp, slices=run.slices)
        stack.enter_context(sole_run(workdir))
        checkpoints = stack.enter_context(Checkpoints(workdir, run.keep))
        saved = checkpoints.latest_meta()
        if config_lib.needs_checkpoint(run):
            # Values taken from the warm start are in the run's own checkpoints, too.
            asked = run.loss
            run = config_lib.inherit_from_checkpoint(run, saved or start_meta(run))
            report.log_inherited_loss(asked, run.loss)
        if saved is None:
            check_start(run)
        config_lib.check_batch(run, num_batch_shards(mesh))
        refit.check(run)

        vocabulary = input_lib.open_vocabulary(run, input_lib.used_datasets(run))
        groups = vocabulary.groups
        learned = learned_names(run, vocabulary.names, saved or start_meta(run), groups)
        model = build.build_model(run, len(learned))
        text = build_text(
            run, model.config, vocabulary.names, vocabulary.num_objects, mesh, learned, groups
        )
        meta, changes = build.build_meta(run, model, vocabulary, text.meta), []
        if saved is not None:
            changes = check_same_run(saved, meta, build.default_match(), allow_change)
            build.check_same_start(saved, run)
            summary = report.finished_summary(workdir)
            # A run that was made longer has the summary of its first end.
            is_finished = summary is not None and summary.get("steps", 0) >= run.steps
            if is_finished and saved["step"] >= run.steps:
                report.log_info(f"{workdir}: already finished; nothing is changed")
                report.log_summary(summary, workdir, BestCheckpoint(workdir, run.keep_best))
                return summary
        best = BestCheckpoint(workdir, run.keep_best, run.to_dict(), is_resumed=saved is not None)
        if best.note:
            report.log_info(best.note)
        held_out = input_lib.evaluation_data(run, vocabulary)
        data = input_lib.build_input(run, vocabulary, text.class_mask, mesh, held_out)
        stack.callback(data.close)
        meta["mixture"] = data.mixture
        samples = [] if held_out is None else held_out.samples()
        report.log_start(run, data, held_out, mesh, workdir)

        tx = build.build_tx(run, model)
        if frozen := build.frozen_groups(model.config, run):
            report.log_info(f"frozen in this run: {', '.join(frozen)}")
        state, resumed = build.start_or_resume(run, model, tx, mesh, checkpoints, learned)
        if resumed is None:
            meta |= build.first_levels(run, model)
            meta |= build.start_answers(run, vocabulary, text.class_mask)
            report.log_info(results.set_aside(workdir), end="")
        else:
            position, saved = resumed
            # The same position in another order, if the seed has changed.
            has_other_order = any(change.startswith("seed:") for change in changes)
            data.restore(position | {"seed": run.seed} if has_other_order else position)
            meta |= {key: saved[key] for key in _KEPT if key in saved}
            report.log_info(f"resumed at step {int(state.step)} of {run.steps}")
            report.log_info("".join(f"changed: {change}\n" for change in changes), end="")
        report.write_overviews(workdir, run, state.params, data.text)

        train_step = build.build_step(
            run, model, tx, mesh, vocabulary.num_objects, data.class_weights
        )
        learning_rate = schedule(run.optimizer, run.steps)
        writer = MetricWriter(workdir)
        stack.callback(writer.close)
        writer.write_text(int(state.step), {"config": report.config_text(run)})
        weights = {"interactive": run.loss.interactive, "generic": run.loss.generic}
        progress = ProgressLine(run.steps, weights=weights)
        meter = hooks.Meter(rows=run.data.interactive_batch + run.data.generic_batch)
        watch = hooks.NonFiniteWatch(data.describe, run.max_skipped_in_a_row, run.max_skipped)
        deadlines = hooks.Deadlines(clock, run.time_limit_sec, run.save_every_sec, run.log_every)
        recorder = hooks.Profile(workdir, profile)
        stack.callback(recorder.close)
        parts = input_lib.part_evaluation_data(run, vocabulary)
        evaluator = HeldOutEvaluation(
            model, held_out, meta, run.eval_suites, parts, is_stopped=lambda: guard.is_hit
        )
        earlier = meta.get("measured", {})

        def save(wait: bool = False) -> None:
            watch.check()
            meta["measured"] = report.measured(clock, meter.totals(), watch, earlier)
            checkpoints.save(state, data.state(step), meta, wait=wait)
            deadlines.saved()
            writer.flush()

        def stop() -> NoReturn:
            save(wait=True)
            report.log_info(f"stopped and saved at step {step}; the same command resumes")
            raise SystemExit(RESTART_CODE)

        def evaluate() -> dict | None:
            # Told to stop, a run saves at once; resumed, it evaluates this state again.
            try:
                return results.evaluate(evaluator, best, writer, samples, workdir, state, meta)
            except EvaluationStopped:
                stop()

        step = first_step = int(state.step)
        report.log_info(recorder.missed(first_step, run.steps), end="")
        if step == 0:
            meta["before"] = evaluate()
        if step < run.steps:
            report.log_info("compiling the training step, which takes minutes unless it is cached")
        while step < run.steps:
            if run.eval_every and step and step % run.eval_every == 0:
                with meter.paused():
                    evaluate()
            is_over, is_due = deadlines.due(step)
            if guard.is_requested(step) or is_over:
                stop()
            if (is_due and step > first_step) or (step and step % run.save_every == 0):
                save()
            with meter.input():
                batch = next(data)
            names = text.inputs(step)
            if step == first_step:
                meter.flops_per_step = model_flops(train_step, state, batch, names)
            recorder.at(step)
            started = None
            if step > first_step and (step + 1) % run.log_every == 0:
                jax.block_until_ready(state)
                started = time.perf_counter()
            state, metrics, matching = train_step(state, batch, names)
            meter.add(state, matching, started)
            watch.add(step, metrics)
            step += 1
            if clock.first_step_sec is None:
                jax.block_until_ready(metrics)
                clock.first_step_sec = clock.elapsed()
                meter.restart()
            if step % run.log_every == 0 or step == run.steps:
                values = watch.check_all() | meter.values()
                values["learning_rate"] = float(learning_rate(step - 1))
                writer.write_scalars(step, values)
                progress.report(step, values)

        def is_stopped() -> bool:
            return guard.is_requested(step) or deadlines.due(step)[0]

        if run.refit.images and meta.get("refitted") != step:
            save(wait=True)  # what the steps taught is not lost with the fit
            names = text.inputs(step)
            refitted = refit.refit_class_heads(run, model, state, data, names, is_stopped)
            if refitted is None:
                stop()
            state, step = refitted, int(refitted.step)
            meta["refitted"] = step
        meta["after"] = evaluate()
        save(wait=True)
        summary = report.summarize(run, meta, best)
        params = inference_params(state)
        results.write(workdir, params, {**meta, "step": step}, summary, evaluator, best)
        report.log_summary(summary, workdir, best)
        return summary
