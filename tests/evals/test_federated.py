"""Federated AP on images small enough to do by hand."""

import numpy as np

from semsam_jax.core.rle import encode_masks, mask_areas, mask_boxes
from semsam_jax.evals.federated import Annotated, annotated, restrict
from semsam_jax.evals.instance_ap import InstanceEvaluator, InstanceSet
from semsam_jax.evals.samples import EvalSample

SIZE = (40, 40)
MUG, BOWL, CHAIR = range(3)


def rectangles(classes, tops, scores=None):
    """Stripes of ten rows."""
    masks = []
    for top in tops:
        mask = np.zeros(SIZE, bool)
        mask[top : top + 10] = True
        masks.append(mask)
    rles = encode_masks(masks)
    return InstanceSet(
        classes=np.array(classes, np.int64),
        rles=rles,
        boxes_xywh=mask_boxes(rles),
        scores=None if scores is None else np.array(scores),
        areas=None if scores is not None else mask_areas(rles),
    )


def score(kind, classes):
    """One mug is annotated; a better scored mug lies elsewhere, and a bowl and a chair."""
    truth = rectangles([MUG], [0])
    found = rectangles([MUG, MUG, BOWL, CHAIR], [0, 20, 20, 30], [0.5, 0.9, 0.8, 0.8])
    truth, found = restrict(truth, found, classes, SIZE)
    evaluator = InstanceEvaluator(3, kind, max_detections=(1, 10, 300))
    evaluator.process("image", SIZE, truth, found)
    return evaluator.result()


def test_a_complete_class_pays_for_what_hits_nothing():
    for kind in ("mask", "box"):
        result = score(kind, Annotated(frozenset({MUG, BOWL}), frozenset()))
        # One wrong detection before the right one: precision 1/2 at every recall.
        np.testing.assert_allclose(result.class_ap[MUG], 0.5, atol=1e-6)
        assert result.num_detections == 3  # the chair was nobody's question
        assert np.isnan(result.class_ap[CHAIR])


def test_a_partial_class_does_not():
    for kind in ("mask", "box"):
        result = score(kind, Annotated(frozenset(), frozenset({MUG})))
        np.testing.assert_allclose(result.class_ap[MUG], 1.0, atol=1e-6)
        assert result.num_detections == 2


def test_everything_counts_without_a_list():
    assert score("mask", None).num_detections == 4


def test_classes_of_a_sample():
    index = {(7, -1): MUG, (8, -1): BOWL}
    sample = EvalSample(
        np.zeros((32, 32, 3), np.uint8), (32, 32), [], "x",
        annotated=((7, -1), (7, 3)), partial=((8, -1),),
    )  # fmt: skip
    assert annotated(sample, index) == Annotated(frozenset({MUG}), frozenset({BOWL}))
    plain = EvalSample(np.zeros((32, 32, 3), np.uint8), (32, 32), [], "x")
    assert annotated(plain, index) is None
