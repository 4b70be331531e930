"""Clicks against recorded numbers, scipy and hand-made masks."""

import numpy as np
import pytest

from semsam_jax.core.distance import distance_inside
from semsam_jax.evals import clicks
from tests.golden.table import EXACT, compare, golden


def test_centre_clicks_equal_the_recorded_exact_transform():
    data = golden("tiny_eval_amg")
    got = [clicks.centre_click(mask) for mask in data["eval/gt_masks"]]
    np.testing.assert_array_equal(got, data["eval/click_xy_pixels_exact_edt"])


def test_distances_equal_the_recorded_exact_transform():
    masks = golden("criterion")["gt/masks"]
    units = golden("units")
    got = [clicks.centre_click(mask) for mask in masks]
    compare("units", "kornia_dt/exact_edt_argmax_xy", got, EXACT)
    largest = [distance_inside(mask).max() for mask in masks]
    compare("units", "kornia_dt/exact_max", largest, 1e-6 * units["kornia_dt/exact_max"].min())
    # The original's approximation is never above the exact transform by more than rounding,
    # and up to a quarter below it; its clicks are therefore given, not recomputed.
    assert np.all(units["kornia_dt/max"] <= np.asarray(largest) * 1.01)


def test_click_of_a_rectangle_is_the_first_of_its_ridge():
    mask = np.zeros((20, 30), bool)
    mask[5:12, 10:25] = True  # 7 rows: distance 4 along row 8, from x = 13
    assert clicks.centre_click(mask) == (13, 8)


def test_the_image_border_counts_as_outside():
    assert clicks.centre_click(np.ones((5, 9), bool)) == (2, 2)


def test_empty_mask_has_no_click():
    assert clicks.centre_click(np.zeros((4, 4), bool)) is None


def test_next_click_goes_to_the_larger_error():
    truth = np.zeros((40, 40), bool)
    truth[5:15, 5:15] = True
    prediction = np.zeros_like(truth)
    assert clicks.next_click(truth, prediction) == (9, 9, True)
    prediction[:, 20:] = True
    x, y, is_positive = clicks.next_click(truth, prediction)
    assert not is_positive
    assert prediction[y, x]
    assert clicks.next_click(truth, truth) is None


def test_click_boxes_equal_the_recorded_ones():
    data = golden("tiny_eval_amg")
    got = clicks.click_boxes(data["eval/click_xy_pixels"], (128, 160))
    np.testing.assert_allclose(got, data["eval/points_cxcywh_padded"], atol=1e-7)


@pytest.mark.parametrize("count", [0, 3])
def test_click_boxes_shape(count):
    assert clicks.click_boxes(np.zeros((count, 2)), (64, 32)).shape == (count, 4)
