import numpy as np
import pytest
from PIL import Image

from semsam_jax.core.errors import CheckpointError, PromptError
from semsam_jax.inference.predictor import Predictor
from semsam_jax.inference.requests import Request
from tests.golden.table import assert_masks_recorded


def by_token(answers, field):
    """[p, k, ...] in the order of the tokens."""
    return np.stack(
        [np.asarray(getattr(a, field))[[a.tokens.index(t) for t in range(6)]] for a in answers]
    )


def clicks_px(golden, name):
    xy = golden["tiny_image_a"][f"{name}/prompt_cxcywh"][:, :2].astype(np.float64)
    return [Request(point_coords=[p]) for p in xy * [160, 128]]


@pytest.fixture(scope="module")
def isolated(tiny_model, image_a):
    predictor = Predictor(tiny_model, size="native")
    predictor.set_image(image_a)
    return predictor


@pytest.fixture(scope="module")
def joint(tiny_model, image_a):
    predictor = Predictor(tiny_model, size="native", isolate=False)
    predictor.set_image(image_a)
    return predictor


def test_one_click_equals_reference_demo(isolated, golden):
    found = isolated.predict_many(clicks_px(golden, "demo_one"), return_logits=True)
    want = golden["tiny_image_a"]
    got = by_token(found, "masks").reshape(6, 128, 160)
    assert_masks_recorded(want, "demo_one", got, 1e-3)
    np.testing.assert_allclose(by_token(found, "scores"), want["demo_one/ious"][0], atol=5e-5)


def test_five_clicks_together_equal_reference_demo(joint, golden):
    found = joint.predict_many(clicks_px(golden, "demo_five"), return_logits=True)
    want = golden["tiny_image_a"]
    got = by_token(found, "masks").reshape(30, 128, 160)
    assert_masks_recorded(want, "demo_five", got, 2e-2)  # stored as float16
    np.testing.assert_allclose(by_token(found, "scores"), want["demo_five/ious"][0], atol=5e-5)


def test_isolated_clicks_equal_reference_one_at_a_time(isolated, golden):
    found = isolated.predict_many(clicks_px(golden, "demo_five"))
    want = golden["tiny_image_a"]
    low = by_token(found, "low_res_logits").reshape(30, 32, 40)
    np.testing.assert_allclose(low, want["dec_five_separately/pred_masks"][0], atol=1e-3)
    scores = by_token(found, "scores")
    np.testing.assert_allclose(scores, want["dec_five_separately/pred_ious"][0], atol=5e-5)


def test_levels_1_and_3_are_tokens_3_and_0(joint, golden):
    requests = [Request(r.point_coords, level=[1, 3]) for r in clicks_px(golden, "demo_five")]
    found = joint.predict_many(requests, return_logits=True)
    want = golden["tiny_image_a"]
    assert found[0].tokens == (3, 0)
    got = np.stack([a.masks for a in found]).reshape(10, 128, 160)
    assert_masks_recorded(want, "demo_five_level13", got, 2e-2)


def test_boxes_equal_reference(joint, golden):
    want = golden["tiny_image_a"]
    cx, cy, w, h = (want["dec_box/boxes_cxcywh"].astype(np.float64) * [160, 128, 160, 128]).T
    corners = np.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], 1)
    corners = np.clip(corners, 0, [160, 128, 160, 128])
    found = joint.predict_many([Request(box=box) for box in corners])
    low = by_token(found, "low_res_logits").reshape(18, 32, 40)
    np.testing.assert_allclose(low, want["dec_box/pred_masks"][0], atol=1e-3)


def test_predict_unpacks_and_masks_have_image_size(tiny_model, image_a):
    predictor = Predictor(tiny_model, size=96)
    image = Image.fromarray(image_a).resize((211, 173))
    predictor.set_image(image)
    masks, scores, low = predictor.predict(point_coords=[[100, 80]])
    assert masks.shape == (6, 173, 211)
    assert masks.dtype == bool
    assert scores.shape == (6,)
    assert low.shape[1:] == (24, 32)
    best = predictor.predict(point_coords=[[100, 80]], multimask_output=False)
    assert best.scores.tolist() == [scores.max()]
    by_area = predictor.predict(point_coords=[[100, 80]], area=0.3)
    assert len(by_area.masks) == 1


def test_masks_do_not_depend_on_other_prompts(isolated):
    points = np.random.default_rng(0).uniform(5, 120, (70, 2))
    together = isolated.predict_many([Request(point_coords=[p]) for p in points])
    alone = isolated.predict(point_coords=[points[3]])
    np.testing.assert_allclose(together[3].low_res_logits, alone.low_res_logits, atol=1e-4)


def test_batch_of_images_equals_one_by_one(tiny_model, image_a):
    other = image_a[:, ::-1]
    small = image_a[:96, :96]
    requests = [[Request([[50, 60]])], [Request([[20, 30]]), Request(box=[5, 5, 90, 90])], []]
    predictor = Predictor(tiny_model, size="native")
    together = predictor.predict_batch([image_a, other, small], requests)
    assert [len(t) for t in together] == [1, 2, 0]
    predictor.set_image(other)
    alone = predictor.predict_many(requests[1])
    for a, b in zip(together[1], alone, strict=True):
        np.testing.assert_allclose(a.low_res_logits, b.low_res_logits, atol=1e-4)


def test_several_clicks_describe_one_object(isolated):
    answer = isolated.predict(
        point_coords=[[50, 60], [90, 30], [10, 120]], point_labels=[1, 1, 0], level=[2, 5]
    )
    assert answer.masks.shape == (2, 128, 160)
    assert answer.levels == (2, 5)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({}, "nothing to segment"),
        ({"point_coords": [[500, 10]]}, "160x128"),
        ({"point_coords": [[-1, 10]]}, "outside"),
        ({"point_coords": [[float("nan"), 10]]}, "finite"),
        ({"point_coords": [[1, 2, 3]]}, "shape"),
        ({"point_coords": [["a", 2]]}, "numbers"),
        ({"point_coords": []}, "nothing to segment"),
        ({"point_coords": [[5, 5]], "point_labels": [0]}, "positive"),
        ({"point_coords": [[5, 5]], "point_labels": [2]}, "wanted 1"),
        ({"point_coords": [[5, 5]], "point_labels": [1, 0]}, "2 labels"),
        ({"box": [10, 10, 5, 20]}, "empty"),
        ({"box": [10, 10, 500, 20]}, "outside"),
        ({"box": [[0, 0, 5, 5], [1, 1, 6, 6]]}, "several boxes"),
        ({"point_coords": [[5, 5]], "level": 7}, "1 \\(coarsest\\)"),
        ({"point_coords": [[5, 5]], "level": 0}, "level"),
        ({"point_coords": [[5, 5]], "level": []}, "level"),
        ({"point_coords": [[5, 5]], "level": "big"}, "'big'"),
        ({"point_coords": [[5, 5]], "area": 2.0}, "area"),
    ],
)
def test_unusable_prompts_have_one_clear_error(isolated, prompt, message):
    with pytest.raises(PromptError, match=message):
        isolated.predict(**prompt)


def test_prediction_without_image_and_untrained_names_are_errors(tiny_model, isolated):
    with pytest.raises(PromptError, match="set_image"):
        Predictor(tiny_model).predict(point_coords=[[1, 1]])
    with pytest.raises(CheckpointError, match="invented"):
        isolated.predict(point_coords=[[5, 5]], labels="dog,cat")
