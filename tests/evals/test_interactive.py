"""Number of clicks and IoU@k with known curves."""

import numpy as np
import pytest

from semsam_jax.evals.interactive import (
    InteractiveEvaluator,
    InteractiveProtocol,
    evaluate_interactive,
    mask_iou,
)
from tests.evals.fakes import ReadingModel, reading_sample
from tests.evals.test_one_click import SEGMENTS

PERFECT = ReadingModel(token_segments=((0,),), token_quality=(1.0,))


def whole_sample():
    """One object that consists of strips 1 and 2, with 27 and 45 blocks."""
    blocks = np.kron(SEGMENTS, np.ones((4, 4), int))
    return reading_sample(SEGMENTS, masks=[(blocks == 1) | (blocks == 2)])


def test_counts_by_hand():
    evaluator = InteractiveEvaluator(InteractiveProtocol(max_clicks=5))
    evaluator.process([0.5, 0.82, 0.86, 0.95])
    evaluator.process([0.1, 0.2, 0.3, 0.4, 0.5])
    result = evaluator.result()
    assert result.noc == {0.80: (2 + 5) / 2, 0.85: (3 + 5) / 2, 0.90: (4 + 5) / 2}
    assert result.failed == {0.80: 1, 0.85: 1, 0.90: 1}
    np.testing.assert_allclose(result.iou_at, [0.3, 0.51, 0.58, 0.675, 0.725])


def test_perfect_model_needs_one_click():
    result = evaluate_interactive(PERFECT, {}, [reading_sample(SEGMENTS)])
    assert set(result.noc.values()) == {1.0}
    np.testing.assert_array_equal(result.iou_at, 1.0)


def test_second_positive_click_adds_the_missing_strip():
    # The first click lies in strip 2 (45 of 72 blocks), the second in strip 1.
    result = evaluate_interactive(PERFECT, {}, [whole_sample()])
    np.testing.assert_allclose(result.iou_at[:3], [45 / 72, 1, 1])
    assert set(result.noc.values()) == {2.0}


def test_negative_click_takes_away():
    # Strip 1 is asked for, the model answers strips 1 and 2, then strips 2 and 3 go.
    model = ReadingModel(token_segments=((0, 1),), token_quality=(1.0,))
    blocks = np.kron(SEGMENTS, np.ones((4, 4), int))
    result = evaluate_interactive(model, {}, [reading_sample(SEGMENTS, masks=[blocks == 1])])
    np.testing.assert_allclose(result.iou_at[:2], [27 / 72, 1])


def test_oracle_is_never_worse_at_the_first_click():
    samples = [whole_sample()]
    plain = evaluate_interactive(ReadingModel(), {}, samples)
    oracle = evaluate_interactive(
        ReadingModel(), {}, samples, protocol=InteractiveProtocol(choice="oracle")
    )
    assert oracle.iou_at[0] >= plain.iou_at[0]


def test_limit_and_order():
    samples = [whole_sample(), reading_sample(SEGMENTS)]
    protocol = InteractiveProtocol(max_clicks=1)
    result = evaluate_interactive(PERFECT, {}, samples, protocol=protocol)
    assert result.failed == {0.80: 1, 0.85: 1, 0.90: 1}
    backward = evaluate_interactive(
        PERFECT, {}, samples[::-1], protocol=protocol, prompts_per_call=2
    )
    assert backward.scalars() == result.scalars()


def test_nothing_to_click():
    result = evaluate_interactive(PERFECT, {}, [reading_sample(SEGMENTS, masks=[])])
    assert result.num_instances == 0
    assert np.isnan(result.noc[0.9])


def test_iou_of_empty_masks_is_zero():
    empty = np.zeros((3, 3), bool)
    assert mask_iou(empty, empty) == 0.0
    assert mask_iou(~empty, ~empty) == pytest.approx(1.0)
