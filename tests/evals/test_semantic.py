"""Semantic mIoU by hand."""

import numpy as np
import pytest

from semsam_jax.core.errors import DataError
from semsam_jax.evals.semantic import SemanticEvaluator

TRUTH = np.asarray([[0, 0, 1, 1], [0, 2, 255, -1]])
PREDICTION = np.asarray([[0, 1, 1, 1], [0, 9, 2, 2]])


def test_by_hand():
    evaluator = SemanticEvaluator(4)
    evaluator.process(TRUTH, PREDICTION)
    result = evaluator.result()
    # class 0: 2 of 3; class 1: 2 of 3; class 2: predicted as unknown; class 3 never occurs;
    # the two unlabelled pixels count nowhere
    np.testing.assert_allclose(result.class_iou, [2 / 3, 2 / 3, 0, np.nan])
    assert result.miou == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    assert result.pixel_accuracy == pytest.approx(4 / 6)


def test_perfect_and_empty():
    evaluator = SemanticEvaluator(3)
    assert np.isnan(evaluator.result().miou)
    evaluator.process(TRUTH, TRUTH)
    assert evaluator.result().miou == 1.0


def test_sums_do_not_depend_on_order(rng):
    rows = [(rng.integers(-1, 5, (8, 9)), rng.integers(0, 5, (8, 9))) for _ in range(5)]
    forward, merged = SemanticEvaluator(5), SemanticEvaluator(5)
    for row in rows:
        forward.process(*row)
    for row in rows[::-1]:
        part = SemanticEvaluator(5)
        part.process(*row)
        merged.merge(part)
    np.testing.assert_array_equal(forward.result().confusion, merged.result().confusion)


def test_sizes_must_agree():
    with pytest.raises(DataError, match="resize the prediction"):
        SemanticEvaluator(2).process(TRUTH, PREDICTION[:1])
