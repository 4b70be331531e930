"""1-click evaluation on pictures whose answers are known by arithmetic."""

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
from pycocotools import mask as rle_codec

from semsam_jax.core.errors import DataError
from semsam_jax.core.rle import decode
from semsam_jax.evals.one_click import ClickProtocol, OneClickEvaluator, evaluate_one_click
from semsam_jax.evals.prompt_scores import resize_valid, upsample_by_4
from semsam_jax.evals.samples import EvalSample, size_class
from tests.evals.fakes import ReadingModel, reading_sample

SEGMENTS = np.repeat([[0, 1, 1, 1, 2, 2, 2, 2, 2, 3, 3, 0]], 9, axis=0)  # 27, 45, 18 blocks
AREAS = np.asarray([27, 45, 18])


def evaluate(samples, model=None, **options):
    return evaluate_one_click(model or ReadingModel(), {}, samples, **options)


def test_known_ious_areas_and_choice():
    result = evaluate([reading_sample(SEGMENTS)])
    # token 1 = segment s and s+1 and has the highest predicted quality
    want = [27 / 72, 45 / 63, 18 / 18]
    np.testing.assert_allclose(result.table.iou_max, want)
    np.testing.assert_allclose(result.table.iou_oracle, [1, 1, 1])
    assert result.iou_max == pytest.approx(np.mean(want))
    assert result.iou_oracle == 1.0
    np.testing.assert_allclose(result.token_iou[0], 1.0)
    np.testing.assert_allclose(result.table.iou[0, 2], 27 / 90)
    np.testing.assert_allclose(result.token_area[0], AREAS.mean() / SEGMENTS.size)
    np.testing.assert_allclose(result.table.area, AREAS / SEGMENTS.size)


def test_perfect_model_scores_one():
    model = ReadingModel(token_segments=((0,),), token_quality=(1.0,))
    result = evaluate([reading_sample(SEGMENTS)], model)
    assert (result.iou_max, result.iou_oracle) == (1.0, 1.0)


def test_shifted_masks_score_what_arithmetic_says():
    # Strip 2 is 20 pixels wide; a mask that is 4 pixels off shares 16 of 24.
    blocks = np.kron(SEGMENTS, np.ones((4, 4), int))
    sample = reading_sample(SEGMENTS, masks=[np.roll(blocks == 2, 4, axis=1)])
    result = evaluate([sample], ReadingModel(token_segments=((0,),), token_quality=(1.0,)))
    assert result.iou_max == 16 / 24


def test_masks_in_the_frame_of_the_image():
    # The image has three times as many pixels a side; only rows at the edges are uncertain.
    blocks = np.kron(SEGMENTS, np.ones((4, 4), int))
    large = [np.kron(blocks == s, np.ones((3, 3), int)) > 0 for s in (1, 2, 3)]
    sample = reading_sample(SEGMENTS, masks=large, truth_hw=(108, 144), scale=1 / 3)
    result = evaluate([sample], prompts_per_call=2)
    plain = evaluate([reading_sample(SEGMENTS, scale=1 / 3)])
    np.testing.assert_allclose(result.table.iou, plain.table.iou, atol=0.02)
    np.testing.assert_allclose(result.table.area, plain.table.area)
    np.testing.assert_allclose(result.table.area_px, plain.table.area_px)
    assert np.abs(result.table.click_xy - plain.table.click_xy).max() <= 1


def test_resize_to_the_image_is_that_of_opencv(rng):
    logits = rng.normal(size=(40, 64)).astype(np.float32)
    for valid, image in (((40, 64), (97, 120)), ((33, 50), (20, 31)), ((33, 50), (33, 50))):
        want = cv2.resize(logits[: valid[0], : valid[1]], image[::-1])
        sizes = (jnp.asarray(valid), jnp.asarray(image))
        got = np.asarray(resize_valid(jnp.asarray(logits), *sizes, (128, 128)))
        np.testing.assert_allclose(got[: image[0], : image[1]], want, atol=2e-4)


def test_result_does_not_depend_on_order_or_batch():
    samples = [
        reading_sample(
            np.roll(SEGMENTS, shift, axis=1), image_id=f"im{shift}", dataset="ab"[shift % 2]
        )
        for shift in range(4)
    ]
    first = evaluate(samples, prompts_per_call=2)
    second = evaluate(samples[::-1], prompts_per_call=16)
    assert first.scalars() == second.scalars()
    np.testing.assert_array_equal(first.table.iou, second.table.iou)
    np.testing.assert_array_equal(first.table.image_id, second.table.image_id)


def test_merge_equals_one_pass():
    samples = [reading_sample(np.roll(SEGMENTS, s, axis=1), image_id=str(s)) for s in range(3)]
    whole = evaluate(samples)
    merged = OneClickEvaluator()
    for sample in samples[::-1]:
        part = OneClickEvaluator()
        part.process(evaluate([sample]).table)
        merged.merge(part)
    assert merged.result().scalars() == whole.scalars()


def test_groups_by_dataset_kind_and_size():
    sample = reading_sample(
        SEGMENTS, dataset="x", is_thing=[True, False, True], instance_ids=[7, 5, 9], scale=0.6
    )
    result = evaluate([sample])
    assert result.by_kind["thing"]["count"] == 2
    assert result.by_kind["stuff"]["iou_max"] == pytest.approx(45 / 63)
    assert result.by_dataset["x"]["iou_max"] == result.iou_max
    # 27, 45 and 18 blocks of 16 px at scale 0.6: 1200, 2000 and 800 original pixels
    assert result.by_size["small"]["count"] == 1
    assert result.by_size["medium"]["count"] == 2
    assert result.table.instance_id.tolist() == [5, 7, 9]


def test_empty_masks_crowds_and_empty_images():
    blank = np.zeros((36, 48), bool)
    square = blank.copy()
    square[:, 4:16] = True
    samples = [
        reading_sample(SEGMENTS, masks=[], image_id="none"),
        reading_sample(SEGMENTS, masks=[blank], image_id="blank"),
        reading_sample(SEGMENTS, masks=[square, square], is_crowd=[True, False], image_id="c"),
    ]
    result = evaluate(samples)
    assert (result.num_instances, result.num_images, result.num_skipped) == (1, 1, 2)
    assert result.iou_oracle == 1.0
    nothing = evaluate(samples[:2])
    assert nothing.num_instances == 0
    assert np.isnan(nothing.iou_max)
    crowd_too = evaluate(samples, protocol=ClickProtocol(skip_crowd=False))
    assert crowd_too.num_instances == 2


def test_padding_of_the_canvas_never_counts():
    sample = reading_sample(SEGMENTS, masks=[np.kron(SEGMENTS == 0, np.ones((4, 4))) > 0])
    result = evaluate([sample], ReadingModel(token_segments=((0,),), token_quality=(1.0,)))
    assert result.iou_max == 1.0  # the strip goes on below the valid pixels


def test_masks_as_rle_on_the_canvas():
    sample = reading_sample(SEGMENTS)
    canvas = np.zeros(sample.image.shape[:2], np.uint8)
    encoded = []
    for index in range(3):
        canvas[:] = 0
        canvas[:36, :48] = sample.mask(index)
        encoded.append(rle_codec.encode(np.asfortranarray(canvas)))
    text = [{**rle, "counts": rle["counts"].decode()} for rle in encoded]
    plain = evaluate([sample]).scalars()
    assert evaluate([reading_sample(SEGMENTS, masks=encoded)]).scalars() == plain
    assert evaluate([reading_sample(SEGMENTS, masks=text)]).scalars() == plain


def test_plain_list_rle():
    plain = {"size": [2, 3], "counts": [1, 2, 3]}
    np.testing.assert_array_equal(decode(plain), [[0, 1, 0], [1, 0, 0]])


def test_given_clicks_are_used():
    sample = reading_sample(SEGMENTS, clicks_xy=np.asarray([[10, 6], [20, 20], [0, 0]]))
    result = evaluate([sample])
    assert result.table.click_xy.tolist() == [[10, 6], [20, 20], [0, 0]]
    assert result.table.iou[2, 0] == 0.0  # the third click lies on the background


def test_wrong_lengths_are_named():
    with pytest.raises(DataError, match="is_thing has 1 entries for 3 masks"):
        reading_sample(SEGMENTS, is_thing=[True])
    with pytest.raises(DataError, match="does not lie inside the canvas"):
        EvalSample(np.zeros((32, 32, 3), np.uint8), (33, 32), [], "x")
    sample = reading_sample(SEGMENTS, masks=[np.zeros((5, 5), bool)])
    with pytest.raises(DataError, match="mask 0 is"):
        evaluate([sample])


def test_size_classes_have_coco_borders():
    assert size_class(np.asarray([1, 1023, 1024, 9215, 9216])).tolist() == [0, 0, 1, 1, 2]


def test_upsampling_equals_half_pixel_bilinear(rng):
    x = rng.normal(size=(2, 5, 7)).astype(np.float32)

    def axis(n):
        centre = np.clip((np.arange(4 * n) + 0.5) / 4 - 0.5, 0, n - 1)
        low = np.floor(centre).astype(int)
        high = np.minimum(low + 1, n - 1)
        matrix = np.zeros((4 * n, n))
        np.add.at(matrix, (np.arange(4 * n), low), 1 - (centre - low))
        np.add.at(matrix, (np.arange(4 * n), high), centre - low)
        return matrix

    want = np.einsum("yh,nhw,xw->nyx", axis(5), x, axis(7))
    np.testing.assert_allclose(upsample_by_4(jnp.asarray(x)), want, atol=1e-6)
