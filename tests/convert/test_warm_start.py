"""ImageNet backbones and CLIP-layout text towers as a start."""

import dataclasses
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from semsam_jax.convert.detect import text_config_of
from semsam_jax.convert.from_torch import (
    convert_text_tower,
    from_torch,
    load_backbone,
    read_text_tower,
    resize_bias_table,
)
from semsam_jax.convert.names import unwrap
from semsam_jax.convert.torch_reader import read_state_dict
from semsam_jax.convert.torch_writer import write_state_dict
from semsam_jax.convert.tree import flatten
from semsam_jax.core.errors import ConversionError
from semsam_jax.models.presets import PRESETS

DATA = Path(__file__).parent.parent / "golden" / "data"
TINY = dataclasses.replace(PRESETS["tiny"], has_generic=False)
LANG = "sem_seg_head.predictor.lang_encoder."


@pytest.fixture(scope="module")
def state():
    return unwrap(read_state_dict(DATA / "tiny_ref.pth"))


@pytest.fixture(scope="module")
def params(state):
    return from_torch(state, TINY).params


def imagenet(state):
    """The backbone as the Swin authors save it: classifier, masks, no norms per level."""
    kept = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    kept = {k: v for k, v in kept.items() if not re.match(r"norm\d", k)}
    extra = {
        "norm.weight": np.ones(192, np.float32),
        "norm.bias": np.zeros(192, np.float32),
        "head.weight": np.zeros((10, 192), np.float32),
        "head.bias": np.zeros(10, np.float32),
        "layers.0.blocks.1.attn_mask": np.zeros((4, 49, 49), np.float32),
    }
    return kept | extra


def fresh(params):
    return {k: fresh(v) if isinstance(v, dict) else np.full_like(v, 7) for k, v in params.items()}


def test_imagenet_backbone(tmp_path, state, params):
    write_state_dict(tmp_path / "swin.pth", imagenet(state), wrapper="model")
    own = fresh(params["backbone"])
    loaded = load_backbone(tmp_path / "swin.pth", TINY, own)
    wanted = flatten(params["backbone"])
    assert flatten(loaded).keys() == wanted.keys()
    for path, value in flatten(loaded).items():
        expected = 7 if path.startswith("out_norm") else wanted[path]
        np.testing.assert_array_equal(value, np.broadcast_to(expected, value.shape))
    assert all((leaf == 7).all() for leaf in flatten(own).values())


def test_backbone_of_a_whole_model_brings_its_norms(params):
    loaded = load_backbone(DATA / "tiny_ref.pth", TINY, fresh(params["backbone"]))
    wanted = flatten(params["backbone"])
    assert flatten(loaded).keys() == wanted.keys()
    for path, value in flatten(loaded).items():
        np.testing.assert_array_equal(value, wanted[path])


def test_bias_tables_of_another_window_are_resized(tmp_path, state, params):
    swin = dataclasses.replace(TINY.backbone, window_size=12)
    config = dataclasses.replace(TINY, backbone=swin)
    write_state_dict(tmp_path / "swin.pth", imagenet(state))
    loaded = load_backbone(tmp_path / "swin.pth", config, fresh(params["backbone"]))
    table = loaded["stage0"]["pairs"]["regular"]["attn"]["relative_position_bias_table"]
    assert table.shape == (1, 23 * 23, 2)
    original = state["backbone.layers.0.blocks.0.attn.relative_position_bias_table"]
    np.testing.assert_array_equal(table[0], resize_bias_table(original, 23 * 23))


@pytest.mark.parametrize(("size", "wanted"), [(13, 23), (23, 13), (13, 14)])
def test_resizing_equals_opencv_bicubic(size, wanted):
    table = np.random.default_rng(0).normal(size=(size * size, 3)).astype(np.float32)
    resized = resize_bias_table(table, wanted * wanted)
    for head in range(3):
        grid = table[:, head].reshape(size, size)
        oracle = cv2.resize(grid, (wanted, wanted), interpolation=cv2.INTER_CUBIC)
        np.testing.assert_allclose(resized[:, head].reshape(wanted, wanted), oracle, atol=2e-6)


def test_wrong_backbones_are_described(tmp_path, state, params):
    broken = imagenet(state)
    broken["layers.0.blocks.0.attn.logit_scale"] = np.zeros(3, np.float32)
    del broken["layers.1.blocks.0.mlp.fc1.bias"]
    write_state_dict(tmp_path / "swin.pth", broken)
    with pytest.raises(ConversionError) as caught:
        load_backbone(tmp_path / "swin.pth", TINY, params["backbone"])
    assert "missing      layers.1.blocks.0.mlp.fc1.bias" in str(caught.value)
    assert "unexpected   layers.0.blocks.0.attn.logit_scale" in str(caught.value)
    with pytest.raises(ConversionError, match="misshaped"):
        load_backbone(DATA / "tiny_ref.pth", PRESETS["swin_t"], params["backbone"])
    with pytest.raises(ConversionError, match="not a Swin"):
        load_backbone(DATA / "tiny_ref.pth", PRESETS["lite"], {})


def clip_layout(state, context=77):
    """The same tower under CLIP's names, with a longer context and an image encoder."""
    renamed = {"visual.conv1.weight": np.zeros((2, 3, 4, 4), np.float32)}
    for key, value in state.items():
        if not key.startswith(LANG):
            continue
        key = key.removeprefix(LANG)
        if key == "lang_encoder.positional_embedding":
            value = np.concatenate([value, np.ones((context - len(value), 32), np.float32)])
        key = key.replace("lang_encoder.resblocks.", "transformer.resblocks.")
        key = key.replace("lang_encoder.", "").replace("lang_proj", "text_projection")
        renamed[key] = value
    return renamed


@pytest.mark.parametrize("layout", ["whole model", "original", "clip"])
def test_text_towers(tmp_path, state, params, layout):
    path = tmp_path / "text.pth"
    if layout == "whole model":
        path = DATA / "tiny_ref.pth"
    elif layout == "original":
        tower = {k.removeprefix(LANG): v for k, v in state.items() if k.startswith(LANG)}
        write_state_dict(path, tower)
    else:
        write_state_dict(path, clip_layout(state), wrapper="state_dict")
    loaded = flatten(convert_text_tower(read_text_tower(path), TINY, "tower"))
    wanted = flatten(params["text_encoder"])
    assert loaded.keys() == wanted.keys()
    for name, value in loaded.items():
        np.testing.assert_array_equal(value, wanted[name])
    sizes = text_config_of(read_text_tower(path))
    assert dataclasses.replace(sizes, num_heads=4) == TINY.text


def test_wrong_text_towers_are_described(tmp_path, state):
    short = clip_layout(state)
    short["positional_embedding"] = short["positional_embedding"][:10]
    write_state_dict(tmp_path / "t.pth", short)
    with pytest.raises(ConversionError, match=r"positional_embedding: got \(10, 32\)"):
        convert_text_tower(read_text_tower(tmp_path / "t.pth"), TINY, "tower")
    with pytest.raises(ConversionError, match="no text tower"):
        convert_text_tower(
            read_text_tower(tmp_path / "t.pth"), dataclasses.replace(TINY, text=None), "tower"
        )
    write_state_dict(tmp_path / "t.pth", {"a": np.zeros(1, np.float32)})
    with pytest.raises(ConversionError, match="no CLIP-like text tower"):
        text_config_of(read_text_tower(tmp_path / "t.pth"))
