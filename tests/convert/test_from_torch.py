"""Every name of the original maps; wrong files are described in full; the way back is exact."""

import ast
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from semsam_jax.convert.detect import detect_config, load_model_config, with_branches_of
from semsam_jax.convert.from_torch import examine, from_torch
from semsam_jax.convert.names import unwrap
from semsam_jax.convert.rules import PARTS, rules_for
from semsam_jax.convert.to_torch import to_torch
from semsam_jax.convert.torch_reader import read_state_dict
from semsam_jax.convert.torch_writer import write_state_dict
from semsam_jax.convert.tree import flatten
from semsam_jax.core.errors import ConfigError, ConversionError
from semsam_jax.models.presets import PRESETS
from semsam_jax.ops.windows import relative_position_index

DATA = Path(__file__).parent.parent / "golden" / "data"
TINY = dataclasses.replace(PRESETS["tiny"], has_generic=False)


def key_list(name):
    """Names and shapes as the original prints them, without `model.`."""
    rows = (DATA / f"state_dict_{name}.txt").read_text().splitlines()
    fields = [row.split("\t") for row in rows if not row.startswith("#")]
    return {f[0].removeprefix("model."): (ast.literal_eval(f[1]), f[2], f[4:]) for f in fields}


def hollow_state(keys, window):
    """Arrays of the right shapes that take no memory."""
    state = {}
    for key, (shape, _, _) in keys.items():
        state[key] = np.broadcast_to(np.float32(0), shape)
        if key.endswith("relative_position_index"):
            state[key] = relative_position_index(window).astype(np.int64)
    return state


@pytest.fixture(scope="module")
def tiny_state():
    return unwrap(read_state_dict(DATA / "tiny_ref.pth"))


@pytest.fixture(scope="module")
def generic_state(tiny_state):
    return {**tiny_state, **unwrap(read_state_dict(DATA / "tiny_generic_ref.pth"))}


@pytest.mark.parametrize(
    ("lists", "preset", "window", "num_params"),
    [
        (("swint",), "swin_t", 7, 52_980_543),
        (("swinl",), "swin_l", 12, 222_799_161),
        (("swint", "text"), "swin_t", 7, 116_378_432),
    ],
)
def test_full_size_key_lists_map_completely(lists, preset, window, num_params):
    keys = {key: value for name in lists for key, value in key_list(name).items()}
    state = hollow_state(keys, window)
    name, config = detect_config(state)
    assert name == preset
    assert config.backbone == PRESETS[preset].backbone
    assert config.decoder == PRESETS[preset].decoder
    assert (config.text is not None) == ("text" in lists)
    assert not config.has_generic
    report = examine(state, config)
    report.check("list")
    assert report.is_complete
    assert not report.unexpected
    assert set(report.ignored) == {k for k in keys if k.endswith("relative_position_index")}
    # The list says which names share one tensor: exactly those are aliases.
    shared = {key for key, value in keys.items() if value[2]}
    assert len(shared) == len(report.aliased)
    rules = rules_for(config)
    count = sum(len(r.keys) * int(np.prod(r.shape)) for r in rules if r.path in report.mapped)
    assert count == num_params
    defaulted = {} if "text" in lists else {"decoder/logit_scale": 1.0}
    assert report.defaulted == defaulted


def test_full_size_swin_t_converts_and_returns_bit_equal(tmp_path):
    rng = np.random.default_rng(0)
    keys = key_list("swint")
    index = relative_position_index(7).astype(np.int64)
    state, first = {}, {}
    for key, (shape, _, shared) in keys.items():
        if key.endswith("relative_position_index"):
            state[key] = index
        else:
            name = shared[0].split("=")[1].removeprefix("model.") if shared else key
            if name not in first:
                first[name] = rng.standard_normal(shape, np.float32)
            state[key] = first[name]
    _, config = detect_config(state)
    params = from_torch(state, config).params
    back = to_torch(params, config)
    write_state_dict(tmp_path / "t.pth", back.tensors, aliases=back.aliases, wrapper="model")
    again = unwrap(read_state_dict(tmp_path / "t.pth"))
    assert again.keys() == keys.keys()
    for key, (shape, dtype, _) in keys.items():
        assert again[key].shape == shape
        assert again[key].dtype == dtype
        np.testing.assert_array_equal(again[key], state[key])


def test_golden_file_round_trip_is_bit_equal(tiny_state, tmp_path):
    converted = from_torch(tiny_state, TINY)
    back = to_torch(converted.params, TINY)
    write_state_dict(tmp_path / "t.pth", back.tensors, aliases=back.aliases, wrapper="model")
    again = unwrap(read_state_dict(tmp_path / "t.pth"))
    assert again.keys() == tiny_state.keys() - {"criterion.empty_weight"}
    for key, value in again.items():
        assert value.dtype == tiny_state[key].dtype
        assert value.tobytes() == tiny_state[key].tobytes()
    assert np.shares_memory(
        again["sem_seg_head.predictor.decoder_norm.weight"],
        again["sem_seg_head.predictor.decoder.norm.weight"],
    )


def test_layouts_stacks_and_pairs(tiny_state):
    params = from_torch(tiny_state, TINY).params
    qkv = params["backbone"]["stage1"]["pairs"]["shifted"]["attn"]["qkv"]["kernel"]
    np.testing.assert_array_equal(
        qkv[0], tiny_state["backbone.layers.1.blocks.1.attn.qkv.weight"].T
    )
    stem = params["backbone"]["patch_embed"]["proj"]["kernel"]
    np.testing.assert_array_equal(
        stem[2, 1, 0], tiny_state["backbone.patch_embed.proj.weight"][:, 0, 2, 1]
    )
    linear1 = params["decoder"]["layers"]["linear1"]["kernel"]
    name = "sem_seg_head.predictor.decoder.layers.2.linear1.weight"
    np.testing.assert_array_equal(linear1[2], tiny_state[name].T)
    np.testing.assert_allclose(params["decoder"]["logit_scale"], 1.7, rtol=1e-6)
    assert params["decoder"]["logit_scale"].shape == ()
    assert all(leaf.dtype == np.float32 for leaf in flatten(params).values())
    assert set(params) == set(PARTS) - {"query_selector", "memory_projection"}


def test_generic_branch_and_parts(generic_state):
    name, config = detect_config(generic_state)
    assert name == "tiny"
    assert config == PRESETS["tiny"]
    params = from_torch(generic_state, config).params
    assert set(params) == set(PARTS) - {"memory_projection"}
    only = unwrap(read_state_dict(DATA / "tiny_generic_ref.pth"))
    part = from_torch(only, config, parts=("query_selector", "denoising"))
    assert set(part.params) == {"query_selector", "denoising"}
    np.testing.assert_array_equal(
        part.params["query_selector"]["enc_output"]["kernel"],
        only["sem_seg_head.predictor.enc_output.weight"].T,
    )
    assert "belongs to decoder" in part.report.ignored["sem_seg_head.predictor.class_embed"]
    with pytest.raises(ConversionError, match="bogus"):
        from_torch(only, config, parts=("bogus",))


def test_all_problems_come_at_once(tiny_state):
    state = dict(tiny_state)
    moved = "backbone.layers.0.blocks.0.mlp.fc1.weight"
    state["backbone.layers.0.blocks.0.mlp.fcl.weight"] = state.pop(moved)
    state["backbone.norm0.weight"] = np.zeros(7, np.float32)
    alias = "sem_seg_head.predictor.decoder.norm.weight"
    state[alias] = state[alias] + 1
    with pytest.raises(ConversionError) as caught:
        from_torch(state, TINY, where="checkpoint x.pth")
    text = str(caught.value)
    assert text.startswith("checkpoint x.pth: does not fit")
    assert f"missing      {moved} (the file has backbone.layers.0.blocks.0.mlp.fcl" in text
    assert "misshaped    backbone.norm0.weight: got (7,), expected (24,)" in text
    assert f"conflicting  {alias}: should be the same tensor as" in text
    assert "unexpected   backbone.layers.0.blocks.0.mlp.fcl.weight" in text
    assert "missing      1\n" in examine(state, TINY).table()


def test_unexpected_names_are_an_error_unless_allowed(tiny_state):
    state = {**tiny_state, "head.weight": np.zeros(3, np.float32)}
    with pytest.raises(ConversionError, match=r"unexpected +head\.weight"):
        from_torch(state, TINY)
    allowed = from_torch(state, TINY, allow_unexpected=True)
    assert allowed.report.unexpected == ["head.weight"]


def test_a_missing_name_is_replaced_by_its_alias(tiny_state):
    state = dict(tiny_state)
    del state["sem_seg_head.predictor.decoder_norm.weight"]
    report = from_torch(state, TINY).report
    assert report.mapped["decoder/norm/scale"] == ("sem_seg_head.predictor.decoder.norm.weight",)


def test_another_window_is_noticed(tiny_state):
    state = dict(tiny_state)
    key = "backbone.layers.0.blocks.0.attn.relative_position_index"
    state[key] = state[key].T
    with pytest.raises(ConversionError, match="index table of window size 7"):
        from_torch(state, TINY)


def test_half_precision_files_become_float32(tiny_state):
    state = {k: v.astype(np.float16) if v.dtype == np.float32 else v for k, v in tiny_state.items()}
    params = from_torch(state, TINY).params
    assert params["decoder"]["norm"]["scale"].dtype == np.float32


def test_unknown_sizes_ask_for_a_model_config(tiny_state):
    state = {**tiny_state, "backbone.patch_embed.proj.weight": np.zeros((32, 3, 4, 4))}
    with pytest.raises(ConversionError, match=r"embed_dim 32.*--model-config"):
        detect_config(state)
    with pytest.raises(ConversionError, match=r"not a Semantic-SAM model.*--backbone"):
        detect_config({"conv1.weight": np.zeros(3)})


def test_model_config_file(tmp_path):
    config = load_model_config(DATA / "tiny_config.json")
    assert config.backbone == TINY.backbone
    assert config.pixel_decoder == TINY.pixel_decoder
    assert config.text == TINY.text
    assert not config.has_generic
    assert rules_for(config) == rules_for(TINY)
    tree = json.loads((DATA / "tiny_config.json").read_text())

    def written(section, **changes):
        changed = {**tree, section: {**tree[section], **changes}}
        (tmp_path / "c.json").write_text(json.dumps(changed))
        return tmp_path / "c.json"

    assert load_model_config(written("decoder", two_stage=True)).has_generic
    assert load_model_config(written("text", arch="noencoder")).text is None
    assert load_model_config(written("pixel_decoder", norm="GN")) == config
    assert (
        load_model_config(written("generic_tiny", num_object_queries=33)).decoder.num_queries == 33
    )
    levels = {"total_num_feature_levels": 5, "deform_in_features": ["res2", "res3", "res4", "res5"]}
    with pytest.raises(ConfigError, match=r"decoder\.num_feature_levels: got 4, expected 5"):
        load_model_config(written("pixel_decoder", **levels))
    for section, change, message in [
        ("backbone", {"embed_dim": None}, r"backbone\.embed_dim: missing"),
        ("backbone", {"embed_dim": "24"}, r"backbone\.embed_dim: got '24'"),
        ("backbone", {"depths": [2, 2]}, r"backbone\.depths: got \[2, 2\]"),
        ("backbone", {"ape": True}, r"backbone\.ape: got True, only False"),
        ("pixel_decoder", {"deform_in_features": ["res5"]}, r"deform_in_features: got \['res5'\]"),
        ("pixel_decoder", {"deform_in_features": 3}, r"deform_in_features: got 3"),
        ("preprocess", {"pixel_mean": [1, 2]}, r"pixel_mean: got \[1, 2\], expected three"),
        ("decoder", {"dim_proj": 1.5}, r"decoder\.dim_proj"),
    ]:
        with pytest.raises(ConfigError, match=message):
            load_model_config(written(section, **change))
    (tmp_path / "c.json").write_text("{")
    with pytest.raises(ConfigError, match="JSON"):
        load_model_config(tmp_path / "c.json")
    with pytest.raises(ConfigError, match="JSON"):
        load_model_config(tmp_path / "none.json")


def test_the_way_back_lists_its_problems(tiny_state):
    params = from_torch(tiny_state, TINY).params
    params["decoder"]["object_embed"] = np.zeros((3, 3), np.float32)
    del params["prompt_encoder"]
    params["extra"] = {"leaf": np.zeros(1, np.float32)}
    with pytest.raises(ConversionError) as caught:
        to_torch(params, TINY)
    text = str(caught.value)
    assert "decoder/object_embed: got (3, 3), expected (64, 48)" in text
    assert "prompt_encoder/label_embed: missing" in text
    assert "extra/leaf: unexpected" in text


def test_models_without_counterpart_are_refused():
    with pytest.raises(ConversionError, match="EfficientNetLiteConfig has no counterpart"):
        rules_for(PRESETS["lite"])


def test_the_owner_projection_is_written_and_recognised(tiny_state):
    """It is ours alone, so a file of the original has none and one of ours says so by its name."""
    key = "sem_seg_head.predictor.class_embed_owner"
    plain = with_branches_of(tiny_state, PRESETS["tiny"])
    assert not plain.decoder.part_owner
    assert key not in {k for rule in rules_for(plain) for k in rule.keys}
    object_embed = tiny_state["sem_seg_head.predictor.class_embed"]
    state = {**tiny_state, key: 2 * object_embed}
    config = with_branches_of(state, PRESETS["tiny"])
    assert config.decoder.part_owner
    params = from_torch(state, config).params
    np.testing.assert_array_equal(params["decoder"]["owner_embed"], 2 * object_embed)
    assert f"model.{key}" in to_torch(params, config, where="ours").tensors
