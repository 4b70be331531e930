"""Checkpoints that do not describe a model: one line that names the thing and the way out."""

import dataclasses

import jax
import numpy as np
import pytest

from semsam_jax.core import export_cache
from semsam_jax.core.errors import CheckpointError
from semsam_jax.core.model_files import save_model
from semsam_jax.inference import loading
from semsam_jax.inference.loading import load_model, model_from_params
from semsam_jax.inference.predictor import Predictor
from semsam_jax.models.presets import PRESETS
from semsam_jax.models.semantic_sam import SemanticSAM
from tests.inference.conftest import tiny_meta


def test_parameters_of_another_architecture(tiny_params, tmp_path):
    config, params = tiny_params
    other = dataclasses.replace(config, backbone=PRESETS["swin_t"].backbone)
    save_model(tmp_path, params, tiny_meta(other))
    with pytest.raises(CheckpointError) as caught:
        load_model(tmp_path)
    message = str(caught.value)
    assert str(tmp_path) in message
    assert "backbone/patch_embed/proj/kernel is (4, 4, 3, 24), expected (4, 4, 3, 96)" in message
    assert "--model-config" in message
    assert message.count("\n") == 0


def test_a_tree_with_a_leaf_too_few_and_one_too_many(tiny_params):
    config, params = tiny_params
    decoder = {k: v for k, v in params["decoder"].items() if k != "iou_head"}
    decoder["quality_head"] = np.zeros(3, np.float32)
    with pytest.raises(CheckpointError, match=r"no decoder/iou_head.*4 more"):
        model_from_params({**params, "decoder": decoder}, tiny_meta(config))


def test_a_model_config_of_another_release(tiny_params):
    config, params = tiny_params
    meta = tiny_meta(config)
    meta["model_config"]["decoder"]["magic"] = 3
    with pytest.raises(CheckpointError, match=r"model_config is not one of this release.*magic"):
        model_from_params(params, meta)


def test_sizes_belong_to_files_only(tiny_checkpoint):
    with pytest.raises(CheckpointError, match="knows its own sizes"):
        load_model(tiny_checkpoint, model_config="sizes.json")


def test_a_model_shows_itself_in_one_line(tiny_params):
    config, params = tiny_params
    count = sum(np.size(leaf) for leaf in jax.tree.leaves(params))
    shown = repr(model_from_params(params, tiny_meta(config)))
    assert shown == f"LoadedModel(tiny, {count:,} parameters, float32)"


@pytest.mark.nightly  # at each push in `tests/e2e/test_main.py`
def test_a_second_process_segments_without_tracing_the_network(
    tiny_checkpoint, tiny_model, image_a, tmp_path, monkeypatch
):
    """The first one writes its traced programs; masks are those of a model that keeps none."""

    def click(model):
        predictor = Predictor(model)
        predictor.set_image(image_a)
        return predictor.predict(point_coords=[[30, 40]], return_logits=True)

    def forget():
        monkeypatch.setattr(export_cache, "_programs", {})
        for function in (loading._encode, loading._decode):
            function.clear_cache()

    wanted = click(tiny_model)
    monkeypatch.setenv("SEMSAM_JAX_CACHE", str(tmp_path))
    forget()
    first = click(load_model(tiny_checkpoint))
    names = sorted(file.name.split("-")[0] for file in (tmp_path / export_cache.FOLDER).iterdir())
    assert names == ["decode", "encode"]
    forget()
    for method in ("encode_image", "decode_prompts"):
        monkeypatch.delattr(SemanticSAM, method)
    second = click(load_model(tiny_checkpoint))
    for found in (first, second):
        np.testing.assert_allclose(found.masks, wanted.masks, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found.scores, wanted.scores, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(second.masks, first.masks)
