"""The suite of a given granularity, on nested strips with known answers."""

import math

import numpy as np
import pytest

from semsam_jax.core.structs import Prompts
from semsam_jax.evals import plots
from semsam_jax.evals.continuous import (
    BlendedModel,
    ContinuousEvaluator,
    best_of,
    blended_model,
    chain_place,
    click_row,
    evaluate_best_granularity,
    evaluate_continuous,
)
from semsam_jax.inference.granularity import granularity_scale
from tests.evals.fakes import ReadingModel, reading_sample
from tests.evals.test_granularity import nested_sample
from tests.evals.test_one_click import SEGMENTS

STRIPS = ((1.0, 0.0, 0.0),) * 3 + ((0.0, 1.0, 0.0),) * 5 + ((0.0, 0.0, 1.0),) * 3
MODEL = BlendedModel(ReadingModel(), STRIPS)
"""The clicked strip at 0, 0.1 and 0.2, two strips at 0.3 to 0.7, three strips at 0.8 to 1."""


def test_blends_stand_before_the_tokens():
    scale = granularity_scale({}, 3)  # levels 1, 2, 3, tokens 2, 1, 0, at 1, 1/2, 0
    model = blended_model(ReadingModel(), scale, (2, 1, 0))
    np.testing.assert_allclose(model.weights[2], (0.6, 0.4, 0), atol=1e-7)
    np.testing.assert_allclose(model.weights[10], (0, 0, 1), atol=1e-7)
    sample = nested_sample()
    arguments = (sample.image[None], np.array([sample.size_hw]))
    pyramid = model.apply({"params": {"model": {}}}, *arguments, method="encode_image")
    box = np.array([[[0.3, 0.3, 0.1, 0.1]]], np.float32)
    prompts = Prompts(box, np.zeros((1, 1), np.int32), np.ones((1, 1), bool))
    answer = model.apply({}, pyramid, prompts, method="decode_prompts")
    assert answer.pred_ious.shape == (1, 1, 1, 11 + 3)
    for values in (answer.mask_embed, answer.pred_ious):
        values = np.asarray(values)[0, 0, 0]
        np.testing.assert_allclose(values[2], 0.6 * values[11] + 0.4 * values[12], atol=1e-6)
        np.testing.assert_array_equal(values[10], values[13])


def test_all_measures_by_hand():
    # Strips 1, 2, 3 have 27, 45, 18 blocks; the masks are 1, 1+2, 1+2+3 with clicks in 1, 2, 2.
    result = evaluate_continuous(MODEL, {}, [nested_sample()])
    assert (result.num_masks, result.num_in_chains, result.num_clicks) == (3, 3, 3)
    # Asked 0 in a chain of three: strip 1. Asked 0 of (1+2, 1+2+3): strip 2. Asked 1: strips 2, 3.
    assert result.given == pytest.approx((1 + 45 / 72 + 63 / 90) / 3)
    assert result.given_all == result.given
    # 63 blocks are less than the smallest of the chain, 72: 0 came where 1 was asked for.
    assert result.error == pytest.approx((0 + 0 + 1) / 3)
    one = [
        (3 * 1 + 5 * 27 / 72 + 3 * 27 / 90) / 11,
        (3 * 45 / 72 + 8 * 45 / 90) / 11,
        (3 * 45 / 90 + 8 * 63 / 90) / 11,
    ]
    assert result.best_of[0] == pytest.approx(np.mean(one))
    assert result.best_of[-1] == pytest.approx((1 + 45 / 72 + 63 / 90) / 3)
    tokens = [(1 + 27 / 72 + 27 / 90) / 3, (45 / 72 + 1) / 3, (45 + 63 + 63) / 90 / 3]
    assert result.best_of_tokens[0] == pytest.approx(np.mean(tokens))
    assert result.best_of_tokens[-1] == result.best_of[-1]
    # Areas 27 3x, 72 5x, 90 3x, and twice 45 3x, 63 8x: pairs that grow, of 55.
    assert result.tau == pytest.approx((39 + 24 + 24) / 3 / 55)
    assert (result.shrinking, result.nested) == (0, 1)
    assert result.jump == pytest.approx((45 / 90 + 18 / 63 + 18 / 63) / 3)
    assert result.distinct == pytest.approx((3 + 2 + 2) / 3)


def test_clicks_at_the_best_granularity():
    columns = range(11)
    result = evaluate_best_granularity(MODEL, {}, [nested_sample()], columns)
    # Strip 1 at once; 1+2 by its two strips; 1+2+3 by a click in strip 2 and one in strip 1.
    assert result.noc == dict.fromkeys((0.8, 0.85, 0.9), pytest.approx((1 + 2 + 2) / 3))
    assert result.iou_at[0] == pytest.approx((1 + 45 / 72 + 63 / 90) / 3)
    worse = evaluate_best_granularity(MODEL, {}, [nested_sample()], [5])
    assert worse.iou_at[0] == pytest.approx((27 / 72 + 45 / 90 + 63 / 90) / 3)


def test_masks_alone_and_images_without_any():
    samples = [reading_sample(SEGMENTS), reading_sample(SEGMENTS, masks=[], image_id="b")]
    result = evaluate_continuous(MODEL, {}, samples)
    assert (result.num_masks, result.num_in_chains) == (3, 0)
    assert math.isnan(result.given)
    assert math.isnan(result.error)
    # Asked for the whole, the model answers three strips: 27 of 90, 45 of 63, 18 of 18.
    assert result.given_all == pytest.approx((27 / 90 + 45 / 63 + 1) / 3)
    nothing = evaluate_continuous(MODEL, {}, samples[1:])
    assert nothing.num_clicks == 0
    assert math.isnan(nothing.scalars()["best_of/11"])


def test_best_of_k_is_the_mean_over_all_choices():
    np.testing.assert_allclose(best_of(np.array([[0.9, 0.1, 0.4]])), [1.4 / 3, 2.2 / 3, 0.9])
    np.testing.assert_allclose(best_of(np.array([[0.2, 0.2], [1.0, 0.0]])), [0.35, 0.6])


def test_places_in_a_chain():
    chain = np.array([100.0, 400.0, 900.0])
    assert [chain_place(a, chain) for a in (100.0, 400.0, 900.0)] == [0, 0.5, 1]
    assert [chain_place(a, chain) for a in (0.0, 50.0, 2500.0)] == [0, 0, 1]
    assert chain_place(7.0, np.array([64.0, 64.0])) == 1


def test_a_slider_that_goes_back():
    found = np.zeros((4, 1, 10), bool)
    found[0, 0, :4] = True
    found[1, 0, 2:5] = True  # smaller than the one before, and half outside it
    found[3, 0, :] = True
    row = click_row(found)
    np.testing.assert_allclose(row["area"], [0.4, 0.3, 0, 1])
    # Pairs (0,1), (0,2), (0,3), (1,2), (1,3); an empty mask lies in nothing.
    assert row["nested"] == pytest.approx((0.5 + 0 + 1 + 0 + 1) / 5)
    assert row["distinct"] == 3
    evaluator = ContinuousEvaluator()
    evaluator.process({name: value[None] for name, value in row.items()})
    result = evaluator.result()
    assert result.shrinking == pytest.approx(2 / 3)
    assert result.jump == 1
    # (0,3), (1,3), (2,3) grow; (0,1), (0,2), (1,2) shrink.
    assert result.tau == 0


def test_the_picture_is_drawn(tmp_path):
    result = evaluate_continuous(MODEL, {}, [nested_sample()])
    plots.plot_continuous(tmp_path / "continuous.png", result)
    assert (tmp_path / "continuous.png").stat().st_size > 10_000
