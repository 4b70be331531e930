"""Open Tree Quality on trees that are worked by hand."""

import numpy as np
import pytest

from data_pipelines import sample
from data_pipelines.sources.single_dataset import open_single_dataset
from semsam_jax.core import rle
from semsam_jax.evals import tree_suite
from semsam_jax.evals.eval_loop import EvalLoop
from semsam_jax.evals.otq import NamedTree, TreeEvaluator, effective_parents, tree_quality
from semsam_jax.inference.results import Records
from semsam_jax.inference.tree import build_tree


def tree(*nodes):
    """Trees on a line of 16 pixels: (label, first pixel, end, parent)."""
    masks = []
    for _, start, stop, _ in nodes:
        mask = np.zeros((1, 16), bool)
        mask[0, start:stop] = True
        masks.append(rle.encode(mask))
    return NamedTree(
        tuple(masks), tuple(node[0] for node in nodes), tuple(node[3] for node in nodes)
    )


CAR = tree(("car", 0, 8, None), ("wheel", 0, 4, 0), ("hub", 0, 2, 1), ("dog", 10, 16, None))


def test_the_truth_agrees_with_itself():
    quality = tree_quality(CAR, CAR)
    assert (quality.otq, quality.tq, quality.bq, quality.nq) == (1, 1, 1, 1)
    assert (quality.tp, quality.fp, quality.fn) == (4, 0, 0)


def test_a_missing_mask_costs_recovery_alone():
    found = tree(("car", 0, 8, None), ("hub", 0, 2, 0), ("dog", 10, 16, None))
    quality = tree_quality(CAR, found)
    # Three matches, whose ancestors agree: the wheel between car and hub is not matched.
    assert (quality.tp, quality.fp, quality.fn) == (3, 0, 1)
    assert (quality.bq, quality.nq) == (1, 1)
    assert quality.recovery == pytest.approx(3 / 3.5)
    assert quality.otq == pytest.approx(3 / 3.5)


def test_a_wrong_name_and_a_wrong_outline_cost_node_quality():
    found = tree(("bus", 0, 8, None), ("wheel", 0, 3, 0), ("hub", 0, 2, 1), ("dog", 10, 16, None))
    quality = tree_quality(CAR, found)
    assert quality.mq == pytest.approx((1 + 3 / 4 + 1 + 1) / 4)
    assert quality.lq == pytest.approx(3 / 4)
    assert quality.nq == pytest.approx((0 + 3 / 4 + 1 + 1) / 4)
    assert (quality.bq, quality.recovery) == (1, 1)
    near = tree_quality(CAR, found, lambda a, b: 0.5)
    assert near.nq == pytest.approx((0.5 + 3 / 4 + 1 + 1) / 4)


def test_a_rewired_parent_costs_branch_quality():
    found = tree(
        ("car", 0, 8, None), ("wheel", 0, 4, 0), ("hub", 0, 2, None), ("dog", 10, 16, None)
    )
    quality = tree_quality(CAR, found)
    # Of six pairs (car, hub) and (wheel, hub) meet at the root instead of car and wheel.
    assert quality.bq == pytest.approx(4 / 6)
    assert quality.otq == pytest.approx(4 / 6)


def test_low_overlap_is_one_wrong_and_one_missing():
    found = tree(("car", 5, 12, None))  # shares 3 of 12 pixels with the car, 2 of 11 with the dog
    quality = tree_quality(CAR, found)
    assert (quality.tp, quality.fp, quality.fn) == (0, 1, 4)
    assert (quality.bq, quality.otq, quality.mq) == (1, 0, 0)
    nothing = tree_quality(CAR, tree())
    assert (nothing.fn, nothing.otq) == (4, 0)


def test_parents_are_found_anew_by_overlap():
    # Two cars; the wheel says it belongs to the first and lies in the second. A handle lies in no
    # door, so that it belongs to the car that it lies in.
    found = tree(
        ("car", 0, 6, None),
        ("car", 8, 16, None),
        ("wheel", 9, 11, 0),
        ("door", 0, 3, 0),
        ("handle", 4, 6, 3),
    )
    assert effective_parents(found) == [None, None, 1, 0, 0]


def test_masks_without_a_label():
    others = tree(("", 0, 8, None), ("wheel", 0, 4, 0), ("dog", 10, 16, None))
    assert tree_quality(others, others).fn == 0
    # Truth without a label is not scored; the same mask found counts as one too many.
    assert (tree_quality(others, others).tp, tree_quality(others, others).fp) == (2, 1)
    unnamed = tree(("", 10, 16, None))
    quality = tree_quality(tree(("dog", 10, 16, None)), unnamed)
    assert (quality.tp, quality.lq, quality.otq) == (1, 0, 0)


def test_depths_and_means_over_images():
    evaluator, other = TreeEvaluator(), TreeEvaluator()
    evaluator.process(CAR, CAR)
    other.process(CAR, tree(("car", 0, 8, None)))
    evaluator.merge(other)
    result = evaluator.result()
    assert result["num_images"] == 2
    # Second image: of car, dog at depth 1 the car; of all four masks the car.
    assert result["otq@1"] == pytest.approx((1 + 1 / 1.5) / 2)
    assert result["otq@2"] == pytest.approx((1 + 1 / 2) / 2)
    assert result["otq"] == pytest.approx((1 + 1 / 2.5) / 2)
    assert (result["tp"], result["fn"]) == (5, 3)
    assert np.isnan(TreeEvaluator().result()["otq"])


class PerfectGenerator:
    """Finds the masks of the sample's image, with their right names."""

    def __init__(self, model, *, points_per_side, labels, output_mode, tree):
        assert labels["objects"]
        assert tree

    def generate(self, pixels):
        truth = PerfectGenerator.truth
        sure = [{"name": label, "score": 1.0, "is_sure": True} for label in truth.labels]
        levels = [len(path) for path in truth.paths()]
        found = build_tree(
            truth.masks, levels, [0.9] * len(levels), pixels.shape[:2], objects=sure, parts=sure
        )
        return Records([], pixels.shape[:2], found)


def test_the_suite_reads_trees_and_compares_them(monkeypatch):
    source = open_single_dataset("part_imagenet", sample.roots()["part_imagenet"], "val", {})
    samples = tree_suite.TreeSamples(source, 1)
    ((pixels, truth),) = samples.read([0])
    assert rle.decode(truth.masks[0]).shape == pixels.shape[:2]
    whole = truth.parents.index(None)
    assert truth.labels[whole] in source.vocabulary.object_names
    assert all(label in source.vocabulary.names for label in truth.labels)
    assert {parent for parent in truth.parents if parent is not None} == {whole}
    assert tree_quality(truth, truth).otq == 1
    PerfectGenerator.truth = truth
    monkeypatch.setattr(tree_suite, "MaskGenerator", PerfectGenerator)
    monkeypatch.setattr(tree_suite, "model_from_params", lambda params, meta: None)
    rows, scalars = tree_suite.measure_trees({}, {}, samples, 4, EvalLoop())
    # Parts are cut to their whole, and what two of them cover goes to one.
    assert scalars["otq/lq"] == 1
    assert scalars["otq/bq"] == 1
    assert scalars["otq/otq"] > 0.8
    assert rows[0].value == 100 * scalars["otq/otq"]
