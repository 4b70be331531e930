"""Prompt tokens: sums of embeddings, references in logit space, noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semsam_jax.core.errors import PromptError
from semsam_jax.core.structs import Prompts
from semsam_jax.models.prompt_encoder import PromptEncoder


@pytest.fixture
def encoder():
    prompts = Prompts(
        boxes=jnp.array([[[0.5, 0.5, 0.004, 0.004], [0.6, 0.4, 0.2, 0.1]]]),
        type_index=jnp.array([[0, 1]]),
        valid=jnp.ones((1, 2), bool),
    )
    module = PromptEncoder(dim=8, num_tokens=6, noise_scale=0.4, point_noise_factor=0.01)
    return module, module.init(jax.random.key(0), prompts), prompts


def test_tokens_are_sums_of_embeddings(encoder):
    module, params, prompts = encoder
    tree = params["params"]
    tokens = module.apply(params, prompts)
    assert tokens.content.shape == (1, 2, 6, 8)
    want = tree["label_embed"][0] + tree["type_embed"][1] + tree["mask_tokens"][4]
    np.testing.assert_allclose(tokens.content[0, 1, 4], want, atol=1e-6)
    np.testing.assert_allclose(jax.nn.sigmoid(tokens.references), prompts.boxes, atol=1e-6)


def test_noise_is_smaller_for_clicks_whatever_the_type_index(encoder):
    module, params, prompts = encoder
    prompts = prompts.replace(type_index=jnp.zeros((1, 2), jnp.int32))
    noise = jnp.ones((1, 2, 4))
    tokens = module.apply(params, prompts, noise=noise, is_box=jnp.array([[False, True]]))
    size = np.array([[0.002, 0.002, 0.004, 0.004], [0.1, 0.05, 0.2, 0.1]])
    want = np.asarray(prompts.boxes[0]) + size * np.array([[0.004], [0.4]])
    np.testing.assert_allclose(jax.nn.sigmoid(tokens.references[0]), want, atol=1e-6)


def test_noise_without_kind_is_an_error(encoder):
    module, params, prompts = encoder
    with pytest.raises(PromptError, match="is_box"):
        module.apply(params, prompts, noise=jnp.ones((1, 2, 4)))
