"""The generic branch's scores on strips whose classes are known."""

import cv2
import jax.numpy as jnp
import numpy as np
import pytest

from semsam_jax.core.structs import TextTable
from semsam_jax.evals.generic import GenericEvaluator, evaluate_generic
from semsam_jax.evals.generic_maps import draw_maps
from semsam_jax.evals.generic_runner import GenericProtocol, GenericRunner
from semsam_jax.evals.part_ap import ClassList, build_pairs
from semsam_jax.ops import panoptic
from tests.evals.fakes import ReadingGeneric, reading_sample
from tests.evals.test_one_click import SEGMENTS

# Strips 1 and 2 are things, strip 3 is stuff; union ids start at 10, parts at 20.
CLASSES = ClassList(
    object_ids=np.asarray([10, 11, 12]),
    is_thing=np.asarray([True, True, False]),
    part_ids=np.asarray([20, 21]),
    pairs=build_pairs([(0, 0), (1, 1)]),
)
TEXT = TextTable(objects=np.zeros((3, 4), np.float32), parts=np.zeros((2, 4), np.float32))
TASKS = ("panoptic", "semantic", "instance")
TALL = np.repeat(SEGMENTS[:1], 8, axis=0)  # 32 px high: no padding below


def labelled(**fields):
    fields = {"object_ids": [10, 11, 12], "is_thing": [True, True, False]} | fields
    return reading_sample(TALL, **fields)


def evaluate(samples, model=None, tasks=TASKS):
    return evaluate_generic(model or ReadingGeneric(), {}, TEXT, samples, CLASSES, tasks=tasks)


def test_perfect_answers_score_one():
    result = evaluate([labelled()])
    assert result.panoptic.things["pq"] == result.panoptic.stuff["pq"] == 1.0
    assert result.semantic.miou == 1.0
    assert result.mask_ap.ap == 1.0
    assert result.box_ap.ap == 1.0
    assert result.part_mask_ap is None
    assert result.scalars()["mask_ap/ap"] == pytest.approx(100)


def test_shifted_masks_score_what_arithmetic_says():
    # Strip 2 is 20 pixels wide; a mask that is 4 pixels off shares 16 of 24.
    blocks = np.kron(TALL, np.ones((4, 4), int))
    shifted = np.roll(blocks == 2, 4, axis=1)
    result = evaluate([labelled(masks=[shifted], object_ids=[11], is_thing=[True])])
    assert result.panoptic.by_class[1].sq == pytest.approx(16 / 20)  # void pixels are free
    assert result.panoptic.by_class[1].pq == pytest.approx(16 / 20)
    assert result.semantic.class_iou[1] == pytest.approx(16 / 20)
    assert result.mask_ap.ap == pytest.approx(0.4)  # found at IoU .50, .55, .60 and .65
    assert result.box_ap.ap == pytest.approx(0.4)


def test_swapped_classes_score_zero_where_swapped():
    result = evaluate([labelled()], ReadingGeneric(swapped=True))
    assert result.panoptic.things["pq"] == 0.0
    assert result.panoptic.stuff["pq"] == 1.0
    assert result.semantic.miou == pytest.approx(1 / 3)
    # every pair of query and class is a detection: the right one comes second, precision 1/2
    assert result.mask_ap.ap == pytest.approx(0.5)


def test_truth_in_the_frame_of_the_image():
    blocks = np.kron(TALL, np.ones((4, 4), int))
    large = [np.kron(blocks == s, np.ones((3, 3), int)) > 0 for s in (1, 2, 3)]
    result = evaluate([labelled(masks=large, truth_hw=(96, 144))])
    assert result.panoptic.all["pq"] > 0.97
    assert result.box_ap.ap == 1.0


def test_parts_are_pairs():
    sample = labelled(object_ids=[10, 11, 12], part_ids=[20, 21, -1])
    result = evaluate([sample], tasks=("part",))
    assert result.part_mask_ap.ap == 1.0
    assert result.part_box_ap.num_truths == 2
    assert np.isnan(evaluate([labelled()], tasks=("part",)).part_mask_ap.ap)


def test_crowd_and_foreign_classes_are_left_out():
    # strip 2 is crowd; strip 3 belongs to a class that the dataset does not list
    sample = labelled(object_ids=[10, 11, 99], is_crowd=[False, True, False])
    result = evaluate([sample], ReadingGeneric(swapped=False))
    assert set(result.panoptic.by_class) == {0}  # predictions on void and on crowd are free
    assert result.mask_ap.ap == 1.0


def test_image_without_annotations():
    result = evaluate([labelled(masks=[], object_ids=[], is_thing=[])])
    assert np.isnan(result.panoptic.all["pq"])
    assert np.isnan(result.mask_ap.ap)
    assert np.isnan(result.semantic.miou)


def test_order_and_merging_change_nothing():
    samples = [labelled(image_id=str(i), dataset="d") for i in range(3)]
    samples[1] = labelled(image_id="1", dataset="d", object_ids=[11, 10, 12])
    forward = evaluate(samples).scalars()
    runner = GenericRunner(ReadingGeneric(), {}, TEXT)
    merged = GenericEvaluator(CLASSES, TASKS, GenericProtocol())
    for sample in samples[::-1]:
        part = GenericEvaluator(CLASSES, TASKS)
        part.process(sample, *runner.answer([sample]))
        merged.merge(part)
    assert merged.result().scalars() == pytest.approx(forward, nan_ok=True, abs=0, rel=0)
    merged.reset()
    assert merged.result().panoptic.num_images == 0


@pytest.mark.parametrize(("image", "frame"), [((45, 83), (64, 96)), ((96, 128), (96, 128))])
def test_maps_on_the_device_are_those_of_the_host(rng, image, frame):
    valid = (83, 120)  # of a canvas of 96 x 128
    embed = rng.normal(size=(6, 5)).astype(np.float32)
    features = rng.normal(size=(24, 32, 5)).astype(np.float32)
    class_logits = rng.normal(size=(6, 4)).astype(np.float32)
    low = np.einsum("qd,hwd->qhw", embed, features)
    canvas = [cv2.resize(one, (128, 96)) for one in low]
    logits = np.stack([cv2.resize(one[: valid[0], : valid[1]], image[::-1]) for one in canvas])
    sharp = panoptic.sharpened_probabilities(class_logits)
    weights = np.asarray([0.3, -1, 0.9, 0.5, -1, 0.7], np.float32)
    got = draw_maps(jnp.asarray(embed), jnp.asarray(features), sharp, weights, valid, image, frame)
    wanted = panoptic.semantic_map(class_logits, logits).argmax(0)
    assert (got.semantic == wanted).mean() > 0.999  # ties of rounding
    probability = panoptic.sigmoid(logits)
    winner = (weights[:, None, None] * probability).argmax(0)
    assert (got.winner == winner).mean() > 0.999
    assert (got.masks(np.arange(6)) == (logits > 0)).mean() > 0.999
    quality = [p[m].sum() / m.sum() for p, m in zip(probability, logits > 0, strict=True)]
    np.testing.assert_allclose(got.quality, quality, rtol=1e-3)
