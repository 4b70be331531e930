import dataclasses
import warnings

import numpy as np
import pytest
from PIL import Image

from semsam_jax.core.errors import CheckpointError, PromptError, SemSamError
from semsam_jax.inference.clicks import logits_at
from semsam_jax.inference.labels import label_set
from semsam_jax.inference.mask_prompt import describe_mask
from semsam_jax.inference.predictor import Predictor
from semsam_jax.inference.requests import Request, check_request
from semsam_jax.inference.results import Segments, SegmentsBatch
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


def test_one_click_equals_the_demo_of_the_original(isolated, golden):
    found = isolated.predict_many(clicks_px(golden, "demo_one"), return_logits=True)
    want = golden["tiny_image_a"]
    got = by_token(found, "masks").reshape(6, 128, 160)
    assert_masks_recorded(want, "demo_one", got, 1e-3)
    np.testing.assert_allclose(by_token(found, "scores"), want["demo_one/ious"][0], atol=5e-5)


def test_five_clicks_together_equal_the_demo_of_the_original(joint, golden):
    found = joint.predict_many(clicks_px(golden, "demo_five"), return_logits=True)
    want = golden["tiny_image_a"]
    got = by_token(found, "masks").reshape(30, 128, 160)
    assert_masks_recorded(want, "demo_five", got, 2e-2)  # stored as float16
    np.testing.assert_allclose(by_token(found, "scores"), want["demo_five/ious"][0], atol=5e-5)


def test_isolated_clicks_equal_the_original_one_at_a_time(isolated, golden):
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
        ({"point_coords": [[5, 5]], "point_labels": [2]}, "expected 1"),
        ({"point_coords": [[5, 5]], "point_labels": [1, 0]}, "2 labels"),
        ({"box": [10, 10, 5, 20]}, "empty"),
        ({"box": [10, 10, 500, 20]}, "outside"),
        ({"box": [[0, 0, 5, 5], [1, 1, 6, 6]], "point_coords": [[1, 1]]}, "k for each box"),
        ({"point_coords": [[[1, 1]], [[2, 2]]], "box": [[0, 0, 5, 5]] * 3}, "3 boxes for 2"),
        ({"point_coords": [[5, 5]], "mask_input": np.zeros((3, 3))}, "low_res_logits"),
        ({"point_coords": [[5, 5]], "mask_input": np.zeros((128, 160), bool)}, "empty"),
        ({"point_coords": [[5, 5]], "mask_input": "mask"}, "booleans or numbers"),
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
    with pytest.raises(CheckpointError, match="would be meaningless"):
        isolated.predict(point_coords=[[5, 5]], labels="dog,cat")
    # Trained on labelled data by clicks alone: its tower is as random as it was born.
    meta = tiny_model.meta | {"class_heads_trained": True, "text": {"source": "none"}}
    with pytest.raises(CheckpointError, match="would be meaningless"):
        label_set(dataclasses.replace(tiny_model, meta=meta), "dog,cat")


def test_an_image_that_fails_leaves_none_set(tiny_model, image_a):
    predictor = Predictor(tiny_model, size=64)
    for wrong in ({"image": "/no/such/file.png"}, {"image": image_a, "image_format": "HSV"}):
        predictor.set_image(image_a)
        with pytest.raises(SemSamError):
            predictor.set_image(**wrong)
        assert not predictor.is_image_set
        with pytest.raises(PromptError, match="no image set"):
            predictor.predict([[50, 60]])


def test_an_empty_mask_is_never_the_best(tiny_model, image_a, monkeypatch):
    """Levels 2, 4 and 6 answer with nothing and claim a predicted IoU of 1."""
    predictor = Predictor(tiny_model, size=96)
    predictor.set_image(image_a)
    decode = tiny_model.decode

    def answer(*args):
        found = decode(*args)
        nothing = np.asarray(found.mask_embed) * 0
        nothing[..., 0] = 0
        keep = np.isin(np.arange(6), [3, 0, 1])
        shown = np.where(keep[:, None], np.asarray(found.mask_embed), nothing)
        ious = np.where(keep, np.asarray(found.pred_ious), 1.0)
        return found.replace(mask_embed=shown, pred_ious=ious)

    monkeypatch.setattr(type(tiny_model), "decode", lambda self, *args: answer(*args))
    for prompt in (
        {"point_coords": [[60, 50]]},
        {"point_coords": [[60, 50]], "point_labels": [0], "box": [10, 10, 140, 110]},
    ):
        every = predictor.predict(**prompt)
        is_empty = ~every.masks.any((1, 2))
        assert is_empty.any()
        assert not is_empty.all()
        assert every.scores[is_empty].max() <= min(0, every.scores[~is_empty].min())
        assert predictor.predict(**prompt, multimask_output=False).masks.any()
        assert predictor.predict(**prompt, area=1e-6).masks.any()


def test_batches_of_boxes_and_clicks_equal_single_requests(isolated):
    boxes = np.array([[5, 5, 60, 60], [40, 20, 150, 110], [0, 0, 160, 128]])
    batch = isolated.predict(box=boxes, level=[1, 4])
    masks, scores, low = batch
    assert isinstance(batch, SegmentsBatch)
    assert masks.shape == (3, 2, 128, 160)
    assert (scores.shape, low.shape[:2]) == ((3, 2), (3, 2))
    for answer, box in zip(batch.answers, boxes, strict=True):
        alone = isolated.predict(box=box, level=[1, 4])
        np.testing.assert_allclose(answer.low_res_logits, alone.low_res_logits, atol=1e-4)
    assert isinstance(isolated.predict(box=boxes[:1]), Segments)
    clicks = np.array([[[50, 60]], [[90, 30]]])  # transformers and SAM 2: [n, 1, 2]
    both = isolated.predict(clicks, [[1], [1]])
    assert [len(answer) for answer in both.answers] == [6, 6]
    assert len(both.records()) == 12
    assert both[1].levels == both.answers[1].levels
    padded = isolated.predict([[[50, 60], [9, 9]], [[90, 30], [20, 20]]], [[1, -1], [1, 0]])
    np.testing.assert_allclose(padded[0].low_res_logits, both[0].low_res_logits, atol=1e-4)


def test_positions_of_arguments_are_those_of_sam(isolated):
    first = isolated.predict([[50, 60]], [1])
    again = isolated.predict(np.array([[50, 60]]), np.array([1]), None, first.low_res_logits[2:3])
    assert again.masks.shape == (6, 128, 160)
    best = isolated.predict(np.array([[50, 60]]), np.array([1]), None, None, False, True)
    assert best.masks.shape == (1, 128, 160)
    assert best.masks.dtype == np.float32
    with pytest.raises(TypeError):
        isolated.predict([[50, 60]], [1], None, None, True, False, 3)  # level is named


def test_dicts_are_requests(isolated):
    (answer,) = isolated.predict_many([{"point_coords": [[50, 60]], "level": 2}])
    assert answer.levels == (2,)
    with pytest.raises(PromptError, match="keys points"):
        isolated.predict_many([{"points": [[1, 1]]}])


def test_fractions_are_noticed(isolated):
    for prompt in ({"point_coords": [[0.5, 0.4]]}, {"box": [0.1, 0.1, 0.9, 0.8]}):
        with pytest.warns(UserWarning, match="looks like fractions"):
            isolated.predict(**prompt)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        isolated.predict([[0, 0]])
        isolated.predict([[0.5, 20]])
        # A command checks its prompts before it loads the model; the predictor alone warns.
        check_request(Request([[0.5, 0.4]]), (128, 160))


def test_a_mask_is_refined(tiny_model, image_a):
    """The mask of another image place is told by clicks on it, beside it and its box."""
    predictor = Predictor(tiny_model, size="native")
    predictor.set_image(image_a)
    mask = np.zeros((128, 160), bool)
    mask[30:90, 20:100] = True
    mask[50:70, 50:80] = False
    points, is_positive, box = describe_mask(mask)
    assert box.tolist() == [20, 30, 100, 90]
    assert 2 <= len(points) <= 5
    for (x, y), flag in zip(points, is_positive, strict=True):
        assert mask[int(y), int(x)] == flag
    answer = predictor.predict(mask_input=mask)
    drawn = predictor.predict(points, is_positive.astype(int), box)
    np.testing.assert_array_equal(answer.low_res_logits, drawn.low_res_logits)
    best = predictor.predict(mask_input=mask, multimask_output=False)
    # Of the levels that agree with most clicks, the one most like the mask that was given.
    low = answer.low_res_logits[:, None]
    xy = points / [160, 128]
    wrong = ((logits_at(low, xy)[:, 0] > 0) != is_positive).sum(1)
    like = np.array([(m & mask).sum() / (m | mask).sum() for m in answer.masks])
    fewest = wrong == wrong.min()
    assert like[answer.levels.index(best.levels[0])] == like[fewest].max()
    with_click = predictor.predict([[60, 60]], [1], mask_input=mask)
    assert len(with_click) == 6
