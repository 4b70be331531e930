"""The continuum between the levels: its arithmetic, and the answers of a model."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from semsam_jax.core.errors import CheckpointError, PromptError
from semsam_jax.core.structs import Prompts
from semsam_jax.inference.granularity import (
    granularity_scale,
    parse_granularity,
    token_weights,
)
from semsam_jax.inference.loading import model_from_params
from semsam_jax.inference.mask_generator import MaskGenerator
from semsam_jax.inference.predictor import Predictor
from semsam_jax.inference.requests import Request
from semsam_jax.models.granularity_token import GranularityToken
from tests.inference.conftest import tiny_meta

SIZES = [0.8, 0.6, 0.5, 0.35, 0.3, 0.2]
"""Stops 1, 2/3, 1/2, 1/4, 1/6, 0."""


def test_levels_lie_where_their_sizes_are():
    scale = granularity_scale({"level_sizes": SIZES}, 6)
    assert scale.is_calibrated
    np.testing.assert_allclose(scale.stops, [1, 2 / 3, 1 / 2, 1 / 4, 1 / 6, 0])
    for level, stop in enumerate(scale.stops, start=1):
        assert scale.level(stop) == pytest.approx(level)
        assert scale.nearest(stop) == level
    # A third of the way from level 4 (1/4) to level 3 (1/2).
    assert scale.level(1 / 3) == pytest.approx(4 - 1 / 3)
    np.testing.assert_allclose(scale.weights(1 / 3), [0, 0, 1 / 3, 2 / 3, 0, 0], atol=1e-12)
    order = (3, 2, 0, 4, 1, 5)  # level 3 is token 0, level 4 token 4
    weights = token_weights(scale, [1 / 3, 1.0], order)
    np.testing.assert_allclose(weights[0], [1 / 3, 0, 0, 0, 2 / 3, 0], atol=1e-7)
    assert weights[1].tolist() == [0, 0, 0, 1, 0, 0]


def test_levels_without_measured_sizes_lie_evenly():
    even = granularity_scale({}, 6)
    assert even.stops == pytest.approx([1, 0.8, 0.6, 0.4, 0.2, 0])
    assert not even.is_calibrated
    assert granularity_scale({"level_sizes": [0.5] * 6}, 6) == even
    # Ordered by mean area, the roots may disagree: a level is never smaller than a finer one.
    stops = granularity_scale({"level_sizes": [0.8, 0.5, 0.6, 0.3, 0.2, 0.2]}, 6).stops
    np.testing.assert_allclose(stops, [1, 0.5, 0.5, 1 / 6, 0, 0], atol=1e-12)


@pytest.mark.parametrize("sizes", [[0.5] * 5, "large", [0.5, 0.4, 0.3, 0.2, 0.1, None], [7] * 6])
def test_damaged_calibration_is_one_clear_error(sizes):
    with pytest.raises(CheckpointError, match=r"level_sizes.*calibrate"):
        granularity_scale({"level_sizes": sizes}, 6)


@pytest.mark.parametrize(
    "wrong",
    [
        -0.01,
        1.01,
        float("nan"),
        float("inf"),
        "0.3",
        True,
        [],
        [[0.1], [0.2]],
        [0.5, None],
        10**400,
    ],
)
def test_granularities_without_meaning(wrong):
    with pytest.raises(PromptError, match=r"granularity: got .*0 \(the finest part\)"):
        parse_granularity(wrong)


def test_one_way_to_say_how_coarse():
    assert parse_granularity(0, "all") == (0.0,)
    assert parse_granularity(np.array([1, 0.25])) == (1.0, 0.25)
    assert parse_granularity(None, 3, 0.2) is None
    with pytest.raises(PromptError, match="together with level"):
        parse_granularity(0.5, level=2)
    with pytest.raises(PromptError, match="together with area"):
        parse_granularity(0.5, area=0.2)


@pytest.fixture(scope="module")
def predictor(tiny_model, image_a):
    model = dataclasses.replace(tiny_model, meta=tiny_model.meta | {"level_sizes": SIZES})
    predictor = Predictor(model, size="native")
    predictor.set_image(image_a)
    return predictor


def test_between_two_levels_their_logits_blend(predictor):
    levels = predictor.predict([[50, 60]], return_logits=True)
    stops = predictor.model.granularity_scale.stops
    found = predictor.predict([[50, 60]], granularity=[*stops, 1 / 3], return_logits=True)
    np.testing.assert_allclose(found.masks[:6], levels.masks, atol=1e-4)
    assert found.levels == (1, 2, 3, 4, 5, 6, 4)
    assert found.tokens == (*levels.tokens, levels.tokens[3])
    want = levels.masks[2] / 3 + levels.masks[3] * 2 / 3
    np.testing.assert_allclose(found.masks[6], want, atol=1e-3)
    assert found.scores[6] == pytest.approx(levels.scores[2] / 3 + levels.scores[3] * 2 / 3)
    assert found[6:].granularities == (1 / 3,)
    assert found.records()[6]["granularity"] == 1 / 3
    assert "granularity" not in levels.records()[0]
    again = predictor.predict([[50, 60]], granularity=1 / 3, return_logits=True)
    np.testing.assert_allclose(again.masks[0], found.masks[6], atol=1e-4)
    (one,) = predictor.predict_many([{"point_coords": [[50, 60]], "granularity": 1 / 3}])
    np.testing.assert_array_equal(one.masks[0], again.masks[0] > 0)
    close = predictor.predict([[50, 60]], granularity=1 / 3 + 1e-6, return_logits=True)
    np.testing.assert_allclose(close.masks, again.masks, atol=1e-3)


def test_several_clicks_and_boxes_take_a_granularity(predictor):
    answer = predictor.predict([[50, 60], [90, 30], [10, 120]], [1, 1, 0], granularity=[0.1, 0.9])
    assert answer.masks.shape == (2, 128, 160)
    assert answer.masks.any((1, 2)).all()
    batch = predictor.predict(box=[[5, 5, 90, 90], [20, 20, 60, 100]], granularity=0.4)
    assert batch.granularities == (0.4, 0.4)


def test_a_blend_without_pixels_gives_way_to_the_nearest_level(predictor, monkeypatch):
    """Two levels whose masks lie apart: half of each is nowhere above zero."""

    def apart(features, found, sizes):
        logits = np.full((1, 6, *features.shape[:2]), -1.0, np.float32)
        logits[:, predictor.model.level_order[0], :8] = 0.5
        logits[:, predictor.model.level_order[1], 16:] = 0.5
        return iter([logits])

    monkeypatch.setattr("semsam_jax.inference.predictor.prompt_logits", apart)
    # 2/3 is level 2 and 1 level 1; 0.8 is nearer to level 2, 0.9 to level 1.
    for asked, level in ((0.8, 2), (0.9, 1)):
        answer = predictor.predict([[50, 60]], granularity=asked)
        assert answer.masks.any()
        assert answer.levels == (level,)
        assert answer.granularities == (asked,)


def test_everything_at_one_granularity(predictor, image_a):
    options = {"points_per_side": 4, "pred_iou_thresh": -10.0, "stability_score_thresh": 0.0}
    options |= {"size": "native", "output_mode": "coco_rle"}
    stop = predictor.model.granularity_scale.stops[2]
    at_stop = MaskGenerator(predictor.model, granularity=stop, **options).generate(image_a)
    of_level = MaskGenerator(predictor.model, level=3, **options).generate(image_a)
    assert [r["area"] for r in at_stop] == [r["area"] for r in of_level]
    assert {r["granularity"] for r in at_stop} == {stop}
    options["box_nms_thresh"] = 1.0
    between = MaskGenerator(predictor.model, granularity=[0.3, 0.7], **options).generate(image_a)
    assert {r["granularity"] for r in between} == {0.3, 0.7}
    with pytest.raises(PromptError, match="together with level"):
        MaskGenerator(predictor.model, level=2, granularity=0.2)


def test_an_uncalibrated_checkpoint_says_so_once(tiny_model, image_a, caplog):
    model = dataclasses.replace(tiny_model, meta=dict(tiny_model.meta))
    predictor = Predictor(model, size="native")
    predictor.set_image(image_a)
    requests = [Request([[50, 60]], granularity=0.4), Request([[9, 9]], granularity=0.2)]
    assert [len(answer) for answer in predictor.predict_many(requests)] == [1, 1]
    assert caplog.text.count("`semsam calibrate` measures them") == 1
    assert json.dumps(predictor.predict([[50, 60]], granularity=0.4).records())


@pytest.fixture(scope="module")
def with_token(tiny_params, image_a):
    config, params = tiny_params
    decoder = dataclasses.replace(config.decoder, granularity_token=True)
    config = dataclasses.replace(config, decoder=decoder)
    fresh = GranularityToken(decoder.dim).init(jax.random.key(0), jax.numpy.ones((1, 1, 1)))
    params = {**params, "granularity_token": fresh["params"]}
    predictor = Predictor(model_from_params(params, tiny_meta(config)), size="native")
    predictor.set_image(image_a)
    return predictor


def test_a_model_with_the_token_answers_with_it(with_token, predictor):
    levels = with_token.predict([[50, 60]], return_logits=True)
    np.testing.assert_array_equal(
        levels.masks, predictor.predict([[50, 60]], return_logits=True).masks
    )
    asked = [1.0, 0.4, 0.0]
    found = with_token.predict([[50, 60]], granularity=asked, return_logits=True)
    model, frame = with_token.model, with_token._encoded.frame
    prompts = Prompts(
        frame.click_boxes(np.array([[50.0, 60.0]]))[None], np.zeros((1, 1), np.int32), [[True]]
    )
    asked = np.array([[asked]], np.float32)
    direct = model.decode(with_token.pyramid, prompts, None, True, asked)
    np.testing.assert_allclose(found.scores, np.asarray(direct.pred_ious)[0, 0, 6:], atol=1e-4)
    assert found.granularities == (1.0, 0.4, 0.0)
    np.testing.assert_array_equal(
        with_token.predict([[50, 60]], return_logits=True).masks, levels.masks
    )
    # Requests with and without a granularity in one call, clicks that are combined, everything.
    both = with_token.predict_many(
        [
            {"point_coords": [[50, 60]]},
            {"point_coords": [[50, 60], [90, 30]], "point_labels": [1, 0], "granularity": 0.4},
        ]
    )
    np.testing.assert_array_equal(both[0].masks, levels.masks > 0)
    assert both[1].granularities == (0.4,)
    options = {"points_per_side": 4, "pred_iou_thresh": -10.0, "stability_score_thresh": 0.0}
    records = MaskGenerator(
        model, granularity=[0.3, 0.7], size="native", box_nms_thresh=1.0, **options
    ).generate(np.zeros((64, 64, 3), np.uint8))
    assert {r["granularity"] for r in records} <= {0.3, 0.7}
