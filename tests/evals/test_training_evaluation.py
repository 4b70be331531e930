"""Evaluation within a run: any suite, on images that are read anew each time."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from semsam_jax.config import build
from semsam_jax.core.errors import ConfigError
from semsam_jax.evals.dataset_samples import EvalDataset, EvalFrame, open_dataset
from semsam_jax.evals.eval_loop import EvaluationStopped
from semsam_jax.evals.samples import ClassNames
from semsam_jax.train.best import BestCheckpoint
from semsam_jax.train.evaluation import HeldOutEvaluation
from semsam_jax.train.report import class_table
from semsam_jax.train.results import evaluate
from semsam_jax.train.state import TrainState
from semsam_jax.train.writers import MetricWriter
from tests.data_pipelines.fake_source import HANDLE, MUG, mask_instance
from tests.evals.fakes import ReadingGeneric, ReadingModel
from tests.evals.test_crowd import STRIPS, FakeImages, dataset

META = {"class_heads_trained": True, "text": {"source": "table"}, "prompt_preset": "default"}


class FakeParts(FakeImages):
    """A mug, and its handle."""

    def __init__(self):
        super().__init__(has_crowd=False)
        self.dataset = "paco"

    def _read(self, position):
        found = super()._read(position)
        handle = mask_instance(STRIPS == 2, object_id=MUG, part_id=HANDLE)
        mug = mask_instance(STRIPS == 1, object_id=MUG)
        return dataclasses.replace(found, dataset="paco", instances=(mug, handle))


class Reading(ReadingModel, ReadingGeneric):
    """Both streams."""


def test_suites_are_measured_and_logged(tmp_path):
    suites = ("one_click", "levels", "box", "granularity", "generic", "names", "baselines")
    evaluator = HeldOutEvaluation(Reading(), dataset(has_crowd=True), META, suites)
    writer = MetricWriter(tmp_path)
    state = TrainState(params={"w": jnp.zeros(3)}, opt_state=(), step=jnp.int32(7))
    found = evaluator.run(state, writer)
    writer.close()
    cat = {"masks": 1.0, "iou": 50.0, "ap": 100.0, "ap50": 100.0, "name_accuracy": 100.0}
    classes = {"cat": cat}
    names = {"mask_ap": 1.0, "mask_ap50": 1.0, "name_accuracy": 1.0, "classes": classes}
    assert found == {"iou_max": 0.5, "iou_oracle": 1.0, "num_instances": 1} | names
    head, row = (line.split() for line in class_table(classes).splitlines())
    assert head == ["class", "(%)", "masks", "IoU", "AP", "AP50", "name", "right"]
    assert row == ["cat", "1", "50.0", "100.0", "100.0", "100.0"]
    assert evaluator.names() == ClassNames({0: "cat", 1: "dog"})
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert record["step"] == 7
    assert record["eval/iou_max"] == 50.0
    assert record["eval/generic/panoptic/pq"] == 100.0
    assert record["eval/generic/mask_ap/ap"] == 100.0
    assert record["eval/granularity/iou"] == 100.0
    assert record["eval/names/accuracy"] == record["eval/class/cat/ap50"] == 100.0
    assert record["eval/class/cat/iou"] == 50.0
    assert record["eval/levels/area/1"] >= record["eval/levels/area/2"]
    assert 0 < record["eval/baseline_blob/iou_oracle"] < 100
    assert "NaN" not in line
    # Token 2 adds strip 3, which is not there: as large as token 1, so the order stays.
    levels = evaluator.levels()
    assert levels["level_order"] == [1, 2, 0]
    assert levels["level_sizes"] == sorted(levels["level_sizes"], reverse=True)


def test_an_evaluation_is_printed_and_kept_with_the_best_model(tmp_path, capsys):
    # Images without parts have none to score.
    evaluator = HeldOutEvaluation(Reading(), dataset(has_crowd=False), META, ("part",))
    state = TrainState(params={"w": jnp.zeros(3)}, opt_state=(), step=jnp.int32(0))
    best, meta = BestCheckpoint(tmp_path, is_on=True), {"level_order": [0, 1, 2]}
    found = evaluate(evaluator, best, MetricWriter(tmp_path), [], tmp_path, state, meta)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("step 0: one-click IoU 0.5000, best of the masks 1.0000")
    assert [line.split() for line in lines[1:3]] == [
        ["class", "(%)", "masks", "IoU"],
        ["cat", "1", "50.0"],
    ]
    assert BestCheckpoint(tmp_path, is_on=True).evaluation == found
    assert sorted(meta["level_order"]) == [0, 1, 2]


def test_granularities_lie_between_the_levels_of_the_same_evaluation(tmp_path):
    writer = MetricWriter(tmp_path)
    for order in ([1, 2, 0], [0, 1, 2]):  # measured, and of an earlier state
        meta = META | {"level_order": order}
        evaluator = HeldOutEvaluation(Reading(), dataset(has_crowd=False), meta, ("continuous",))
        evaluator.run(TrainState(params={}, opt_state=(), step=jnp.int32(0)), writer)
        assert evaluator.levels()["level_order"] == [1, 2, 0]
    writer.close()
    first, second = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert first["eval/continuous/tau"] > 0
    assert first | {"time": 0} == second | {"time": 0}


def test_parts_are_classes_of_their_own(tmp_path):
    """The branch calls strip 1 a handle, which is strip 2: third of three with the same class."""
    data = EvalDataset(FakeParts(), EvalFrame(32), is_sample=False)
    evaluator = HeldOutEvaluation(Reading(), data, META, ("one_click", "generic", "names"))
    state = TrainState(params={}, opt_state=(), step=jnp.int32(0))
    classes = evaluator.run(state, MetricWriter(tmp_path))["classes"]
    handle = classes.pop("mug:handle")
    assert (handle["ap"], handle["ap50"]) == (pytest.approx(100 / 3), pytest.approx(100 / 3))
    assert (handle["masks"], handle["iou"]) == (1, 100)
    assert classes == {
        "mug": {"masks": 1.0, "iou": 50.0, "ap": 100.0, "ap50": 100.0, "name_accuracy": 100.0},
        ":handle": {"name_accuracy": 100.0},
    }


def test_no_images_no_evaluation(tmp_path):
    evaluator = HeldOutEvaluation(Reading(), None, META)
    state = TrainState(params={}, opt_state=(), step=jnp.int32(0))
    assert evaluator.run(state, MetricWriter(tmp_path)) is None
    assert evaluator.levels() == {}


@pytest.mark.parametrize("suite", ["names", "box"])
def test_an_evaluation_ends_when_it_is_told_to(tmp_path, suite):
    answers = iter([False, True])
    stops = {"is_stopped": lambda: next(answers)}
    evaluator = HeldOutEvaluation(Reading(), dataset(has_crowd=False), META, (suite,), **stops)
    with pytest.raises(EvaluationStopped):
        evaluator.run(
            TrainState(params={}, opt_state=(), step=jnp.int32(0)), MetricWriter(tmp_path)
        )


def test_unknown_suites_are_told():
    with pytest.raises(ConfigError, match="eval_suites: 'proposal'; use one of one_click"):
        build({"eval_suites": ("one_click", "proposal")})
    both = {"eval_suites": ("part",), "eval_dataset": "paco", "eval_part_dataset": "pascal_part"}
    with pytest.raises(ConfigError, match=r"part would be measured on paco and on .* pascal_part"):
        build(both)


def test_parts_without_names_are_clicked(tmp_path):
    source = FakeParts()
    parts = EvalDataset(source, EvalFrame(32), is_sample=False)
    meta = META | {"class_heads_trained": False}
    evaluator = HeldOutEvaluation(Reading(), dataset(has_crowd=False), meta, parts=parts)
    writer = MetricWriter(tmp_path)
    found = evaluator.run(TrainState(params={}, opt_state=(), step=jnp.int32(0)), writer)
    assert found["classes"] == {"cat": {"masks": 1, "iou": 50.0}}
    writer.close()
    record = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert record["eval/num_instances"] == 1
    # The handle is strip 2: token 0 gives it alone, the chosen token 1 with strip 3 beside it,
    # which is not there.
    assert record["eval/part/click/num_instances"] == 1
    assert record["eval/part/click/iou_max"] == 100.0


def test_training_needs_no_extra():
    code = (
        "import sys\n"
        "for name in ('faster_coco_eval', 'matplotlib', 'skimage'): sys.modules[name] = None\n"
        "import semsam_jax.train.loop\n"
        "from semsam_jax.evals.extra import load_suites\n"
        "load_suites()\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert "ConfigError: evaluate: " in done.stderr
    assert "pip install 'semsam-jax[eval]'" in done.stderr


def test_a_part_of_the_images_is_spread_over_all_of_them():
    everything = open_dataset("coco", None, "val", EvalFrame(64), None).source.example_ids
    dataset, _ = open_dataset("coco", None, "val", EvalFrame(64), 3).surveyed()
    last = len(everything) - 1
    assert list(dataset.source.example_ids) == [everything[at] for at in (0, last // 2, last)]
    assert len(dataset.samples()) == 3
    assert dataset.notes[0] == f"coco: 3 of {last + 1} images are scored"
