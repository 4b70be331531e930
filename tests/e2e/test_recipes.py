"""Every recipe builds its step on small data, by overrides alone; fine-tuning in its modes.

What each recipe's step computes is traced; that it runs, too, is seen nightly.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import finetune, generic_coco, reproduce_sam, sa1b
from semsam_jax import config as config_lib
from semsam_jax.__main__ import main
from semsam_jax.config import RunConfig
from semsam_jax.core import checkpoint_io
from semsam_jax.models.semantic_sam import SemanticSAM
from semsam_jax.parallel.mesh import build_mesh
from semsam_jax.train import aot, build
from semsam_jax.train import input as input_lib
from semsam_jax.train.abstract import AbstractInputs, abstract_inputs
from semsam_jax.train.step import TrainStep
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
    "eval_images": 0,
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


@dataclasses.dataclass
class Built:
    """A recipe at reduced size, as shapes: nothing of it is compiled or run."""

    run: RunConfig
    model: SemanticSAM
    step: TrainStep
    inputs: AbstractInputs

    def metrics(self) -> set[str]:
        """Names of what a step reports, from tracing both of its programs."""
        _, backward = aot.trace(self.step, self.inputs.state, self.inputs.batch, self.inputs.text)
        _, metrics = backward.traced.out_info
        return set(metrics)


def built(config, **values) -> Built:
    """Builds a recipe with its overrides."""
    config.update_from_flattened_dict(
        REDUCED | {k.replace("__", "."): v for k, v in values.items()}
    )
    run = config_lib.build(config)
    if config_lib.needs_checkpoint(run):
        run = config_lib.inherit_from_checkpoint(run, checkpoint_io.read_meta(run.model.warm_start))
    mesh = build_mesh(1, jax.devices()[:1])
    model = build.build_model(run)
    tx = build.build_tx(run, model)
    vocabulary = input_lib.open_vocabulary(run, input_lib.used_datasets(run))
    sizes = (vocabulary.num_objects, len(vocabulary))
    step = build.build_step(run, model, tx, mesh, sizes[0])
    return Built(run, model, step, abstract_inputs(run, model, tx, mesh, *sizes))


def test_sa1b_learns_from_clicks_without_names():
    recipe = built(sa1b.get_config(), data__interactive_batch=2)
    metrics = recipe.metrics()
    assert "interactive/mask_bce" in metrics
    assert not any(key.startswith("generic/") or "class" in key for key in metrics)
    assert recipe.run.loss.detach_iou_target is False


def test_reproduce_sam_learns_three_tokens_many_to_one():
    recipe = built(reproduce_sam.get_config(), data__interactive_batch=2)
    assert recipe.model.config.decoder.num_tokens == 3
    assert recipe.run.loss.many_to_one is True
    assert "interactive/num_pairs" in recipe.metrics()


def test_generic_coco_learns_without_prompts():
    metrics = built(generic_coco.get_config(), data__generic_batch=2).metrics()
    assert not any(key.startswith("interactive/") for key in metrics)
    assert "generic/object_class" in metrics


@pytest.mark.parametrize("mode", ["frozen", "lora", "full"])
def test_finetune_keeps_moments_of_what_its_mode_trains(mode, released, own):
    sizes = {"data__interactive_batch": 2, "data__generic_batch": 0}
    recipe = built(
        finetune.get_config(mode), model__warm_start=str(released), data__custom=str(own), **sizes
    )
    leaves, _ = jax.tree_util.tree_flatten_with_path(recipe.inputs.state.opt_state)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]

    def trained(group):
        return any(f"/mu/{group}/" in path for path in paths)

    assert trained("decoder/mask_embed")
    assert trained("prompt_encoder") == (mode != "lora")
    assert trained("backbone") == (mode == "full")


@pytest.mark.nightly
def test_sa1b_runs(cache, tmp_path):
    metrics, meta = train(cache, tmp_path / "run", "sa1b.py", data__interactive_batch=2)
    assert not any(key.startswith("generic/") or "class" in key for key in metrics[0])
    assert not meta["class_heads_trained"]
    assert meta["config"]["loss"]["detach_iou_target"] is False


@pytest.mark.nightly
def test_reproduce_sam_runs(cache, tmp_path):
    metrics, meta = train(cache, tmp_path / "run", "reproduce_sam.py", data__interactive_batch=2)
    assert meta["model_config"]["decoder"]["num_tokens"] == 3
    assert meta["config"]["loss"]["many_to_one"] is True
    # One target for each of the prompts of two rows.
    assert metrics[0]["interactive/num_pairs"] <= 2 * REDUCED["data.num_prompts"]


@pytest.mark.nightly
def test_generic_coco_runs(cache, tmp_path):
    metrics, meta = train(cache, tmp_path / "run", "generic_coco.py", data__generic_batch=2)
    assert not any(key.startswith("interactive/") for key in metrics[0])
    assert metrics[0]["generic/object_class"] > 0
    assert meta["class_heads_trained"]


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A COCO-format folder: six images to train with and two to validate."""
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


@pytest.mark.nightly
@pytest.mark.parametrize("mode", ["frozen", "lora", "full"])
def test_finetune_changes_what_its_mode_says(mode, released, own, cache, tmp_path):
    workdir = tmp_path / "run"
    train(
        cache,
        workdir,
        f"finetune.py:{mode}",
        model__preset="checkpoint",
        model__warm_start=released,
        data__custom=own,
        data__interactive_batch=2,
        data__generic_batch=0,
        optimizer__warmup_steps=1,
        eval_images=2,
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
