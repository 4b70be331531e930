"""The window of mask logits is the quadratic that its formula says."""

import jax
import jax.numpy as jnp
import numpy as np

from semsam_jax.models.mask_window import shape_bias, window_embed, window_features


def test_the_product_is_the_quadratic_around_the_box():
    rng = np.random.default_rng(0)
    shape = rng.normal(size=(3, 6)).astype(np.float32)
    boxes = np.float32([[0.3, 0.6, 0.2, 0.4], [0.5, 0.5, 1.0, 1.0], [0.9, 0.1, 0.001, 0.3]])
    embed = window_embed(jnp.asarray(shape), jnp.asarray(boxes))
    features = window_features(6, 9)
    got = np.einsum("qc,yxc->qyx", embed, features)
    half = np.maximum(boxes[:, 2:] / 2, 0.04)[:, :, None, None]
    y, x = np.meshgrid((np.arange(6) + 0.5) / 6, (np.arange(9) + 0.5) / 9, indexing="ij")
    u = (x - boxes[:, 0, None, None]) / half[:, 0]
    v = (y - boxes[:, 1, None, None]) / half[:, 1]
    s = shape[:, :, None, None]
    p, q = np.logaddexp(0, s[:, 3]), np.logaddexp(0, s[:, 4])
    want = s[:, 0] + s[:, 1] * u + s[:, 2] * v - p * u * u - q * v * v + s[:, 5] * u * v
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-3)


def test_the_start_is_a_weak_window_and_boxes_get_no_gradient():
    shape = shape_bias(jax.random.key(0), (6,))
    box = jnp.asarray([0.5, 0.5, 0.5, 0.5])
    edge = window_embed(shape, box) @ jnp.asarray([1, 0.25, 0, 0.0625, 0, 0])
    np.testing.assert_allclose(edge, -np.logaddexp(0, -3), rtol=1e-5)
    grad = jax.grad(lambda box: jnp.sum(window_embed(shape, box)))(box)
    np.testing.assert_array_equal(grad, 0)
