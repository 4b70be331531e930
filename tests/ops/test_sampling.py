"""Point sampling, packed masks and resizing against recorded numbers and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semsam_jax.ops.bitmasks import sample_bits
from semsam_jax.ops.point_sample import sample_points
from tests.golden.table import compare, golden
from tests.ops.resize import resize_bilinear


def test_sample_points_golden():
    units = golden("units")
    features = jnp.moveaxis(jnp.asarray(units["point_sample/input"]), 1, -1)
    out = sample_points(features, jnp.asarray(units["point_sample/coords"]))
    compare("units", "point_sample/output", np.moveaxis(out, -1, 1), 5e-6)


def test_sample_points_by_hand():
    ramp = jnp.arange(8.0).reshape(1, 2, 4, 1)
    centre = jnp.array([[[1 / 8, 1 / 4], [0.5, 0.5], [0.0, 0.25], [-0.2, 0.5], [2.0, 0.5]]])
    out = sample_points(ramp, centre)[0, :, 0]
    np.testing.assert_allclose(out, [0.0, 3.5, 0.0, 0.0, 0.0], atol=1e-6)
    extra = sample_points(ramp, centre[:, None])
    np.testing.assert_array_equal(extra[0, 0, :, 0], out)


def test_sample_bits_equals_sampling_the_masks():
    masks = np.random.default_rng(1).random((2, 5, 12, 16)) > 0.5
    points = jax.random.uniform(jax.random.key(0), (2, 300, 2), minval=-0.1, maxval=1.1)
    got = sample_bits(jnp.asarray(np.packbits(masks, axis=-1)), points)
    dense = jnp.asarray(np.moveaxis(masks, 1, -1).astype(np.float32))
    np.testing.assert_allclose(got, jnp.moveaxis(sample_points(dense, points), 1, 2), atol=1e-6)


@pytest.mark.parametrize("size", [(64, 80), (17, 9)])
def test_resize_golden(size):
    units = golden("units")
    images = jnp.moveaxis(jnp.asarray(units["resize/input"]), 1, -1)
    got = np.moveaxis(resize_bilinear(images, size), -1, 1)
    compare("units", f"resize/bilinear_{size[0]}x{size[1]}", got, 1e-5)
