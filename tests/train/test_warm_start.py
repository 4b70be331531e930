"""Where the parameters of a run come from, and what it refuses to guess."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from configs import finetune, joint, sa1b
from data_pipelines.vocabulary import build_vocabulary
from semsam_jax import config
from semsam_jax.core import model_files
from semsam_jax.core.errors import CheckpointError, ConfigError
from semsam_jax.models.semantic_sam import SemanticSAM, init_params
from semsam_jax.parallel import sharding
from semsam_jax.parallel.mesh import build_mesh
from semsam_jax.train import build, warm_start
from semsam_jax.train.state import abstract_state, shard_state
from semsam_jax.train.warm_start import (
    check_start,
    given_params,
    initial_params,
    merge,
    parameter_shapes,
    random_params,
)

DATA = Path(__file__).parents[1] / "golden" / "data"
TOWER = str(DATA / "tiny_ref.pth")  # a whole model of preset tiny: backbone and text tower too
SCALE = 1.7  # of its class scores


def tiny(**model):
    model = {"preset": "tiny", "backbone_weights": "random", **model}
    return config.build({"model": model, "text": {"source": "encoder"}})


def swin(recipe, **model):
    recipe.model.update(model)
    return config.build(recipe)


@pytest.fixture(scope="module")
def fresh():
    """Parameters of preset tiny, all of them one number, in the place of random ones."""
    model = SemanticSAM(config.model_config(tiny().model))
    shapes = jax.eval_shape(lambda key: init_params(model, key), jax.random.key(0))
    return model, jax.tree.map(lambda x: np.full(x.shape, 0.5, np.float32), shapes)


@pytest.fixture
def start(fresh, monkeypatch):
    """Makes the start parameters of a run of preset tiny, on the host."""
    model, params = fresh
    monkeypatch.setattr(
        warm_start, "random_params", lambda *_: {k: dict(v) for k, v in params.items()}
    )
    return lambda run: {**params, **given_params(run, model, parameter_shapes(run, model))}


def stored(tmp_path, params, **meta):
    """A model folder with one number in all of its parameters."""
    ones = jax.tree.map(lambda x: np.full(x.shape, 3.0, np.float32), params)
    meta = {"class_heads_trained": True, "text": {"source": "encoder"}, **meta}
    return str(model_files.save_model(tmp_path / "start", ones, meta))


def test_levels_stay_ordered_as_they_were_until_an_evaluation(tmp_path):
    """Without it a fine-tuned model's level 1 would be its first token, whatever its size."""
    meta = {"level_order": [2, 1, 3, 0, 4, 5], "level_sizes": [0.6, 0.5, 0.4, 0.3, 0.2, 0.1]}
    model_files.save_model(tmp_path / "start", {"a": np.zeros(2, np.float32)}, meta)
    run = tiny(warm_start=str(tmp_path / "start"))
    model = build.build_model(run)
    assert build.first_levels(run, model) == meta
    assert build.first_levels(tiny(), model) == {"level_order": list(range(6))}


def test_a_resumed_run_needs_its_warm_start_no_longer():
    """What it took over is the same from its own checkpoint."""
    trained = config.build(joint.get_config("lite"))
    vocabulary = build_vocabulary(["coco"])
    text = {"source": "table", "table": ""}
    start = build.build_meta(trained, build.build_model(trained), vocabulary, text)
    start["class_heads_trained"] = True
    chosen = finetune.get_config("lora")
    chosen.model.warm_start = "a folder that is gone"
    chosen.loss.dice = 7.0
    for changes in ({}, {"class_heads_trained": False}):
        run = config.inherit_from_checkpoint(config.build(chosen), start | changes)
        text = {"source": run.text.source, "table": run.text.table}
        own = build.build_meta(run, build.build_model(run), vocabulary, text)
        own["class_heads_trained"] = (start | changes)["class_heads_trained"]
        assert config.inherit_from_checkpoint(config.build(chosen), own) == run


def test_parameters_are_born_where_they_lie_and_files_come_first(fresh, tmp_path, monkeypatch):
    """A part without a file is drawn split over the devices, as one device would draw it."""
    monkeypatch.setattr(sharding, "MIN_SHARDED_SIZE", 256)
    kept = {part: tree for part, tree in fresh[1].items() if part != "decoder"}
    folder = stored(tmp_path, kept)
    run = config.build(
        {
            "model": {"preset": "tiny", "warm_start": folder, "lora_rank": 2},
            "text": {"source": "encoder"},
            "optimizer": {"ema": 0.5},
        }
    )
    model, mesh, tx = build.build_model(run), build_mesh(2), optax.adam(1e-3)
    params = initial_params(run, model, mesh)
    assert all(np.all(leaf == 3.0) for part in kept for leaf in jax.tree.leaves(params[part]))
    drawn = random_params(model, run.seed, ["decoder"])["decoder"]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
        params["decoder"],
        drawn,
    )
    state = shard_state(params, tx, True, mesh)
    wanted = abstract_state(parameter_shapes(run, model), tx, True, mesh)
    assert jax.tree.structure(state) == jax.tree.structure(wanted)
    for got, shape in zip(jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True):
        assert (got.shape, got.dtype) == (shape.shape, shape.dtype)
        assert got.sharding.is_equivalent_to(shape.sharding, got.ndim)
    sizes = [leaf.addressable_shards[0].data.size / leaf.size for leaf in jax.tree.leaves(params)]
    assert min(sizes) == 0.5


def test_the_second_stage_wants_the_first_or_an_explicit_random():
    with pytest.raises(ConfigError, match=r"warm_start=DIR.*warm_start=random"):
        check_start(swin(joint.get_config("swin_t")))
    check_start(swin(joint.get_config("swin_t"), warm_start="runs/sa1b"))
    run = swin(joint.get_config("swin_t"), warm_start="random", backbone_weights="swin.pth")
    with pytest.raises(ConfigError, match=r"text_weights.*clip-vit-base-patch32.*write random"):
        check_start(run)
    check_start(swin(joint.get_config("swin_t"), warm_start="random", backbone_weights="random",
                     text_weights="clip.safetensors"))  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"loss": {}},
        {"data": {"interactive_batch": 0}},
        {"optimizer": {"frozen": ("granularity_token",)}},
    ],
)
def test_a_seventh_token_that_nothing_trains_is_refused(change, fresh, tmp_path):
    """It would answer for granularities as it was drawn, at random."""
    values = {"model": {"preset": "lite", "granularity_token": True}, "loss": {"granularity": 0.3}}
    check_start(config.build(values))
    with pytest.raises(ConfigError, match=r"nothing trains this token.*loss\.granularity above 0"):
        check_start(config.build(values | change))
    sizes = {"decoder": {"granularity_token": True}}
    start = {"warm_start": stored(tmp_path, {"a": np.zeros(1)}, model_config=sizes)}
    check_start(config.build(values | change | {"model": values["model"] | start}))


@pytest.mark.parametrize("preset", ["swin_t", "swin_l"])
def test_a_swin_backbone_is_not_random_in_silence(preset):
    with pytest.raises(ConfigError, match=r"SwinTransformer/storage.*\.pth.*write random"):
        check_start(swin(sa1b.get_config(preset)))
    check_start(swin(sa1b.get_config(preset), backbone_weights="random"))
    check_start(swin(sa1b.get_config(preset), backbone_weights="swin.pth"))
    check_start(tiny())
    check_start(config.build(joint.get_config("lite")))


def test_a_start_says_where_every_part_came_from(start, fresh, tmp_path, capsys):
    params = start(tiny(backbone_weights=TOWER, text_weights=TOWER))
    told = capsys.readouterr().out
    assert f"initial parameters from {TOWER}: backbone, text_encoder\n" in told
    assert "initial parameters drawn at random: " in told
    np.testing.assert_allclose(params["decoder"]["logit_scale"], SCALE, rtol=1e-6)
    assert f"the scale of the class scores, exp({SCALE:.2f})" in told
    assert not np.all(params["backbone"]["patch_embed"]["proj"]["kernel"] == 0.5)
    assert np.all(params["decoder"]["object_embed"] == 0.5)


def test_a_tower_that_the_first_stage_never_used_is_not_taken(start, fresh, tmp_path, capsys):
    """Stage one names nothing: its tower and its class heads are as random as they were born."""
    meta = {"class_heads_trained": False, "text": {"source": "none"}}
    seventh = {"granularity_token": {"token": np.zeros(3)}}
    folder = stored(tmp_path, {**fresh[1], **seventh}, **meta)
    params = start(tiny(warm_start=folder, text_weights=TOWER))
    assert np.all(params["backbone"]["patch_embed"]["proj"]["kernel"] == 3.0)
    assert not np.any(params["text_encoder"]["lang_proj"] == 3.0)
    np.testing.assert_allclose(params["decoder"]["logit_scale"], SCALE, rtol=1e-6)
    told = capsys.readouterr().out
    assert "the class heads in" in told
    assert "left out, not in this model: granularity_token" in told
    run = swin(joint.get_config("swin_t"), warm_start=folder)
    with pytest.raises(ConfigError, match="text_weights"):
        warm_start._known_parts(run, fresh[1], meta)


def test_a_backbone_that_is_not_used_is_named(start, fresh, tmp_path, capsys):
    folder = stored(tmp_path, fresh[1])
    params = start(tiny(warm_start=folder, backbone_weights=TOWER))
    assert np.all(params["backbone"]["patch_embed"]["proj"]["kernel"] == 3.0)
    told = f"not used: model.backbone_weights {TOWER}, because {folder} brings its own backbone"
    assert told in capsys.readouterr().out
    start(tiny(warm_start=folder))
    assert "not used" not in capsys.readouterr().out


def test_a_trained_tower_is_not_replaced(start, fresh, tmp_path):
    folder = stored(tmp_path, fresh[1])
    params = start(tiny(warm_start=folder))
    assert np.all(params["text_encoder"]["lang_proj"] == 3.0)
    assert params["decoder"]["logit_scale"] == 3.0
    with pytest.raises(ConfigError, match="brings its own text tower"):
        start(tiny(warm_start=folder, text_weights=TOWER))


def test_a_warm_start_without_an_owner_projection_starts_it_as_the_objects_one(fresh):
    own = fresh[1]
    given = jax.tree.map(lambda x: x + 1, own)
    given["decoder"]["object_embed"] = np.full_like(own["decoder"]["object_embed"], 9.0)
    del given["decoder"]["owner_embed"]
    merged = merge(own, given, "released")
    assert np.all(merged["decoder"]["owner_embed"] == 9.0)
    assert np.all(merged["decoder"]["part_embed"] == 1.5)
    without = {**own, "decoder": {k: v for k, v in own["decoder"].items() if k != "owner_embed"}}
    merged = merge(without, own, "ours")
    assert "owner_embed" not in merged["decoder"]
    given["decoder"]["object_embed"] = np.zeros((2, 2), np.float32)
    with pytest.raises(CheckpointError, match=r"object_embed: \(2, 2\)"):
        merge(own, given, "another size")


def test_the_owner_projection_is_there_unless_it_is_switched_off(fresh):
    assert "owner_embed" in fresh[1]["decoder"]
    plain = config.model_config(dataclasses.replace(tiny().model, part_owner=False))
    shapes = jax.eval_shape(lambda key: init_params(SemanticSAM(plain), key), jax.random.key(0))
    assert "owner_embed" not in shapes["decoder"]


def test_a_warm_start_that_read_tokens_alone_starts_the_rest_at_zero(fresh):
    pooled = {"object_pooled_embed": np.full((4, 3), 7.0, np.float32)}
    own = {**fresh[1], "decoder": {**fresh[1]["decoder"], **pooled}}
    merged = merge(own, fresh[1], "an older model")
    assert not merged["decoder"]["object_pooled_embed"].any()
    again = merge(own, own, "a model of today")
    assert (again["decoder"]["object_pooled_embed"] == 7.0).all()
    with pytest.raises(CheckpointError, match="object_pooled_embed: unknown"):
        merge(fresh[1], own, "another preset")


def test_what_owners_read_from_pooled_features_follows_their_projection(fresh):
    pooled = {f"{kind}_pooled_embed": np.full(3, 7.0, np.float32) for kind in ("object", "owner")}
    own = {**fresh[1], "decoder": {**fresh[1]["decoder"], **pooled}}
    without = {k: v for k, v in own["decoder"].items() if not k.startswith("owner")}
    merged = merge(own, {**own, "decoder": without}, "without owners")
    assert (merged["decoder"]["owner_pooled_embed"] == 7.0).all()
    merged = merge({**own, "decoder": without}, own, "with owners")
    assert merged["decoder"].keys() == without.keys()


@pytest.mark.parametrize(
    ("size", "start", "wanted"),
    [
        (256, None, 256),
        (256, {"image_size": 384}, 384),
        (512, {"image_size": 384}, 512),
        (256, {"image_size": 1344, "prompt_preset": "released_v1"}, 256),
        (256, {}, 256),
    ],
)
def test_a_run_keeps_a_larger_canvas_of_inference(size, start, wanted, monkeypatch):
    monkeypatch.setattr(build.checkpoint_io, "read_meta", lambda _: start)
    run = tiny(warm_start="" if start is None else str(DATA))
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, image_size=size))
    answers = build.start_answers(run, build_vocabulary(["coco"]), np.ones(133, bool))
    assert answers["image_size"] == wanted


NAMED = {
    "class_heads_trained": True,
    "text": {"source": "table", "table": ""},
    "mask_thresholds": {"pred_iou": 0.5, "stability": 0.8},
    "name_scales": {"object": [2.0, 1.0], "part": [3.0, 1.0]},
    "name_thresholds": {"object": 0.4, "part": 0.3},
    "panoptic_source": "masks",
}


@pytest.mark.parametrize(
    ("source", "known", "start", "names", "parts", "thresholds"),
    [
        ("none", 0, {"class_heads_trained": False}, False, False, 0),  # released, on own images
        ("none", 0, NAMED, False, False, 1),  # its heads read other tokens now
        ("table", 0, None, False, False, 0),  # no name has an embedding
        ("table", 0, NAMED, True, True, 4),
        ("table", 0, {**NAMED, "parts_trained": False}, True, False, 4),
        ("table", 2, None, True, False, 0),
        ("table", 3, None, True, True, 0),
        ("table", 2, {**NAMED, "text": {"source": "table", "table": "mine.npz"}}, True, False, 1),
    ],
)
def test_a_run_knows_the_names_that_it_or_its_start_was_taught(
    source, known, start, names, parts, thresholds, monkeypatch
):
    monkeypatch.setattr(build.checkpoint_io, "read_meta", lambda _: start)
    run = config.build(
        {
            "model": {"preset": "tiny", "warm_start": "" if start is None else str(DATA)},
            "text": {"source": source},
            "data": {"datasets": {"custom": 1.0}, "generic_batch": 0},
        }
    )
    vocabulary = build_vocabulary([], extra={"custom": (("dog", "cat"), ("head",))})
    answers = build.start_answers(run, vocabulary, np.arange(3) < known)
    assert (answers["class_heads_trained"], answers["parts_trained"]) == (names, parts)
    kept = [key for key in NAMED if key in answers and key != "class_heads_trained"]
    assert len(kept) == thresholds
    assert all(answers[key] == NAMED[key] for key in kept)


@pytest.mark.parametrize(
    ("frozen", "names", "parts"),
    [
        (("decoder",), False, False),
        (("decoder/object_embed", "decoder/part_embed"), False, False),
        (("decoder/part_embed",), True, False),
        (("decoder/layers",), True, True),
    ],
)
def test_frozen_class_heads_learn_no_names(frozen, names, parts):
    """The model would name things by projections that were drawn at random."""
    optimizer = {"frozen": frozen}
    run = config.build(
        {"model": {"preset": "tiny"}, "text": {"source": "table"}, "optimizer": optimizer}
    )
    vocabulary = build_vocabulary([], extra={"custom": (("dog", "cat"), ("head",))})
    answers = build.start_answers(run, vocabulary, np.ones(3, bool))
    assert (answers["class_heads_trained"], answers["parts_trained"]) == (names, parts)
