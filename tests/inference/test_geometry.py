"""Frames, upsampling, levels and combined clicks."""

import numpy as np
import pytest

from semsam_jax.core.errors import CheckpointError, PromptError
from semsam_jax.inference import granularity
from semsam_jax.inference.clicks import combine_clicks, logits_at
from semsam_jax.inference.preprocess import fit_image, make_frame
from semsam_jax.inference.upsample import axis_weights, upsample_logits, upsample_masks
from tests.golden.table import compare


def test_released_frame_is_that_of_the_original():
    frame = make_frame((602, 1200), "released_v1")
    assert frame.resized_hw == (640, 1275)  # int(640 * 1200 / 602)
    assert frame.canvas_hw == (640, 1280)
    box = frame.click_boxes(np.array([[600.0, 301.0]]))[0]
    padded = 1275 / 1280
    np.testing.assert_allclose(box, [0.5 * padded, 0.5, 0.005 * padded, 0.005], rtol=1e-6)
    assert frame.box_type() == 0


def test_own_frame_is_the_training_canvas():
    frame = make_frame((300, 400), "default", image_size=512)
    assert frame.resized_hw == (384, 512)
    assert frame.canvas_hw == (512, 512)
    box = frame.click_boxes(np.array([[100.0, 150.0]]))[0]
    np.testing.assert_allclose(box, [0.25, 0.375, 6 / 512, 6 / 512], rtol=1e-6)
    assert frame.box_type() == 1


def test_native_only_pads():
    frame = make_frame((117, 150), "default", "native")
    assert (frame.resized_hw, frame.canvas_hw) == ((117, 150), (128, 160))
    image = np.random.default_rng(0).integers(0, 256, (117, 150, 3), np.uint8)
    canvas = fit_image(image, frame)
    np.testing.assert_array_equal(canvas[:117, :150], image)
    assert not canvas[117:].any()


@pytest.mark.parametrize("hw", [(1, 1), (1, 3000), (20000, 10), (20000, 900)])
@pytest.mark.parametrize("prompt_preset", ["default", "released_v1"])
def test_extreme_shapes_stay_bounded(hw, prompt_preset):
    frame = make_frame(hw, prompt_preset, image_size=512)
    assert max(frame.canvas_hw) <= 2560
    assert min(frame.resized_hw) >= 1
    fit_image(np.zeros((*hw, 3), np.uint8), frame)


def test_sizes_that_cannot_be():
    for size in (0, 16, 5000):
        with pytest.raises(PromptError, match="size"):
            make_frame((100, 100), "default", size)
    with pytest.raises(PromptError, match="native"):
        make_frame((5000, 100), "default", "native")


def test_upsampling_equals_reference(golden):
    units = golden["units"]
    low = units["resize/input"][0]
    frame = make_frame((64, 80), "default", "native")
    # Plain bilinear resize to the canvas, which is 64 x 96 here: take the weights apart.
    rows, columns = axis_weights(16, 64, 64, 64), axis_weights(20, 80, 80, 80)
    got = np.einsum("hi,cij,wj->chw", rows, low, columns)
    np.testing.assert_allclose(got, units["resize/bilinear_64x80"][0], atol=1e-5)
    for name, out in (("same_size_14x18", (14, 18)), ("up_30x40", (30, 40)), ("down_6x7", (6, 7))):
        rows, columns = axis_weights(16, 16, 14, out[0]), axis_weights(20, 20, 18, out[1])
        got = np.einsum("hi,cij,wj->chw", rows, low, columns)
        compare("units", f"postproc/{name}", got, 1e-5)
    logits = np.random.default_rng(0).normal(size=(5, 16, 24)).astype(np.float32)
    assert frame.canvas_hw == (64, 96)
    up = upsample_logits(logits, frame, (50, 70))
    np.testing.assert_array_equal(upsample_masks(logits, frame, (50, 70)), up > 0)


@pytest.mark.parametrize(
    ("level", "wanted"),
    [
        (None, (1, 2, 3, 4, 5, 6)),
        ("all", (1, 2, 3, 4, 5, 6)),
        (3, (3,)),
        ("1,3", (1, 3)),
        ([6, 1, 6], (6, 1)),
        (np.array([2]), (2,)),
    ],
)
def test_levels(level, wanted):
    assert granularity.parse_levels(level, 6) == wanted


def test_level_order_must_be_a_permutation():
    assert granularity.check_level_order([3, 2, 0, 4, 1, 5], 6) == (3, 2, 0, 4, 1, 5)
    with pytest.raises(CheckpointError, match="level_order"):
        granularity.check_level_order([0, 0, 1, 2, 3, 4], 6)


def test_level_by_area_is_nearest_by_ratio():
    areas = np.array([0.5, 0.2, 0.05, 0.0])
    assert granularity.levels_by_area(areas, 0.1)[0] == 1
    assert granularity.levels_by_area(areas, 0.04)[0] == 2
    assert granularity.levels_by_area(areas, 1e-12) == [2, 1, 0, 3]  # an empty mask comes last


def _disc(x, y, radius, size=32):
    yy, xx = np.mgrid[:size, :size] + 0.5
    return np.where((xx - x) ** 2 + (yy - y) ** 2 < radius**2, 4.0, -4.0).astype(np.float32)


def test_clicks_are_combined():
    # Token 0 is coarse, token 1 fine. Clicks: two on separate discs, one beside.
    left, right, hole = _disc(8, 16, 6), _disc(24, 16, 6), _disc(8, 16, 2)
    logits = np.stack([[left, left], [right, right], [left, hole]])
    ious = np.array([[0.9, 0.9], [0.8, 0.8], [0.7, 0.7]], np.float32)
    clicks = np.array([[5, 16], [24, 16], [8, 16]]) / 32
    positive = np.array([True, True, False])
    found = combine_clicks(logits, ious, clicks, positive, token=0)
    assert found.disagreements == 0
    assert found.prompt == 1  # covers one positive and no negative: fewest disagreements
    inside = logits_at(found.logits[None, None], clicks)[0, 0] > 0
    assert inside.tolist() == [True, True, False]
    # Without the negative click, it is the union of the two discs.
    both = combine_clicks(logits[:2], ious[:2], clicks[:2], positive[:2], token=0)
    np.testing.assert_array_equal(both.logits > 0, (left > 0) | (right > 0))


def test_a_negative_click_that_cannot_be_carved_stays_counted():
    left = _disc(8, 16, 6)
    logits = np.stack([[left], [left]])
    ious = np.ones((2, 1), np.float32)
    clicks = np.array([[8, 16], [9, 16]]) / 32
    found = combine_clicks(logits, ious, clicks, np.array([True, False]), token=0)
    assert found.disagreements == 1


def test_a_negative_click_never_erases_the_object():
    box, negative = _disc(16, 16, 8), _disc(16, 16, 12)  # the click's masks cover the whole box
    for finest in (_disc(16, 16, 14), _disc(20, 16, 2)):
        logits = np.stack([[negative, finest], [box, box]])
        ious = np.array([[0.9, 0.2], [0.5, 0.5]], np.float32)
        found = combine_clicks(logits, ious, np.array([[20, 16]]) / 32, np.array([False]), token=0)
        share = (found.logits > 0).sum() / (box > 0).sum()
        assert share > 0.9
        assert found.disagreements == int(finest[16, 16] > 0)  # the small one could be cut out


def test_an_empty_answer_is_no_base():
    empty, box = np.full((32, 32), -4.0, np.float32), _disc(16, 16, 8)
    logits = np.stack([[empty], [empty], [box]])
    clicks, positive = np.array([[4, 4], [16, 16]]) / 32, np.array([True, False])
    found = combine_clicks(logits, np.array([[0.9], [0.9], [0.1]]), clicks, positive, token=0)
    assert found.prompt == 2
    np.testing.assert_array_equal(found.logits, box)
