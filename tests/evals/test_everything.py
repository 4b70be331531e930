"""Named masks compete for pixels: worked by hand."""

import numpy as np

from semsam_jax.core import rle
from semsam_jax.evals.generic import GenericEvaluator, true_segments
from semsam_jax.evals.panoptic import PanopticEvaluator, PanopticSegments
from semsam_jax.evals.part_ap import ClassList, build_pairs
from semsam_jax.evals.samples import EvalSample
from semsam_jax.inference.everything import panoptic_of_masks
from semsam_jax.ops.panoptic import Segment


def record(columns, name, score, iou=1.0, is_sure=True):
    mask = np.zeros((2, 10), bool)
    mask[:, columns] = True
    named = {"name": name, "score": score, "is_sure": is_sure}
    return {"segmentation": rle.encode(mask), "predicted_iou": iou, "object": named}


def test_better_masks_come_first_and_stuff_is_one_segment():
    records = [
        record(slice(0, 6), "dog", 0.9, iou=0.5),  # 0.45: four of six columns are left
        record(slice(0, 2), "cat", 0.8),
        record(slice(3, 6), "cat", 0.4),  # all taken by the dog
        record(slice(6, 8), "sky", 0.7),
        record(slice(7, 9), "sky", 0.6),  # one of two columns is left
        record(slice(9, 10), "dog", 0.99, is_sure=False),
        record(slice(9, 10), "cow", 0.99),  # none of the names
        {"segmentation": rle.encode(np.ones((2, 10), bool)), "predicted_iou": 1.0},
    ]
    found = panoptic_of_masks(records, ["sky", "dog", "cat"], {1, 2}, (2, 10))
    np.testing.assert_array_equal(found.segment_map, [[1, 1, 3, 3, 3, 3, 2, 2, 2, 0]] * 2)
    assert found.segments == (
        Segment(1, 2, True, 0.8),
        Segment(2, 0, False, 0.7),
        Segment(3, 1, True, 0.45),
    )
    strict = panoptic_of_masks(records[:2], ["sky", "dog", "cat"], {1, 2}, (2, 10), 0.7)
    assert [segment.category for segment in strict.segments] == [2]
    assert not panoptic_of_masks([], ["sky"], (), (2, 10)).segment_map.any()


def test_true_objects_are_segments_and_parts_are_not():
    left, right = np.zeros((2, 4), bool), np.zeros((2, 4), bool)
    left[:, :2], right[:, 2:] = True, True
    sample = EvalSample(
        image=np.zeros((32, 32, 3), np.uint8),
        size_hw=(2, 4),
        masks=[left, right, left],
        image_id="a",
        is_crowd=[False, True, False],
        object_ids=[7, 5, 7],
        part_ids=[-1, -1, 9],
    )
    classes = ClassList(np.array([5, 7]), np.ones(2, bool), np.array([9]), build_pairs(set()))
    truth = true_segments(sample, classes, (2, 4))
    np.testing.assert_array_equal(truth.segment_map, [[1, 1, 2, 2]] * 2)
    assert (truth.classes, truth.crowd) == ({1: 1, 2: 0}, {2})
    evaluator = PanopticEvaluator(classes.is_thing)
    evaluator.process(truth, PanopticSegments(truth.segment_map, {1: 1, 2: 0}))
    assert evaluator.result().all["pq"] == 1.0


def test_instances_lie_on_top_of_crowd_regions():
    one, crowd = np.zeros((2, 4), bool), np.ones((2, 4), bool)
    one[:, :2] = True
    sample = EvalSample(
        image=np.zeros((32, 32, 3), np.uint8),
        size_hw=(2, 4),
        masks=[one, crowd],
        image_id="a",
        is_crowd=[False, True],
        object_ids=[7, 5],
    )
    classes = ClassList(np.array([5, 7]), np.ones(2, bool))
    truth = true_segments(sample, classes, (2, 4))
    np.testing.assert_array_equal(truth.segment_map, [[1, 1, 2, 2]] * 2)
    assert (truth.classes, truth.crowd) == ({2: 0, 1: 1}, {2})
    evaluator = GenericEvaluator(classes, ("semantic",))
    np.testing.assert_array_equal(evaluator._true_semantic(sample, (2, 4)), [[1, 1, 0, 0]] * 2)
