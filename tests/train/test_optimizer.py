import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semsam_jax.config import OptimizerChoice
from semsam_jax.core.errors import ConfigError
from semsam_jax.models import presets
from semsam_jax.models.semantic_sam import SemanticSAM, init_params
from semsam_jax.train.optimizer import (
    build_optimizer,
    check_frozen,
    decay_mask,
    group_labels,
    schedule,
)


@pytest.fixture(scope="module")
def shapes():
    model = SemanticSAM(presets.model_config("swin_t"))
    return jax.eval_shape(lambda key: init_params(model, key), jax.random.key(0))


def _flat(tree):
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def test_norms_embeddings_and_bias_tables_do_not_decay(shapes):
    mask = _flat(decay_mask(shapes))
    for path, decays in mask.items():
        leaf = path.split("/")[-1]
        parent = path.split("/")[-2]
        is_norm = leaf in ("scale",) or (leaf == "bias" and ("norm" in parent or "ln_" in parent))
        is_table = leaf in (
            "relative_position_bias_table",
            "label_embed",
            "type_embed",
            "mask_tokens",
            "token_embedding",
            "logit_scale",
        )
        assert decays == (not (is_norm or is_table)), path
    assert mask["decoder/object_embed"]
    assert mask["pixel_decoder/level_embed"]


def test_groups(shapes):
    labels = _flat(group_labels(shapes, frozen=("backbone",)))
    assert {v for k, v in labels.items() if k.startswith("backbone/")} == {"frozen"}
    assert {v for k, v in labels.items() if k.startswith("text_encoder/")} == {"text"}
    assert {v for k, v in labels.items() if k.startswith("decoder/")} == {"default"}


def test_a_name_that_freezes_nothing_is_refused(shapes):
    check_frozen(shapes, ("backbone", "decoder/layers", "text_encoder"))
    check_frozen({"decoder": shapes["decoder"]}, ("text_encoder",))
    with pytest.raises(ConfigError, match=r"'decodr' is not part of this model.*decoder, "):
        check_frozen(shapes, ("backbone", "decodr"))


def test_step_schedule_is_the_papers():
    rate = schedule(OptimizerChoice(warmup_steps=10), steps=1000)
    values = np.asarray([rate(step) for step in (0, 9, 100, 899, 900, 949, 950, 999)])
    np.testing.assert_allclose(
        values, [1e-5, 1e-4 * 0.91, 1e-4, 1e-4, 1e-5, 1e-5, 1e-6, 1e-6], rtol=1e-5
    )


@pytest.mark.parametrize(
    ("steps", "decay_at", "at"), [(1000, (0.9, 0.9), 900), (12, (0.9, 0.95), 11)]
)
def test_two_decays_at_one_step_are_both_made(steps, decay_at, at):
    rate = schedule(OptimizerChoice(warmup_steps=1, decay_at=decay_at), steps=steps)
    np.testing.assert_allclose([rate(at - 1), rate(at)], [1e-4, 1e-6], rtol=1e-5)


def test_cosine_schedule_starts_at_zero_peaks_and_falls():
    rate = schedule(OptimizerChoice(schedule="cosine", warmup_steps=10), steps=100)
    assert rate(0) == 0
    np.testing.assert_allclose(rate(10), 1e-4, rtol=1e-5)
    np.testing.assert_allclose(rate(100), 1e-6, rtol=1e-4)


def test_one_update_by_hand():
    """AdamW's first step is -lr * (sign(g) + wd * w); frozen parameters stay."""
    params = {"decoder": {"layer": {"kernel": jnp.full((2,), 2.0)}}, "backbone": {"k": jnp.ones(2)}}
    grads = jax.tree.map(lambda x: jnp.full_like(x, 3.0), params)
    choice = OptimizerChoice(warmup_steps=0, clip_norm=0.01)
    tx = build_optimizer(choice, steps=100, frozen=("backbone",))
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(
        updates["decoder"]["layer"]["kernel"], -1e-4 * (1.0 + 0.05 * 2.0), rtol=1e-4
    )
    np.testing.assert_array_equal(updates["backbone"]["k"], 0.0)
    tx = build_optimizer(choice, steps=100)
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(updates["backbone"]["k"], -1e-5 * (1.0 + 0.05), rtol=1e-4)


def test_the_scale_of_the_class_scores_is_kept_at_a_hundred():
    """log(100) = 4.60517; a warm start above it is brought back, below it nothing happens."""
    params = {"decoder": {"logit_scale": jnp.float32(4.6051), "other": jnp.float32(4.6051)}}
    tx = build_optimizer(OptimizerChoice(warmup_steps=0, learning_rate=0.01), steps=100)
    grads = {"decoder": {"logit_scale": jnp.float32(-1.0), "other": jnp.float32(0.0)}}
    updates, state = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(updates["decoder"]["logit_scale"] + 4.6051, np.log(100), rtol=1e-6)
    grads["decoder"]["logit_scale"] = jnp.float32(3.0)
    down, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(down["decoder"]["logit_scale"], -0.01, rtol=1e-3)  # and no decay
    np.testing.assert_allclose(down["decoder"]["other"], -0.01 * 0.05 * 4.6051, rtol=1e-3)
    above = {"decoder": {"logit_scale": jnp.float32(9.0), "other": jnp.float32(0.0)}}
    updates, _ = tx.update(grads, state, above)
    np.testing.assert_allclose(9.0 + updates["decoder"]["logit_scale"], np.log(100), rtol=1e-6)
