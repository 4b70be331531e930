import numpy as np
import pytest

from semsam_jax.evals.thresholds import best_threshold, with_stored


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ([(0.9, True), (0.8, True), (0.3, False), (0.2, False)], 0.8),
        ([(0.9, True), (0.5, False), (0.4, True), (0.3, True)], 0.3),  # F1 0.75, 0.4 at 0.9
        ([(0.9, False), (0.8, False)], 1.0),  # never right: never sure
        ([(0.5, True)], 0.5),
        ([(0.5, True), (0.5, False), (0.5, False)], 0.5),  # all of one score, or none of them
    ],
)
def test_the_threshold_of_names_has_the_best_f1(rows, wanted):
    scores, is_right = map(np.array, zip(*rows, strict=True))
    assert best_threshold(scores, is_right) == wanted


def test_a_calibration_without_parts_leaves_those_that_were_measured_before():
    meta = {
        "name_scales": {"object": [1.0, 0.0], "part": [2.0, 1.0]},
        "name_thresholds": {"object": 0.3, "part": 0.2},
    }
    found = {"name_scales": {"object": [3.0, 0.5]}, "mask_thresholds": {"pred_iou": 0.6}}
    assert with_stored(meta, found) == {
        "name_scales": {"object": [3.0, 0.5], "part": [2.0, 1.0]},
        "mask_thresholds": {"pred_iou": 0.6},
    }
