"""Every recipe takes real steps on the sample, made small by overrides alone; then fine-tuning."""

import json
import shutil

import jax
import numpy as np
import pytest

from data_pipelines import sample
from semsam_jax import load_model
from semsam_jax.core import checkpoint_io
from semsam_jax.train.optimizer import is_frozen
from tests.e2e import runs

pytestmark = pytest.mark.timeout(3000)
SMALL = {key: value for key, value in runs.SMALL.items() if not key.startswith("text")} | {
    "data.num_workers": 0,
    "data.mask_stride": 2,
    "steps": 2,
    "save_every": 2,
    "eval_every": 0,
}
RECIPES = ("sa1b.py:swin_t", "reproduce_sam.py", "generic_coco.py")
STREAM = {"sa1b": "interactive", "reproduce_sam": "interactive", "generic_coco": "generic"}


def _run(workdir, cache, config, values=SMALL, **changes):
    done = runs.run(workdir, cache, config=config, values=values, **changes)
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["one_click_iou_max_after"] is not None
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return done.stdout, [record for record in records if "loss" in record]


def _rows(config):
    """Quotas of a small run: a stream that the recipe leaves out stays out."""
    only = STREAM.get(config.split(".")[0])
    other = {"interactive": "generic", "generic": "interactive"}.get(only)
    return {f"data__{other}_batch": 0} if other else {}


@pytest.mark.parametrize("config", RECIPES)
def test_a_recipe_takes_steps(config, cache, tmp_path):
    _, records = _run(tmp_path / "run", cache, config, **_rows(config))
    assert [record["step"] for record in records] == [1, 2]
    for record in records:
        assert np.isfinite(record["loss"])
        assert record["grad_norm/all"] > 0
        streams = {key.split("/")[0] for key in record} & {"interactive", "generic"}
        only = STREAM.get(config.split(".")[0])
        assert streams == ({only} if only else {"interactive", "generic"})


@pytest.fixture(scope="module")
def trained(cache, tmp_path_factory):
    """The checkpoint that fine-tuning starts from, by the fourth recipe."""
    workdir = tmp_path_factory.mktemp("joint") / "run"
    _, records = _run(workdir, cache, "joint.py:swin_l")
    assert np.isfinite(records[-1]["loss"])
    return workdir


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A user's folder, made of the COCO photos of the sample."""
    root, coco = tmp_path_factory.mktemp("own"), sample.roots()["coco"]
    (root / "annotations").mkdir()
    for split in ("train", "val"):
        shutil.copytree(coco / f"{split}2017", root / split)
        file = coco / "annotations" / f"instances_{split}2017.json"
        shutil.copy(file, root / "annotations" / f"{split}.json")
    return root


def _flat(params):
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


@pytest.mark.parametrize("mode", ["frozen", "lora"])
def test_finetuning_changes_what_it_may_and_keeps_the_best(mode, trained, own, cache, tmp_path):
    changes = {"model__warm_start": trained, "data__own": own, "eval_every": 1}
    small = {key: value for key, value in SMALL.items() if key != "eval_every"}
    for key in ("model.preset", "model.backbone_weights", "data.image_size"):
        del small[key]
    said, records = _run(tmp_path / "run", cache, f"finetune.py:{mode}", small, **changes)
    assert "preset tiny" in said
    assert "64 px" in said
    assert len(records) == 2
    before, _ = checkpoint_io.read_model(trained)
    after, meta = checkpoint_io.read_model(tmp_path / "run")
    before, after = _flat(before), _flat(after)
    assert before.keys() == after.keys()
    same = {name for name in before if np.array_equal(before[name], after[name])}
    moved = before.keys() - same
    assert any(name.startswith("decoder/") for name in moved)
    if mode == "frozen":
        assert {name for name in before if is_frozen(name, ("backbone", "pixel_decoder"))} <= same
    else:
        # Of the fixed parts, stacked linear layers alone have moved, by their updates.
        inside = {name for name in moved if name.startswith(("backbone/", "decoder/layers/"))}
        assert inside
        assert all(name.endswith("/kernel") for name in inside)
    assert meta["before"]["num_instances"] > 0
    best = checkpoint_io.read_meta(tmp_path / "run" / "best")
    assert best["score"] >= meta["after"]["iou_max"]
    assert load_model(tmp_path / "run" / "best").meta["score"] == best["score"]
