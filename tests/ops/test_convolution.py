"""Convolutions and their gradients against scipy and the plain XLA convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate

from semsam_jax.core.backend import compiling_for
from semsam_jax.ops.convolution import convolve, embed_patches


def _inputs(size, stride):
    keys = jax.random.split(jax.random.key(size + stride), 2)
    x = jax.random.normal(keys[0], (2, 7, 10, 3))
    return x, jax.random.normal(keys[1], (size, size, 3, 4))


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (5, 2)])
def test_values_are_those_of_scipy(size, stride):
    x, kernel = _inputs(size, stride)
    pad = size // 2
    padded = np.pad(np.asarray(x), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    want = [
        sum(
            correlate(padded[b, :, :, c], np.asarray(kernel)[:, :, c, d], mode="valid")
            for c in range(3)
        )
        for b in range(2)
        for d in range(4)
    ]
    want = np.stack(want).reshape(2, 4, *want[0].shape).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(convolve(x, kernel, stride), want[:, ::stride, ::stride], atol=1e-5)


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2)])
def test_gradients_are_those_of_the_plain_convolution(size, stride):
    x, kernel = _inputs(size, stride)

    def loss(x, kernel):
        return jnp.sum(jnp.sin(convolve(x, kernel, stride)))

    got = jax.grad(loss, (0, 1))(x, kernel)
    with compiling_for("gpu"):
        want = jax.grad(loss, (0, 1))(x, kernel)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_patches():
    image = jax.random.normal(jax.random.key(0), (2, 8, 12, 3))
    kernel = jax.random.normal(jax.random.key(1), (4, 4, 3, 5))
    want = jax.lax.conv_general_dilated(
        image, kernel, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(embed_patches(image, kernel), want, atol=1e-5)
