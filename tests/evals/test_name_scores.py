"""Measures of names, worked by hand."""

import numpy as np
import pytest

from semsam_jax.evals.name_scores import (
    NameScoreEvaluator,
    NameTable,
    _ious,
    calibrations,
    reliability,
    score_rows,
)
from semsam_jax.evals.suitable import name_thresholds


def table(**columns):
    """Four masks, each prompted twice: three objects (two of one name) and a part."""
    rows = {
        "kind": [0, 0, 0, 1, 0, 0, 0, 1],
        "prompt": [0, 0, 0, 0, 1, 1, 1, 1],
        "truth": [2, 2, 5, 0, 2, 2, 5, 0],
        "rank": [0, 3, 6, 0, 0, 0, 1, 9],
        "score": [0.9, 0.3, 0.5, 0.7, 0.95, 0.35, 0.2, 0.6],
        "iou": [0.8, 0.7, 0.9, 0.6, 0.8, 0.4, 0.9, 0.6],
    } | columns
    whole = ("kind", "prompt", "truth", "rank")
    return NameTable(*(np.array(v, np.int64 if k in whole else float) for k, v in rows.items()))


def test_top_1_top_5_and_the_most_frequent_name():
    found = table()
    boxes, clicks = found.of("object", "box"), found.of("object", "click")
    assert (boxes.top(1), boxes.top(5)) == (1 / 3, 2 / 3)
    assert (clicks.top(1), clicks.top(5)) == (2 / 3, 1.0)
    assert found.of("object").majority() == 2 / 3
    assert found.of("part", "click").top(5) == 0.0
    assert np.isnan(found.select(np.zeros(8, bool)).top(1))
    rows, scalars = score_rows(found)
    assert scalars["object/box/top1"] == pytest.approx(100 / 3)
    assert (scalars["object/count"], scalars["part/count"]) == (3, 1)
    assert rows[0].note == "3 masks, 2 names"


def test_the_calibration_error_is_the_mean_gap_of_the_bins():
    """Masks that fit: 0.9 and 0.95 right, 0.3, 0.5 and 0.2 wrong."""
    found = calibrations(table())["object"]
    np.testing.assert_array_equal(found.count, [0, 0, 1, 1, 0, 1, 0, 0, 0, 2])
    gaps = [0.2, 0.3, 0.5, 2 * (1 - 0.925)]
    np.testing.assert_allclose(found.error, sum(gaps) / 5)
    assert np.isnan(reliability(table().select(np.zeros(8, bool))).error)
    suited = name_thresholds(table())
    assert suited["name_thresholds"] == {"object": 0.9, "part": 0.7}
    assert suited["name_calibration"]["object"]["names"] == 5
    assert suited["name_calibration"]["object"]["right"] == 0.4


def test_rows_do_not_depend_on_the_order_of_the_images():
    found = table()
    first, second = found.select(np.arange(8) < 3), found.select(np.arange(8) >= 3)
    one, other = NameScoreEvaluator(), NameScoreEvaluator()
    for part in (first, second):
        one.process(part)
    other.process(second)
    third = NameScoreEvaluator()
    third.process(first)
    other.merge(third)
    for a, b in zip(one.state().values(), other.state().values(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(NameScoreEvaluator().result()) == 0


def test_a_true_mask_fills_cells_in_part():
    """An image of one row of two cells; the truth is half of the first one."""
    truth = np.zeros((3, 8), bool)
    truth[:2, :4] = True
    found = np.zeros((1, 3, 8, 8), bool)
    found[0, 0, 0, 0] = True  # the cell
    found[0, 1, 0, :2] = True  # both
    found[0, 2] = True  # the padding of the canvas, too
    np.testing.assert_allclose(_ious(found, [truth]), [[0.5, 0.25, 0.25]])
