"""Position encodings against recorded numbers."""

import jax.numpy as jnp
import numpy as np
import pytest

from semsam_jax.ops.positional import sine_boxes, sine_grid, wave_grid
from tests.golden.table import compare, golden


@pytest.mark.parametrize("level", [3, 4, 5, 6])
def test_sine_grid_of_the_pyramid(level: int) -> None:
    key = f"pixdec/pos_res{level}"
    _, channels, height, width = golden("tiny_image_a")[key].shape
    got = sine_grid(height, width, channels).transpose(2, 0, 1)[None]
    compare("tiny_image_a", key, got, 2e-6)


def test_sine_grid_unit() -> None:
    got = sine_grid(6, 9, 64).transpose(2, 0, 1)[None]
    compare("units", "posenc/sine_6x9_nfeat32", got, 2e-6)


@pytest.mark.parametrize("features", [32, 128])
def test_sine_boxes(features: int) -> None:
    got = sine_boxes(jnp.asarray(golden("units")["sineembed/boxes"]), 4 * features)
    compare("units", f"sineembed/out_dim{features}", got, 2e-6)


def test_waves_tell_near_from_far():
    """The product of two codes is one for the same pixel and falls with the distance."""
    waves = wave_grid(32, 48, 32)
    assert waves.shape == (32, 48, 32)
    product = np.einsum("hwc,c->hw", waves, waves[10, 20]) / (waves[10, 20] ** 2).sum()
    np.testing.assert_allclose(product[10, 20], 1.0, rtol=1e-6)
    assert product[10, 21] > product[10, 24] > product[10, 30]
    assert (product > 0.9).sum() <= 9


def test_waves_by_hand():
    """Half a turn over two rows: angles a quarter and three quarters of pi."""
    waves = wave_grid(2, 1, 4, max_turns=0.5)
    half = np.sqrt(0.5)
    np.testing.assert_allclose(waves[:, 0, :2], [[half, half], [half, -half]], atol=1e-6)
    np.testing.assert_allclose(waves[:, 0, 2:], [[1.0, 0.0], [1.0, 0.0]], atol=1e-6)
