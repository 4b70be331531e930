"""The order of a run: what it saves, skips, says and leaves, with a step that computes nothing."""

import json
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semsam_jax import config
from semsam_jax.core import checkpoint_io
from semsam_jax.core.errors import CheckpointError, DataError, TrainingError
from semsam_jax.evals.eval_loop import EvalLoop, SingleImageScorer
from semsam_jax.evals.interactive import InteractiveEvaluator, InteractiveProtocol
from semsam_jax.matching.transport import AssignReport
from semsam_jax.parallel.distributed import RESTART_CODE
from semsam_jax.train import build, hooks, refit, results
from semsam_jax.train.evaluation import HeldOutEvaluation
from semsam_jax.train.input import Input
from semsam_jax.train.loop import train
from semsam_jax.train.step import TrainStep
from tests.evals.fakes import reading_sample

DATA = {
    "datasets": {"sa1b": 1.0},
    "granularity": {"any": 1.0},
    "interactive_batch": jax.device_count(),
    "generic_batch": 0,
    "image_size": 64,
    "max_instances": 4,
    "num_prompts": 2,
}

REFITTING = {
    "model": {"preset": "lite"},
    "data": DATA | {"datasets": {"coco": 1.0}},
    "text": {"source": "table"},
    "refit": {"images": 1},
}


class Step(TrainStep):
    """In the place of `TrainStep`: the loss of step n is n; `bad` steps are not finite."""

    def __init__(self, bad=(), at=()):
        self.bad, self.at, self.steps = bad, dict(at), []

    def __call__(self, state, batch, text):
        step = int(state.step)
        self.steps.append(step)
        self.at.get(step, lambda: None)()
        is_good = step not in self.bad
        metrics = {"loss": float(step) if is_good else np.nan, "is_finite": is_good}
        metrics["nonfinite_costs"] = 0
        metrics = {name: jnp.asarray(value) for name, value in metrics.items()}
        return state.replace(step=state.step + 1), metrics, AssignReport(0.0, 0.0)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """The index of the sample is built once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def start(cache, tmp_path, monkeypatch):
    """Starts a run of six steps in one workdir; returns (summary, the step that it used)."""
    monkeypatch.setenv("SEMSAM_JAX_CACHE", str(cache))

    params = {"part": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}}

    def start(step=None, allow_change=(), **changes):
        step = step or Step()
        monkeypatch.setattr(build, "build_step", lambda *_: step)
        monkeypatch.setattr(build, "initial_params", lambda *_: params)
        monkeypatch.setattr(build, "parameter_shapes", lambda *_: params)
        values = {"model": {"preset": "tiny"}, "text": {"source": "none"}, "data": DATA}
        values |= {"steps": 6, "log_every": 2, "save_every": 100} | changes
        run = config.build(values)
        return train(run, tmp_path / "run", allow_change=allow_change), step

    return start


def logged(tmp_path):
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    return {record["step"]: record for record in map(json.loads, lines)}


def test_a_run_is_stopped_resumed_finished_and_then_left_alone(start, tmp_path, capsys):
    """Stopped by its time limit at step 4; every figure is that of the whole run."""
    now = [0.0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hooks.Clock, "elapsed", lambda self: now[0])
        slow = Step(at={3: lambda: now.__setitem__(0, 50.0)})
        with pytest.raises(SystemExit) as stopped:
            start(slow, time_limit_sec=40.0)
    assert stopped.value.code == RESTART_CODE
    assert "stopped and saved at step 4" in capsys.readouterr().out
    assert slow.steps == [0, 1, 2, 3]

    summary, step = start()
    assert step.steps == [4, 5]
    assert "resumed at step 4 of 6" in capsys.readouterr().out
    assert (summary["loss_first"], summary["loss_last"]) == (0.5, 4.5)
    assert summary["seconds"] > 50
    assert {s: record["loss"] for s, record in logged(tmp_path).items()} == {2: 0.5, 4: 2.5, 6: 4.5}
    # 1e-4, a tenth after 90 % of the steps, at step 5 of 10 of the warm-up from a tenth.
    assert logged(tmp_path)[6]["learning_rate"] == pytest.approx(1e-4 * 0.1 * 0.55)
    assert checkpoint_io.find_model(tmp_path / "run") == tmp_path / "run" / "model"

    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    again, step = start()
    assert again == summary
    assert not step.steps
    assert "nothing is changed" in capsys.readouterr().out
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before

    with pytest.raises(CheckpointError, match="seed: checkpoint 0, this run 1"):
        start(seed=1)
    longer, step = start(seed=1, steps=8, allow_change=("seed", "steps"))
    assert step.steps == [6, 7]
    assert longer["steps"] == 8
    assert "changed: steps: checkpoint 6, this run 8" in capsys.readouterr().out


def test_other_images_are_refused_with_another_seed_too(start, monkeypatch):
    with monkeypatch.context() as patch:
        state = Input.state
        fewer = {"interactive": {"batch_size": 8, "schedule": [["sa1b", "any", 2, 1000]]}}
        patch.setattr(Input, "state", lambda self, step: state(self, step) | fewer)
        start()
    with pytest.raises(CheckpointError, match=r"for another input: interactive is"):
        start(seed=1, steps=8, allow_change=("seed", "steps"))


def test_a_refit_that_is_stopped_starts_again_and_is_the_last_save(start, tmp_path, monkeypatch):
    answers = [lambda _: None, lambda state: state.replace(step=state.step + 1)]
    monkeypatch.setattr(
        refit, "refit_class_heads", lambda run, model, state, *_: answers.pop(0)(state)
    )
    with pytest.raises(SystemExit) as stopped:
        start(**REFITTING)
    assert stopped.value.code == RESTART_CODE
    assert checkpoint_io.read_meta(tmp_path / "run" / "checkpoints" / "6")["step"] == 6
    summary, step = start(**REFITTING)
    assert not step.steps
    steps = [int(path.name) for path in checkpoint_io.complete_steps(tmp_path / "run")]
    assert steps == [6, 7]
    assert start(**REFITTING)[0] == summary


def test_a_refit_that_fails_loses_no_step_and_a_shorter_run_has_its_own(
    start, tmp_path, monkeypatch
):
    def fail(*_):
        raise DataError("no mask overlaps")

    monkeypatch.setattr(refit, "refit_class_heads", fail)
    with pytest.raises(DataError):
        start(**REFITTING)
    assert checkpoint_io.read_meta(tmp_path / "run" / "checkpoints" / "6")["step"] == 6
    called = []
    monkeypatch.setattr(
        refit,
        "refit_class_heads",
        lambda run, model, state, *_: called.append(1) or state.replace(step=state.step + 1),
    )
    summary, step = start(**REFITTING | {"steps": 5}, allow_change=("steps",))
    assert (step.steps, called, summary["steps"]) == ([], [1], 5)
    assert checkpoint_io.read_meta(tmp_path / "run")["step"] == 7
    longer, step = start(**REFITTING | {"steps": 8}, allow_change=("steps",))
    assert (step.steps, called, longer["steps"]) == ([7], [1, 1], 8)


def test_what_an_earlier_run_left_is_not_of_the_new_one(start, tmp_path, monkeypatch, capsys):
    """Without its checkpoints, and with a summary and a model of as many steps."""

    def lose(*_):
        raise KeyboardInterrupt

    start()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with monkeypatch.context() as patch:
        patch.setattr(results, "write", lose)
        with pytest.raises(KeyboardInterrupt):
            start(seed=1)
    assert "model is of an earlier run in this workdir; renamed model-earlier" in (
        capsys.readouterr().out
    )
    assert checkpoint_io.read_meta(tmp_path / "run")["config"]["seed"] == 1
    start(seed=1)
    assert "already finished" not in capsys.readouterr().out
    for folder, seed in (("model", 1), ("model-earlier", 0)):
        assert checkpoint_io.read_meta(tmp_path / "run" / folder)["config"]["seed"] == seed


@pytest.mark.parametrize(("at", "later"), [(0, [0, 4, 6]), (4, [4, 6]), (6, [6])])
def test_an_evaluation_that_is_told_to_stop_is_made_by_the_resumed_run(
    start, tmp_path, monkeypatch, at, later
):
    """It may take longer than a preempted machine has; the steps before it are not lost."""
    evaluated = []

    def score(evaluator, state, writer):
        def one(sample):
            if int(state.step) == at and "stopped" not in evaluated:
                os.kill(os.getpid(), signal.SIGTERM)
            return ([0.5],)

        single = InteractiveEvaluator(InteractiveProtocol(max_clicks=1))
        images = [reading_sample(np.zeros((4, 4)), image_id=name) for name in "ab"]
        eval_loop = EvalLoop(is_stopped=evaluator._is_stopped)
        eval_loop.run("x", single, images, SingleImageScorer(one))
        evaluated.append(int(state.step))

    monkeypatch.setattr(HeldOutEvaluation, "run", score)
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as stopped:
        start(eval_every=4)
    assert stopped.value.code == RESTART_CODE
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    assert checkpoint_io.read_meta(tmp_path / "run")["step"] == at
    evaluated.append("stopped")
    _, step = start(eval_every=4)
    assert step.steps == list(range(at, 6))
    assert evaluated[evaluated.index("stopped") + 1 :] == later


@pytest.mark.nightly
def test_the_end_of_a_longer_run_is_not_that_of_the_shorter_one(start, tmp_path, monkeypatch):
    """It is lost between the last save and the summary; the first end had a summary, too."""

    def lose(*_):
        raise KeyboardInterrupt

    start()
    with monkeypatch.context() as patch:
        patch.setattr(results, "write", lose)
        with pytest.raises(KeyboardInterrupt):
            start(steps=8, allow_change=("steps",))
    summary, step = start(steps=8)
    assert (step.steps, summary["steps"]) == ([], 8)
    assert checkpoint_io.read_meta(tmp_path / "run" / "model")["step"] == 8


def test_a_best_model_that_nothing_chooses_is_told(start, tmp_path, capsys):
    start(keep_best=True)
    told = "evaluation: none (eval_images=0), so keep_best=True keeps no model in best/\n"
    assert told in capsys.readouterr().out
    assert not (tmp_path / "run" / "best").exists()


def test_saves_by_seconds_and_skipped_steps(start, tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(hooks.Clock, "elapsed", lambda self: now[0])
    later = {1: lambda: now.__setitem__(0, 31.0), 2: lambda: now.__setitem__(0, 32.0)}
    summary, _ = start(Step(bad=(3,), at=later), save_every_sec=30.0, keep=9)
    steps = [int(path.name) for path in checkpoint_io.complete_steps(tmp_path / "run")]
    assert steps == [2, 6]
    assert summary["skipped_steps"] == 1
    # Step 3 counts in no mean; a save in between takes nothing out of one.
    assert {s: record["loss"] for s, record in logged(tmp_path).items()} == {2: 0.5, 4: 2.0, 6: 4.5}


def test_steps_that_are_all_skipped_have_no_loss(start, tmp_path, capsys):
    """Neither a crash, where none was good before, nor the loss of earlier steps."""
    summary, step = start(Step(bad=(0, 1, 4, 5)))
    assert step.steps == [0, 1, 2, 3, 4, 5]
    records = logged(tmp_path)
    assert [records[s].get("loss") for s in (2, 4, 6)] == [None, 2.5, None]
    assert "learning_rate" in records[2]
    assert "step 2/6  all steps skipped  " in capsys.readouterr().out
    assert (summary["loss_first"], summary["loss_last"]) == (2.5, 2.5)


def test_too_many_bad_steps_end_the_run(start):
    with pytest.raises(TrainingError, match=r"step 2: .*not finite: loss.*2 such steps in a row"):
        start(Step(bad=(1, 2)), max_skipped_in_a_row=2)
