"""Distances inside masks: exact, and the same in every call."""

import numpy as np
from scipy import ndimage

from semsam_jax.core.distance import distance_inside, innermost_pixel


def test_distance_is_the_exact_one_to_the_last_bit():
    """OpenCV's differs in the last bit, in four of ten such masks, with the array's address."""
    rng = np.random.default_rng(0)
    for _ in range(100):
        mask = ndimage.gaussian_filter(rng.normal(size=rng.integers(8, 90, 2)), 4) > 0
        want = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
        np.testing.assert_array_equal(distance_inside(mask), want.astype(np.float32))


def test_of_equally_deep_pixels_the_first_is_the_innermost():
    mask = np.zeros((40, 90), bool)
    mask[5:20, 3:18] = mask[12:27, 60:75] = True  # two squares with depth 8
    assert innermost_pixel(mask) == (10, 12)
    assert innermost_pixel(np.zeros((3, 3), bool)) is None
