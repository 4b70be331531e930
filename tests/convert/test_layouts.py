"""Pretrained parts as other projects store them, in files with their complete lists of names."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from semsam_jax.convert.from_torch import (
    convert_text_tower,
    from_torch,
    load_backbone,
    read_text_tower,
    text_logit_scale,
)
from semsam_jax.convert.names import unwrap
from semsam_jax.convert.torch_reader import read_state_dict
from semsam_jax.convert.tree import flatten
from semsam_jax.core.errors import ConversionError
from semsam_jax.models.presets import PRESETS

DATA = Path(__file__).parent.parent / "golden" / "data"
TINY = dataclasses.replace(PRESETS["tiny"], has_generic=False)
LANG = "sem_seg_head.predictor.lang_encoder."
OUT_NORM = re.compile(r"norm\d\.")


@pytest.fixture(scope="module")
def state():
    return unwrap(read_state_dict(DATA / "tiny_ref.pth"))


@pytest.fixture(scope="module")
def params(state):
    return from_torch(state, TINY).params


def renamed(state, names):
    out = {}
    for key, value in state.items():
        for old, new in names:
            key = re.sub(old, new, key)
        out[key] = value
    return out


def split(state, module, pieces, out):
    """Cuts joint linear layers into three."""
    cut = {}
    for key, value in state.items():
        found = re.fullmatch(rf"(.*)\.{module}(weight|bias)", key)
        if not found:
            cut[key] = value
            continue
        for piece, part in zip(pieces, np.split(value, 3), strict=True):
            cut[f"{found[1]}.{out}.{piece}.{found[2]}"] = part
    return cut


def backbone(state):
    kept = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    return {k: v for k, v in kept.items() if not OUT_NORM.match(k)}


def timm_swin(state):
    """timm 1.0, `model.safetensors`: patches are merged in front of a stage."""
    own = {k: v for k, v in backbone(state).items() if not k.endswith("relative_position_index")}
    own = {
        re.sub(r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) + 1}.downsample", k): v
        for k, v in own.items()
    }
    head = {"norm.weight": (192,), "norm.bias": (192,), "head.fc.weight": (10, 192)}
    head["head.fc.bias"] = (10,)
    return own | {key: np.zeros(shape, np.float32) for key, shape in head.items()}


def hf_swin(state):
    """transformers, `SwinForImageClassification`."""
    own = split(backbone(state), "attn.qkv.", ("query", "key", "value"), "attention.self")
    own = renamed(
        own,
        [
            (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
            (r"^patch_embed\.norm\.", "embeddings.norm."),
            (r"^layers\.", "encoder.layers."),
            (r"\.attn\.relative", ".attention.self.relative"),
            (r"\.attn\.proj\.", ".attention.output.dense."),
            (r"\.mlp\.fc1\.", ".intermediate.dense."),
            (r"\.mlp\.fc2\.", ".output.dense."),
            (r"(blocks\.\d+)\.norm1\.", r"\1.layernorm_before."),
            (r"(blocks\.\d+)\.norm2\.", r"\1.layernorm_after."),
        ],
    )
    own |= {f"layernorm.{x}": np.zeros(192, np.float32) for x in ("weight", "bias")}
    own = {f"swin.{key}": value for key, value in own.items()}
    zeros = {"classifier.weight": (10, 192), "classifier.bias": (10,)}
    return own | {key: np.zeros(shape, np.float32) for key, shape in zeros.items()}


def hf_swin_backbone(state):
    """transformers, `SwinBackbone`: norms of its own behind the stages."""
    own = hf_swin(state)
    own = {k.removeprefix("swin."): v for k, v in own.items() if k.startswith("swin.")}
    norms = {
        f"hidden_states_norms.stage{stage + 1}.{x}": state[f"backbone.norm{stage}.{x}"]
        for stage in range(4)
        for x in ("weight", "bias")
    }
    return {k: v for k, v in own.items() if not k.startswith("layernorm.")} | norms


def write(path, arrays):
    save_file({key: np.ascontiguousarray(value) for key, value in arrays.items()}, path)
    return path


@pytest.mark.parametrize("layout", [timm_swin, hf_swin, hf_swin_backbone])
def test_backbones(tmp_path, state, params, layout):
    sevens = {path: np.full_like(v, 7) for path, v in flatten(params["backbone"]).items()}
    loaded = flatten(load_backbone(write(tmp_path / "s.safetensors", layout(state)), TINY,
                                   params["backbone"]))  # fmt: skip
    assert loaded.keys() == sevens.keys()
    for path, value in loaded.items():
        np.testing.assert_array_equal(value, flatten(params["backbone"])[path])


def test_names_of_a_backbone_block(state):
    """As many as a block has in the published files."""
    assert len({k for k in timm_swin(state) if ".blocks.0." in k and "layers.0" in k}) == 13
    assert len({k for k in hf_swin(state) if "layers.0.blocks.0." in k}) == 18


def test_another_family_of_backbone_is_one_error(tmp_path, params):
    convnext = {"stem.0.weight": np.zeros((96, 3, 4, 4), np.float32)}
    path = write(tmp_path / "c.safetensors", convnext)
    with pytest.raises(ConversionError, match=r"missing +patch_embed\.proj\.weight"):
        load_backbone(path, TINY, params["backbone"])
    (tmp_path / "broken.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(ConversionError, match=r"a damaged safetensors file"):
        load_backbone(tmp_path / "broken.safetensors", TINY, params["backbone"])
    with pytest.raises(ConversionError, match=r"none\.safetensors: cannot be read"):
        load_backbone(tmp_path / "none.safetensors", TINY, params["backbone"])


def tower(state):
    """The tower with CLIP's 77 positions."""
    own = {k.removeprefix(LANG): v for k, v in state.items() if k.startswith(LANG)}
    position = own["lang_encoder.positional_embedding"]
    more = np.ones((77 - len(position), position.shape[1]), np.float32)
    own["lang_encoder.positional_embedding"] = np.concatenate([position, more])
    return own | {"logit_scale": np.array(4.25, np.float32)}


def open_clip(state):
    """`open_clip_model.safetensors` and OpenAI's own names."""
    own = {k.replace("lang_encoder.resblocks", "transformer.resblocks"): v
           for k, v in tower(state).items()}  # fmt: skip
    own = {k.replace("lang_encoder.", "").replace("lang_proj", "text_projection"): v
           for k, v in own.items()}  # fmt: skip
    return own | {"visual.conv1.weight": np.zeros((2, 3, 4, 4), np.float32)}


def open_clip_custom(state):
    """Its models with a text tower of their own: the prefix `text.`, a linear projection."""
    own = {k if k == "logit_scale" else f"text.{k}": v for k, v in open_clip(state).items()}
    own["text.text_projection.weight"] = own.pop("text.text_projection").T
    own["visual.conv1.weight"] = own.pop("text.visual.conv1.weight")
    return own | {"logit_bias": np.zeros((), np.float32)}


def hf_clip(state):
    """transformers, `CLIPModel`."""
    scale = {"logit_scale": tower(state)["logit_scale"]}
    own = {k: v for k, v in tower(state).items() if k not in ("logit_scale", "lang_proj")}
    own = split(own, "attn.in_proj_", ("q_proj", "k_proj", "v_proj"), "self_attn")
    own = renamed(
        own,
        [
            (r"^lang_encoder\.token_embedding\.", "embeddings.token_embedding."),
            (r"^lang_encoder\.positional_embedding$", "embeddings.position_embedding.weight"),
            (r"^lang_encoder\.ln_final\.", "final_layer_norm."),
            (r"^lang_encoder\.resblocks\.", "encoder.layers."),
            (r"\.attn\.out_proj\.", ".self_attn.out_proj."),
            (r"\.ln_([12])\.", r".layer_norm\1."),
            (r"\.mlp\.c_fc\.", ".mlp.fc1."),
            (r"\.mlp\.c_proj\.", ".mlp.fc2."),
        ],
    )
    own = {f"text_model.{key}": value for key, value in own.items()}
    own["text_model.embeddings.position_ids"] = np.arange(77)[None]
    own["text_projection.weight"] = tower(state)["lang_proj"].T
    image = {"vision_model.embeddings.class_embedding": np.zeros(4, np.float32)}
    return own | scale | image | {"visual_projection.weight": np.zeros((4, 4), np.float32)}


@pytest.mark.parametrize("layout", [open_clip, open_clip_custom, hf_clip])
def test_text_towers(tmp_path, state, params, layout):
    path = write(tmp_path / "t.safetensors", layout(state))
    loaded = flatten(convert_text_tower(read_text_tower(path), TINY, "tower"))
    wanted = flatten(params["text_encoder"])
    assert loaded.keys() == wanted.keys()
    for name, value in loaded.items():
        np.testing.assert_array_equal(value, wanted[name])
    np.testing.assert_allclose(text_logit_scale(read_text_tower(path)), 4.25)


def test_names_of_a_text_layer(state):
    assert len([k for k in open_clip(state) if "resblocks.0." in k]) == 12
    assert len([k for k in hf_clip(state) if "encoder.layers.0." in k]) == 16


def test_a_scale_above_a_hundred_is_a_hundred():
    too_large = {"logit_scale": np.array([5.0], np.float32)}
    np.testing.assert_allclose(text_logit_scale(too_large), np.log(100), rtol=1e-6)
    assert text_logit_scale({}) is None


def test_towers_of_another_width_or_without_a_projection_are_one_error(tmp_path, state):
    wide = hf_clip(state)
    wide["text_projection.weight"] = np.zeros((64, 32), np.float32)
    with pytest.raises(ConversionError, match=r"lang_proj: got \(32, 64\), expected \(32, 48\)"):
        convert_text_tower(read_text_tower(write(tmp_path / "w.safetensors", wide)), TINY, "tower")
    bare = {k: v for k, v in hf_clip(state).items() if k.startswith("text_model.")}
    with pytest.raises(ConversionError, match=r"missing +lang_proj"):
        convert_text_tower(read_text_tower(write(tmp_path / "b.safetensors", bare)), TINY, "tower")
