"""Calibration of the level order."""

import numpy as np
import pytest

from semsam_jax.core.errors import DataError
from semsam_jax.evals.levels import calibrate_levels, kendall_tau_descending
from semsam_jax.evals.one_click import evaluate_one_click
from tests.evals.fakes import ReadingModel, reading_sample
from tests.evals.test_one_click import SEGMENTS


def test_order_is_largest_area_first():
    result = evaluate_one_click(ReadingModel(), {}, [reading_sample(SEGMENTS)])
    levels = calibrate_levels(result.table)
    assert levels.level_order == (2, 1, 0)
    assert levels.num_clicks == 3
    roots = np.sqrt(result.table.pred_area).mean(0)
    np.testing.assert_allclose(levels.level_sizes, roots[[2, 1, 0]], atol=1e-6)
    # token 0 is the finest level and is best for all; for the last segment token 1 ties with
    # it (segment 4 is empty), and the first token wins
    np.testing.assert_allclose(sum(levels.coverage.values())[2], len(levels.coverage))


def test_kendall_tau_by_hand():
    rows = np.asarray([[3.0, 2, 1], [1, 2, 3], [2, 3, 1], [1, 1, 1]])
    np.testing.assert_allclose(kendall_tau_descending(rows), [1, -1, 1 / 3, 0])


def test_no_click_is_an_error():
    empty = evaluate_one_click(ReadingModel(), {}, [])
    with pytest.raises(DataError, match="no click was scored"):
        calibrate_levels(empty.table)
