"""Every recipe takes real steps on small data, by overrides alone; fine-tuning in its modes."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from semsam_jax.__main__ import main
from semsam_jax.core import checkpoint_io
from tests.e2e import runs

pytestmark = pytest.mark.timeout(3000)
COCO = runs.ROOT / "data_pipelines" / "sample" / "data" / "coco"
RELEASED = Path(__file__).parents[1] / "golden" / "data" / "tiny_ref.pth"
STEPS = 2
# Sizes and machine, nothing of the recipe itself.
REDUCED = {
    "model.preset": "tiny",
    "model.dtype": "float32",
    "model.remat": "none",
    "data.image_size": 64,
    "data.max_instances": 12,
    "data.num_prompts": 4,
    "data.num_workers": 0,
    "loss.num_points": 64,
    "loss.match_points": 64,
    "fsdp": 1,
    "steps": STEPS,
    "save_every": STEPS,
    "log_every": 1,
    "eval_photos": 0,
}


def train(cache, workdir, config, **changes):
    """Runs a recipe at reduced size; returns its metrics and its checkpoint's meta."""
    done = runs.run(workdir, cache, config=config, values=REDUCED, **changes)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    metrics = [record for record in map(json.loads, lines) if "loss" in record]
    assert [record["step"] for record in metrics] == list(range(1, STEPS + 1))
    assert all(np.isfinite(record["loss"]) for record in metrics)
    return metrics, checkpoint_io.read_meta(workdir)


def test_sa1b_trains_clicks_without_names(cache, tmp_path):
    metrics, meta = train(cache, tmp_path / "run", "sa1b.py", data__interactive_batch=2)
    assert not any(key.startswith("generic/") or "class" in key for key in metrics[0])
    assert not meta["class_heads_trained"]
    assert meta["config"]["loss"]["detach_iou_target"] is False


def test_reproduce_sam_trains_three_tokens_many_to_one(cache, tmp_path):
    metrics, meta = train(cache, tmp_path / "run", "reproduce_sam.py", data__interactive_batch=2)
    assert meta["model_config"]["decoder"]["num_tokens"] == 3
    assert meta["config"]["loss"]["many_to_one"] is True
    # One target for each of the prompts of two rows.
    assert metrics[0]["interactive/num_pairs"] <= 2 * REDUCED["data.num_prompts"]


def test_generic_coco_trains_without_prompts(cache, tmp_path):
    metrics, meta = train(cache, tmp_path / "run", "generic_coco.py", data__generic_batch=2)
    assert not any(key.startswith("interactive/") for key in metrics[0])
    assert metrics[0]["generic/object_class"] > 0
    assert meta["class_heads_trained"]


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A COCO-format folder: six photos to train with and two to validate."""
    folder = tmp_path_factory.mktemp("own")
    content = json.loads((COCO / "annotations" / "instances_train2017.json").read_text())
    for name, images in (("train", content["images"][:6]), ("val", content["images"][6:8])):
        (folder / name).mkdir()
        for image in images:
            shutil.copy(COCO / "train2017" / image["file_name"], folder / name)
        ids = {image["id"] for image in images}
        annotations = [a for a in content["annotations"] if a["image_id"] in ids]
        part = {**content, "images": images, "annotations": annotations}
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / "annotations" / f"{name}.json").write_text(json.dumps(part))
    return folder


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A converted file in the layout of the released ones."""
    out = tmp_path_factory.mktemp("released")
    assert main(["convert", str(RELEASED), "--out", str(out)]) == 0
    return out


def changed(before, after):
    """Names of the parameters that differ between two trees."""

    def flat(tree):
        leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
        return {jax.tree_util.keystr(k, simple=True, separator="/"): v for k, v in leaves}

    before, after = flat(before), flat(after)
    return {key for key in before if not np.array_equal(before[key], after[key])}


@pytest.mark.parametrize("mode", ["frozen", "lora", "full"])
def test_finetune_changes_what_its_mode_says(mode, released, own, cache, tmp_path):
    workdir = tmp_path / "run"
    train(
        cache,
        workdir,
        f"finetune.py:{mode}",
        model__preset="checkpoint",
        model__warm_start=released,
        data__own=own,
        data__interactive_batch=2,
        data__generic_batch=0,
        optimizer__warmup_steps=1,
        eval_photos=2,
        eval_every=1,
    )
    start, _ = checkpoint_io.read_model(released)
    params, _ = checkpoint_io.read_model(workdir)
    moved = changed(start, params)
    assert any(key.startswith("decoder/mask_embed") for key in moved)
    tops = {key.split("/")[0] for key in moved}
    if mode == "frozen":
        assert tops <= {"decoder", "prompt_encoder", "denoising", "query_selector"}
        assert any(key.startswith("decoder/layers") for key in moved)
    elif mode == "lora":
        # Of what is fixed, only the kernels of stacked linear layers moved: by their updates.
        fixed = {
            key
            for key in moved
            if key.startswith(("backbone/", "pixel_decoder/", "decoder/layers"))
        }
        assert {"backbone", "pixel_decoder", "decoder"} <= {key.split("/")[0] for key in fixed}
        assert all(key.endswith("/kernel") for key in fixed)
        assert "prompt_encoder" not in tops
    else:
        assert {"backbone", "pixel_decoder", "decoder", "prompt_encoder"} <= tops
    best = checkpoint_io.read_meta(workdir / "best")
    assert best["model_config"] == checkpoint_io.read_meta(workdir)["model_config"]
    summary = json.loads((workdir / "summary.json").read_text())
    assert 0 <= summary["one_click_iou_max_after"] <= summary["one_click_iou_oracle_after"] <= 1
