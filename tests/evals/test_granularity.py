"""All-granularity IoU on nested strips with known answers."""

import itertools

import numpy as np
import pytest

from semsam_jax.evals.granularity import (
    GranularityEvaluator,
    GranularityProtocol,
    evaluate_granularity,
    pooled_clicks,
)
from tests.evals.fakes import ReadingModel, reading_sample
from tests.evals.test_one_click import SEGMENTS


def nested_sample():
    """Strips 1, 1+2 and 1+2+3: all three contain the middle of strip 1 only."""
    blocks = np.kron(SEGMENTS, np.ones((4, 4), int))
    masks = [blocks == 1, (blocks == 1) | (blocks == 2), (blocks >= 1) & (blocks <= 3)]
    return reading_sample(SEGMENTS, masks=masks)


def test_all_masks_under_a_click_come_back():
    # The centres of the three nested masks lie in strips 1, 2 and 2 (at different rows).
    result = evaluate_granularity(ReadingModel(), {}, [nested_sample()])
    assert result.by_num_targets[3] == (1.0, 1)
    assert result.num_clicks == 3
    # Click in strip 2 (targets 1+2 and 1+2+3; outputs 2, 2+3, 2+3+0): columns of blocks
    # 1+2 = 8, 1+2+3 = 10, 2 = 5, 2+3 = 7, 2+3+4 = 7 -> IoUs 5/8, 7/10
    assert result.by_num_targets[2] == (pytest.approx((5 / 8 + 7 / 10) / 2), 2)
    assert result.iou_matched == pytest.approx((3 + 2 * (5 / 8 + 7 / 10)) / 7)
    assert result.iou_full == result.iou_matched


def test_fewer_outputs_than_targets():
    one = GranularityProtocol(outputs_per_click=1)  # token 1 has the best predicted quality
    result = evaluate_granularity(ReadingModel(), {}, [nested_sample()], protocol=one)
    assert (result.num_pairs, result.num_targets) == (3, 7)
    # click in strip 1: output 1+2, exact; clicks in strip 2: output 2+3, best with 1+2+3
    assert result.iou_matched == pytest.approx((1 + 2 * 7 / 10) / 3)
    assert result.iou_full == pytest.approx((1 + 2 * 7 / 10) / 7)


def test_second_clicks_pool_their_outputs():
    two = GranularityProtocol(outputs_per_click=1, clicks_per_mask=2)
    result = evaluate_granularity(ReadingModel(), {}, [nested_sample()], protocol=two)
    assert result.num_pairs > 3


def test_assignment_is_the_best_of_all(rng):
    for outputs, targets in ((6, 3), (3, 6), (4, 4)):
        iou = rng.uniform(size=(outputs, targets))
        evaluator = GranularityEvaluator()
        evaluator.process(iou)
        result = evaluator.result()
        few = min(outputs, targets)
        if outputs >= targets:
            best = max(
                sum(iou[o, t] for t, o in enumerate(chosen))
                for chosen in itertools.permutations(range(outputs), few)
            )
        else:
            best = max(
                sum(iou[o, t] for o, t in enumerate(chosen))
                for chosen in itertools.permutations(range(targets), few)
            )
        assert result.iou_matched == pytest.approx(best / few)
        assert result.iou_full == pytest.approx(best / targets)


def test_many_targets_are_not_cut():
    blocks = np.kron(SEGMENTS, np.ones((4, 4), int)) == 1
    masks = []
    for rows in range(20, 37):
        mask = blocks.copy()
        mask[rows:] = False
        masks.append(mask)
    result = evaluate_granularity(ReadingModel(), {}, [reading_sample(SEGMENTS, masks=masks)])
    assert max(result.by_num_targets) > 8
    assert result.num_targets > result.num_pairs


def test_order_and_merge():
    samples = [nested_sample(), reading_sample(SEGMENTS, image_id="b")]
    forward = evaluate_granularity(ReadingModel(), {}, samples, prompts_per_call=4)
    backward = evaluate_granularity(ReadingModel(), {}, samples[::-1])
    assert forward.scalars() == backward.scalars()
    nothing = evaluate_granularity(ReadingModel(), {}, [reading_sample(SEGMENTS, masks=[])])
    assert np.isnan(nothing.iou_matched)


def test_pooled_clicks_lie_inside_and_apart():
    mask = np.zeros((30, 60), bool)
    mask[5:25, 5:55] = True
    clicks = pooled_clicks(mask, 3)
    assert len(set(clicks)) == 3
    assert all(mask[y, x] for x, y in clicks)
    dot = np.zeros((5, 5), bool)
    dot[2, 2] = True
    assert pooled_clicks(dot, 3) == [(2, 2)]
