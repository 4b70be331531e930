"""The best model of a run counts for that run and for its validation images only."""

import numpy as np
import pytest

from semsam_jax import config
from semsam_jax.core import checkpoint_io
from semsam_jax.core.errors import CheckpointError
from semsam_jax.train import build
from semsam_jax.train.best import BestCheckpoint

PARAMS = {"w": np.zeros(1, np.float32)}


def make_run(**changes):
    model = {"preset": "tiny"} | changes.pop("model", {})
    return config.build({"model": model, "text": {"source": "encoder"}} | changes)


def keep(folder, run, score):
    best = BestCheckpoint(folder, True, run.to_dict(), is_resumed=False)
    assert best.update({"iou_max": score}, PARAMS, {"config": run.to_dict()}, step=5)


def test_a_resumed_run_goes_on_with_its_best_model(tmp_path):
    run = make_run()
    keep(tmp_path, run, 0.5)
    best = BestCheckpoint(tmp_path, True, run.to_dict(), is_resumed=True)
    assert (best.score, best.step, best.note) == (0.5, 5, "")
    assert not best.update({"iou_max": 0.4}, PARAMS, {"config": run.to_dict()}, step=9)


def test_of_equal_models_the_later_one_is_kept(tmp_path):
    """Clicks do not change where only names are trained, and the start has not learned them."""
    run = make_run()
    keep(tmp_path, run, 0.5)
    best = BestCheckpoint(tmp_path, True, run.to_dict(), is_resumed=True)
    assert best.update({"iou_max": 0.5}, PARAMS, {"config": run.to_dict()}, step=9)
    assert checkpoint_io.read_meta(tmp_path / "best")["step"] == best.step == 9


@pytest.mark.parametrize("is_on", [True, False])
def test_a_new_run_sets_the_best_model_of_another_aside(tmp_path, is_on):
    run = make_run()
    keep(tmp_path, run, 0.5)
    best = BestCheckpoint(tmp_path, is_on, run.to_dict(), is_resumed=False)
    assert best.score is None
    assert "is of an earlier run in this workdir); renamed best-earlier" in best.note
    assert not (tmp_path / "best").exists()
    assert checkpoint_io.read_meta(tmp_path / "best-earlier")["score"] == 0.5
    if is_on:
        assert best.update({"iou_max": 0.1}, PARAMS, {"config": run.to_dict()}, step=0)


def test_scores_of_other_images_are_not_compared(tmp_path):
    keep(tmp_path, make_run(eval_images=24), 0.5)
    run = make_run(eval_images=100)
    best = BestCheckpoint(tmp_path, True, run.to_dict(), is_resumed=True)
    assert best.score is None
    assert "eval_images was 24" in best.note
    assert (tmp_path / "best-earlier").is_dir()


def test_other_initial_weights_are_refused_where_a_run_is_resumed():
    first = make_run(model={"warm_start": "lite", "init": "random"})
    saved = {"config": first.to_dict()}
    build.check_same_start(saved, first)
    build.check_same_start(saved, make_run(model={"warm_start": ""}))
    build.check_same_start(saved, make_run(model={"warm_start": "required"}))
    other = make_run(model={"warm_start": "runs/other", "text_weights": "clip.pth"})
    with pytest.raises(CheckpointError, match="checkpoint 'lite', this run 'runs/other'") as error:
        build.check_same_start(saved, other)
    assert "model.text_weights: checkpoint '', this run 'clip.pth'" in str(error.value)
