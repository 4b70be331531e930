"""The token that answers a granularity, beside the six of a prompt."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semsam_jax.core.errors import ConfigError
from semsam_jax.core.structs import Prompts
from semsam_jax.models import presets
from semsam_jax.models.granularity_token import fourier_features
from semsam_jax.models.semantic_sam import SemanticSAM, init_params

ASKED = jnp.array([[[0.0, 0.5, 1.0], [0.2, 0.2, 0.9]]])


@pytest.fixture(scope="module")
def tiny():
    config = presets.model_config("tiny")
    decoder = dataclasses.replace(config.decoder, granularity_token=True)
    config = dataclasses.replace(config, decoder=decoder, has_generic=False, text=None)
    model = SemanticSAM(config)
    params = jax.jit(lambda: init_params(model, jax.random.key(0)))()
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.integers(0, 256, (1, 64, 96, 3)), jnp.uint8)
    size = jnp.array([[64, 96]])
    pyramid = jax.jit(
        lambda p: model.apply({"params": p}, image, size, method=SemanticSAM.encode_image)
    )(params)
    prompts = Prompts(
        boxes=jnp.array([[[0.3, 0.4, 0.01, 0.01], [0.6, 0.5, 0.4, 0.4]]]),
        type_index=jnp.array([[0, 1]]),
        valid=jnp.ones((1, 2), bool),
    )

    @partial(jax.jit, static_argnums=2)
    def decode(params, granularity, model=model):
        return model.apply(
            {"params": params},
            pyramid,
            prompts,
            all_layers=True,
            granularity=granularity,
            method=SemanticSAM.decode_prompts,
        )

    return params, decode


def test_the_other_tokens_are_the_same_bit_for_bit(tiny):
    params, decode = tiny
    alone, beside = decode(params, None), decode(params, ASKED)
    assert beside.pred_ious.shape == (3, 1, 2, 9)
    for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(beside), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other)[:, :, :, :6])


def test_an_answer_depends_on_its_own_granularity_alone(tiny):
    params, decode = tiny
    first = decode(params, ASKED).mask_embed[:, :, :, 6:]
    other = decode(params, ASKED.at[..., 1].set(0.7)).mask_embed[:, :, :, 6:]
    np.testing.assert_allclose(first[..., ::2, :], other[..., ::2, :], atol=1e-5)
    assert np.abs(first[..., 1, :] - other[..., 1, :]).max() > 1e-3
    np.testing.assert_allclose(first[:, :, 1, 0], first[:, :, 1, 1], atol=1e-5)  # 0.2 twice


def test_an_answer_sees_the_tokens_of_its_prompt_and_no_other(tiny):
    params, decode = tiny
    encoder = params["prompt_encoder"]
    moved = {**encoder, "mask_tokens": encoder["mask_tokens"].at[0].add(1.0)}
    first = decode(params, ASKED).mask_embed[:, :, :, 6:]
    other = decode({**params, "prompt_encoder": moved}, ASKED).mask_embed[:, :, :, 6:]
    assert np.abs(first - other).max() > 1e-3

    # The second prompt's label and type are in its own tokens: the first prompt stays.
    moved = {**encoder, "type_embed": encoder["type_embed"].at[1].add(1.0)}
    other = decode({**params, "prompt_encoder": moved}, ASKED).mask_embed[:, :, :, 6:]
    np.testing.assert_allclose(first[:, :, 0], other[:, :, 0], atol=1e-5)
    assert np.abs(first[:, :, 1] - other[:, :, 1]).max() > 1e-3


def test_only_a_model_with_the_token_answers(tiny):
    params, decode = tiny
    config = dataclasses.replace(presets.model_config("tiny"), has_generic=False, text=None)
    with pytest.raises(ConfigError, match="no token"):
        decode(params, ASKED, SemanticSAM(config))


def test_features_are_sines_and_cosines_of_octaves():
    found = np.asarray(fourier_features(jnp.array([0.0, 0.5, 1.0])))
    np.testing.assert_allclose(found[0], [0.0] * 6 + [1.0] * 6, atol=1e-6)
    np.testing.assert_allclose(found[1, [0, 6, 1, 7]], [1.0, 0.0, 0.0, -1.0], atol=1e-6)
    np.testing.assert_allclose(found[2, [0, 6]], [0.0, -1.0], atol=1e-6)
