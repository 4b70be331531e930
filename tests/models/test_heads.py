"""Heads: mask logits and cosine logits against plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np

from semsam_jax.models.heads import cosine_logits, mask_logits


def test_mask_logits_keeps_query_axes_and_float32():
    embed = jax.random.normal(jax.random.key(0), (2, 3, 4, 8), jnp.bfloat16)
    features = jax.random.normal(jax.random.key(1), (2, 5, 6, 8))
    out = mask_logits(embed, features)
    want = np.einsum("bpkd,bhwd->bpkhw", np.asarray(embed, np.float32), np.asarray(features))
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, want, atol=1e-5)


def test_cosine_logits():
    content = jax.random.normal(jax.random.key(0), (2, 3, 8))
    projection = jax.random.normal(jax.random.key(1), (8, 5))
    names = jax.random.normal(jax.random.key(2), (4, 5))
    names = names / jnp.linalg.norm(names, axis=-1, keepdims=True)
    out = cosine_logits(content, projection, names, jnp.float32(1.7))
    x = np.asarray(content) @ np.asarray(projection)
    want = np.exp(1.7) * (x / np.linalg.norm(x, axis=-1, keepdims=True)) @ np.asarray(names).T
    np.testing.assert_allclose(out, want, atol=1e-5)


def test_many_queries_are_compared_in_their_own_space():
    """The other order of the products gives the same logits and gradients."""
    keys = jax.random.split(jax.random.key(0), 3)
    content = jax.random.normal(keys[0], (40, 4))
    projection = jax.random.normal(keys[1], (4, 12))
    names = jax.random.normal(keys[2], (5, 12))

    def loss(rows, projection):
        logits = [cosine_logits(x, projection, names, jnp.float32(0.3)) for x in rows]
        return jnp.sum(jnp.sin(jnp.concatenate(logits)))

    together = jax.value_and_grad(lambda c, p: loss([c], p), (0, 1))(content, projection)
    apart = jax.value_and_grad(lambda c, p: loss(jnp.split(c, 20), p), (0, 1))(content, projection)
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(apart), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_cosine_of_a_zero_vector_is_zero_with_finite_gradient():
    names = jnp.eye(3)

    def loss(content):
        return cosine_logits(content, jnp.eye(3), names, jnp.float32(1.0)).sum()

    value, grad = jax.value_and_grad(loss)(jnp.zeros((1, 3)))
    assert value == 0.0
    assert np.isfinite(grad).all()


def test_empty_vocabulary_gives_empty_logits():
    out = cosine_logits(jnp.ones((2, 8)), jnp.ones((8, 5)), jnp.ones((0, 5)), jnp.float32(1.0))
    assert out.shape == (2, 0)
