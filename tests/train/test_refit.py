"""Class heads learn from kept features: what is kept, what is learned, and what stays."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semsam_jax import config
from semsam_jax.core.errors import ConfigError, DataError, TrainingError
from semsam_jax.core.structs import Prompts
from semsam_jax.models.semantic_sam import SemanticSAM
from semsam_jax.parallel.mesh import build_mesh
from semsam_jax.train import refit
from semsam_jax.train.input import Input
from semsam_jax.train.state import TrainState
from tests.sharded import small
from tests.train.test_names_stage import MODEL, make_inputs

NET = SemanticSAM(MODEL)


def a_run(**values):
    data = {"datasets": {"coco": 1.0}, "image_size": 64}
    values = {"images": 2, "passes": 30, "rows": 16, "learning_rate": 0.02} | values
    return config.build({"data": data, "refit": values, "loss": {"class_balance": 0.0}})


@pytest.fixture(scope="module")
def made():
    state, batch, text = make_inputs(build_mesh(1, jax.devices()[:1]))
    return state.params, batch, text


@pytest.fixture(scope="module")
def predictions(made):
    params, batch, text = made
    rows = batch.interactive

    @jax.jit
    def run(params):
        pyramid = NET.apply(
            {"params": params}, rows.image, rows.size_hw, method=SemanticSAM.encode_image
        )
        is_box = rows.prompt_is_box.astype(jnp.int32)
        prompts = Prompts(rows.prompt_box, is_box, rows.prompt_valid)
        table = refit._table(NET, params, text)
        return NET.apply(
            {"params": params}, pyramid, prompts, table, method=SemanticSAM.decode_prompts
        )

    return jax.tree.map(lambda x: np.asarray(x[-1]), run(params))


def test_names_of_kept_features_are_those_of_a_prompts_token(made, predictions, monkeypatch):
    """Random weights find no mask, so any overlap counts here."""
    params, batch, text = made
    monkeypatch.setattr(refit, "_LEAST_IOU", 0.0)
    data = iter([batch])
    kept = refit.keep_features(a_run(), NET, params, data, text)
    rows = jax.device_get(batch.interactive)
    is_pair = (rows.prompt_targets >= 0) & rows.prompt_valid[..., None]
    b, p, t = np.nonzero(is_pair & rows.has_masks[:, None, None])
    target = rows.prompt_targets[b, p, t]
    np.testing.assert_array_equal(kept.object_id, rows.object_id[b, target])
    np.testing.assert_array_equal(kept.part_id, rows.part_id[b, target])
    np.testing.assert_array_equal(kept.image, b)
    np.testing.assert_array_equal(kept.vocab_valid, rows.vocab_valid)
    np.testing.assert_array_equal(kept.rows(np.arange(len(b)))[3], rows.vocab_valid[b])
    got = NET.apply(
        {"params": params},
        jnp.asarray(kept.features, jnp.float32),
        refit._table(NET, params, text),
        method=SemanticSAM.logits_of_name_features,
    )
    for own, name in zip(got, ("object_logits", "part_logits", "owner_logits"), strict=True):
        of_tokens = getattr(predictions, name)[b, p]
        far = np.abs(of_tokens - np.asarray(own)[:, None]).max(-1).min(-1)
        np.testing.assert_allclose(far, 0.0, atol=0.02)  # features are kept as float16


def test_without_overlap_nothing_is_kept_and_said(made):
    params, batch, text = made
    with pytest.raises(DataError, match="no mask of 2 images overlaps"):
        refit.keep_features(a_run(), NET, params, iter([batch]), text)


def separable(params, num=96):
    """Features of eight kinds with noise; the fourth is learned beside the table as a part."""
    rng = np.random.default_rng(1)
    kinds = rng.normal(size=(small.NUM_NAMES, MODEL.decoder.dim + MODEL.pooled_dim))
    label = rng.integers(0, small.NUM_NAMES, num)
    features = kinds[label] + 0.2 * rng.normal(size=(num, kinds.shape[1]))
    is_object = label < small.NUM_OBJECTS
    return refit.KeptFeatures(
        features.astype(np.float16),
        np.where(is_object, label, -1).astype(np.int32),
        np.where(is_object, -1, label).astype(np.int32),
        np.arange(num),
        np.ones((num, small.NUM_NAMES), bool),
        np.zeros((num, small.NUM_NAMES), np.uint8),
    )


def test_heads_learn_what_features_tell_and_nothing_else_changes(made):
    params, _, text = made
    kept = separable(params)
    heads, losses = refit.fit(a_run(), NET, params, kept, text, None)
    assert losses[-1] < 0.2 * losses[0]
    new = refit._with_heads(params, heads)
    objects, parts, _ = NET.apply(
        {"params": new},
        jnp.asarray(kept.features, jnp.float32),
        refit._table(NET, new, text),
        method=SemanticSAM.logits_of_name_features,
    )
    is_object = kept.object_id >= 0
    assert (np.argmax(objects, -1) == kept.object_id)[is_object].mean() > 0.9
    found = np.argmax(parts, -1) + small.NUM_OBJECTS
    assert (found == kept.part_id)[~is_object].mean() > 0.9

    def same(path, old, new):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        is_owner = name.startswith("decoder/owner")  # without parts of objects, only decayed
        if not is_owner:
            assert np.array_equal(old, new) != refit.is_frozen(name, refit.HEADS), name

    jax.tree_util.tree_map_with_path(same, params, new)
    again, _ = refit.fit(a_run(), NET, params, kept, text, None)
    assert all(np.array_equal(heads[key], again[key]) for key in heads)


def test_the_loss_is_the_focal_loss_of_the_classes_that_count(made):
    params, _, text = made
    kept = separable(params, num=5)
    valid = np.random.default_rng(2).random((5, small.NUM_NAMES)) < 0.6
    kept = dataclasses.replace(kept, vocab_valid=valid)
    weights = np.arange(1, small.NUM_NAMES + 1, dtype=np.float32)
    run = a_run()
    got = refit._loss(
        run, NET, params, tuple(map(jnp.asarray, kept.rows(np.arange(5)))), text, weights
    )
    objects, parts, _ = NET.apply(
        {"params": params},
        jnp.asarray(kept.features, jnp.float32),
        refit._table(NET, params, text),
        method=SemanticSAM.logits_of_name_features,
    )
    want = 0.0
    first = small.NUM_OBJECTS
    heads = ((objects, kept.object_id, 0, run.loss.object_class),
             (parts, kept.part_id - first, first, run.loss.part_class))  # fmt: skip
    for logits, label, start, weight in heads:
        sums, total = 0.0, 0.0
        for row in range(5):
            if label[row] < 0 or not valid[row, start + label[row]]:
                continue
            x = np.asarray(logits[row], np.float64)
            truth = np.arange(len(x)) == label[row]
            p = 1 / (1 + np.exp(-x))
            right = np.where(truth, p, 1 - p)
            focal = np.where(truth, 0.25, 0.75) * (1 - right) ** 2 * -np.log(right)
            counts = valid[row, start : start + len(x)]
            sums += weights[start + label[row]] * focal[counts].sum()
            total += weights[start + label[row]]
        want += weight * sums / max(total, 1.0)
    np.testing.assert_allclose(got, want, rtol=1e-4)


def test_a_state_is_refitted_once_into_both_parameters_or_stopped(made, monkeypatch, capsys):
    params, _, text = made
    kept, data = separable(params), object.__new__(Input)
    data.mesh = build_mesh(1, jax.devices()[:2])

    def keep(*args):
        assert jax.sharding.get_abstract_mesh().size == 2  # kernels on several TPUs need it
        return None if args[-1]() else kept

    monkeypatch.setattr(refit, "keep_features", keep)
    state = TrainState(params, (), jnp.asarray(1), jax.tree.map(jnp.array, params))
    run = a_run(passes=1)
    assert refit.refit_class_heads(run, NET, state, data, text, lambda: True) is None
    answers = iter([False, True])  # stopped between looking and the first pass
    assert refit.refit_class_heads(run, NET, state, data, text, lambda: next(answers)) is None
    new = refit.refit_class_heads(run, NET, state, data, text, lambda: False)
    assert int(new.step) == 2
    assert "96 masks kept" in capsys.readouterr().out
    for tree in (new.params, new.ema_params):
        assert not np.array_equal(
            tree["decoder"]["object_embed"], params["decoder"]["object_embed"]
        )
        assert tree["backbone"] is not None


def test_what_is_frozen_stays_and_a_loss_that_is_not_finite_is_an_error(made):
    params, _, text = made
    kept = separable(params)
    frozen = {"optimizer": {"frozen": ("decoder/logit_scale", "learned_names")}}
    run = config.build(a_run(passes=1).to_dict() | frozen)
    heads, _ = refit.fit(run, NET, params, kept, text, None)
    assert "decoder/part_embed" in heads
    assert not any(refit.is_frozen(path, run.optimizer.frozen) for path in heads)
    kept = dataclasses.replace(kept, features=np.full_like(kept.features, np.inf))
    with pytest.raises(TrainingError, match="the loss of pass 1 is nan"):
        refit.fit(run, NET, params, kept, text, None)


def test_bad_settings_are_refused(monkeypatch):
    frozen = {"optimizer": {"frozen": ("decoder",)}}
    with pytest.raises(ConfigError, match=r"optimizer.frozen \('decoder',\) names the class heads"):
        refit.check(config.build(a_run().to_dict() | frozen))
    with pytest.raises(ConfigError, match=r"refit.images: 2; refitting needs prompts"):
        config.build({"data": {"datasets": {"sa1b": 1.0}, "generic_batch": 0, "image_size": 64},
                      "refit": {"images": 2}, "text": {"source": "none"}})  # fmt: skip
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ConfigError, match="not supported with 2 processes"):
        refit.check(a_run())
