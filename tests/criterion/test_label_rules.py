"""What a label means to each class head, worked by hand.

Every logit is 0, so the focal loss of a class is 0.25 * 0.25 * log 2 where it is a positive and
0.75 * 0.25 * log 2 where it is a negative: the loss counts who is which.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from semsam_jax.core.structs import Batch, DenoisingQueries, GenericPredictions, Predictions
from semsam_jax.criterion.generic import generic_losses
from semsam_jax.criterion.interactive import interactive_losses
from semsam_jax.criterion.terms import (
    MAX_CLASS_WEIGHT,
    CriterionConfig,
    LossWeights,
    balanced_weights,
)
from semsam_jax.matching.costs import query_costs

POSITIVE, NEGATIVE = 0.25 * 0.25 * np.log(2), 0.75 * 0.25 * np.log(2)
CONFIG = CriterionConfig(num_points=4, match_points=4)
# The vocabulary: dog, cat, car | head, wheel.
DOG, CAT, CAR, HEAD, WHEEL = range(5)
OBJECTS, PARTS, QUERIES = 3, 2, 5


def rows(object_id, part_id, valid=None, owned=None):
    """One row; query i owns instance i."""
    n = len(object_id)
    return Batch(
        image=jnp.zeros((1, 16, 16, 3), jnp.uint8),
        size_hw=jnp.array([[16, 16]]),
        mask_bits=jnp.full((1, n, 16, 2), 255, jnp.uint8),
        boxes=jnp.full((1, n, 4), 0.5),
        object_id=jnp.array([object_id]),
        part_id=jnp.array([part_id]),
        instance_valid=jnp.ones((1, n), bool),
        prompt_box=jnp.full((1, 1, 4), 0.5),
        prompt_is_box=jnp.zeros((1, 1), bool),
        prompt_valid=jnp.ones((1, 1), bool),
        prompt_targets=jnp.array([[[0]]]),
        pseudo_targets=jnp.array([[[-1]]]),
        vocab_valid=jnp.array([[True] * 5 if valid is None else [v in valid for v in range(5)]]),
        vocab_owned=jnp.array([[0] * 5 if owned is None else owned], jnp.uint8),
        has_masks=jnp.ones(1, bool),
        dataset=jnp.zeros(1, jnp.int32),
    )


def predictions(*lead, has_owner=True):
    return Predictions(
        mask_embed=jnp.zeros((*lead, 4)),
        boxes=jnp.full((*lead, 4), 0.5),
        pred_ious=jnp.zeros(lead),
        object_logits=jnp.zeros((*lead, OBJECTS)),
        part_logits=jnp.zeros((*lead, PARTS)),
        owner_logits=jnp.zeros((*lead, OBJECTS)) if has_owner else None,
    )


def generic_terms(batch, has_owner=True, slots=None):
    n = batch.object_id.shape[1]
    queries = None
    if slots is not None:
        queries = DenoisingQueries(
            instance=jnp.array([slots]),
            group=jnp.zeros((1, len(slots)), jnp.int32),
            valid=jnp.ones((1, len(slots)), bool),
            num_groups=jnp.ones(1, jnp.int32),
        )
    out = GenericPredictions(
        layers=predictions(1, 1, QUERIES, has_owner=has_owner),
        proposals=predictions(1, QUERIES, has_owner=has_owner),
        denoising=None if slots is None else predictions(1, 1, len(slots), has_owner=has_owner),
        denoising_queries=queries,
    )
    assigned = jnp.broadcast_to(jnp.arange(n), (1, 2, n))
    points = jnp.full((1, 1, 1, CONFIG.plan.num_candidates + CONFIG.plan.num_fresh, 2), 0.5)
    return generic_losses(out, jnp.zeros((1, 4, 4, 4)), batch, assigned, points, CONFIG)


def class_terms(batch, **options):
    terms = generic_terms(batch, **options)["layers"]
    return {name: float(terms[name][0]) for name in terms if name.endswith("_class")}


def close(got, positives, negatives, count):
    np.testing.assert_allclose(
        got, (positives * POSITIVE + negatives * NEGATIVE) / count, rtol=1e-6
    )


def test_a_part_teaches_the_part_and_the_owner_head_and_not_the_object_head():
    """A dog and its head: query 0 and 1; 2, 3 and 4 own nothing."""
    terms = class_terms(rows([DOG, DOG], [-1, HEAD]))
    # Query 0: dog yes, cat and car no. Three free queries: three times no. Query 1: nothing.
    close(terms["object_class"], positives=1, negatives=2 + 9, count=1)
    # Query 0 is no part; query 1: head yes, wheel no; free ones: no.
    close(terms["part_class"], positives=1, negatives=2 + 1 + 6, count=2)
    # Only query 1: of a dog, not of a cat, not of a car.
    close(terms["owner_class"], positives=1, negatives=2, count=1)


def test_without_an_owner_head_the_object_head_says_whose_a_part_is():
    terms = class_terms(rows([DOG, DOG], [-1, HEAD]), has_owner=False)
    close(terms["object_class"], positives=2, negatives=2 + 2 + 9, count=2)
    assert "owner_class" not in terms


def test_a_part_without_an_owner_teaches_the_part_head_alone():
    terms = class_terms(rows([-1], [HEAD]))
    close(terms["part_class"], positives=1, negatives=1 + 8, count=1)
    close(terms["object_class"], positives=0, negatives=3 * 4, count=1)
    assert terms["owner_class"] == 0


def test_an_instance_without_a_name_is_neither_positive_nor_negative():
    terms = class_terms(rows([DOG, -1], [-1, -1]))
    close(terms["object_class"], positives=1, negatives=2 + 9, count=1)
    close(terms["part_class"], positives=0, negatives=2 + 6, count=1)


def test_only_annotated_classes_are_negatives():
    """The image is annotated for dogs and cats; nothing is known of cars and of all parts."""
    terms = class_terms(rows([DOG], [-1], valid=(DOG, CAT)))
    close(terms["object_class"], positives=1, negatives=1 + 8, count=1)
    assert terms["part_class"] == 0


def test_a_partly_annotated_class_is_a_positive_and_never_a_negative():
    """Dogs are not annotated completely: own instances say yes, nothing says no."""
    terms = class_terms(rows([DOG, CAT], [-1, -1], valid=(CAT, CAR), owned=[1, 0, 0, 0, 0]))
    # Query 0: dog yes, cat and car no. Query 1: cat yes, car no. Free ones: cat and car no.
    close(terms["object_class"], positives=2, negatives=2 + 1 + 6, count=2)


def test_a_class_of_exclusive_labels_is_a_negative_at_other_instances_only():
    """An instance of a dog is no car, whatever else the image shows."""
    terms = class_terms(rows([DOG], [-1], valid=(DOG,), owned=[0, 2, 2, 0, 0]))
    close(terms["object_class"], positives=1, negatives=2 + 4, count=1)


def test_denoising_slots_follow_the_same_rules():
    terms = generic_terms(
        rows([DOG, DOG], [-1, HEAD], valid=(DOG, HEAD), owned=[0, 2, 0, 0, 0]), slots=[0, 1]
    )["denoising"]
    close(float(terms["object_class"][0]), positives=1, negatives=1, count=1)
    close(float(terms["part_class"][0]), positives=1, negatives=1, count=2)
    close(float(terms["owner_class"][0]), positives=1, negatives=1, count=1)


@pytest.mark.parametrize(("target", "names"), [(0, ("object_class",)), (1, ("part_class",))])
def test_prompts_teach_the_same_heads(target, names):
    batch = rows([DOG, DOG], [-1, HEAD]).replace(prompt_targets=jnp.array([[[target]]]))
    points = jnp.full((1, 1, 1, CONFIG.plan.num_candidates + CONFIG.plan.num_fresh, 2), 0.5)
    terms = interactive_losses(
        predictions(1, 1, 1, 6),
        jnp.zeros((1, 4, 4, 4)),
        batch,
        jnp.zeros((1, 1, 1), jnp.int32),
        points,
        CONFIG,
    )
    told = {name for name in terms if name.endswith("_class") and float(terms[name][0])}
    assert told == {*names, *(("owner_class",) if target else ())}
    num_classes = PARTS if target else OBJECTS
    close(float(terms[names[0]][0]), positives=1, negatives=num_classes - 1, count=1)


def test_parts_are_matched_by_part_and_owner():
    """Query 0 says dog as an object, query 1 as an owner: a whole wants 0, its head wants 1."""
    out = predictions(1, 1, QUERIES)
    out = out.replace(
        object_logits=out.object_logits.at[..., 0, DOG].set(3.0),
        owner_logits=out.owner_logits.at[..., 1, DOG].set(3.0),
    )
    one = Predictions(
        **{k: None if v is None else v[0] for k, v in vars(out).items()},
    )
    weights = LossWeights(mask_bce=0.0, dice=0.0, l1=0.0, giou=0.0, part_class=0.0)
    points = jnp.full((1, 4, 2), 0.5)
    costs = query_costs(
        GenericPredictions(out, one), jnp.zeros((1, 4, 4, 4)),
        rows([DOG, DOG], [-1, HEAD]), points, weights,
    )  # fmt: skip
    best = np.asarray(costs[0, 0]).argmin(axis=0)
    assert best.tolist() == [0, 1]


def test_balanced_weights_are_one_on_the_mean_instance_and_capped():
    """Counts 100, 25 and 4 to the power of -1/2: 0.1, 0.2, 0.5; over all instances 17 / 129."""
    mean = (100 * 0.1 + 25 * 0.2 + 4 * 0.5) / 129
    got = balanced_weights(np.array([100, 25, 4, 0]), 0.5)
    np.testing.assert_allclose(got, [0.1 / mean, 0.2 / mean, 0.5 / mean, 1.0], rtol=1e-6)
    np.testing.assert_array_equal(balanced_weights(np.array([100, 25, 4, 0]), 0.0), 1.0)
    assert balanced_weights(np.array([100_000, 1]), 1.0)[1] == MAX_CLASS_WEIGHT


def test_a_class_of_twice_the_weight_counts_as_two_prompts():
    """Two prompts of one token each: a dog that costs one positive, a car told by its logit."""
    batch = rows([DOG, CAR], [-1, -1])
    batch = batch.replace(
        prompt_box=jnp.full((1, 2, 4), 0.5),
        prompt_is_box=jnp.zeros((1, 2), bool),
        prompt_valid=jnp.ones((1, 2), bool),
        prompt_targets=jnp.array([[[0], [1]]]),
    )
    found = predictions(1, 1, 2, 1)
    logits = jnp.zeros((1, 1, 2, 1, OBJECTS)).at[0, 0, 1].set(-50.0).at[0, 0, 1, 0, CAR].set(50.0)
    found = found.replace(object_logits=logits)
    points = jnp.full((1, 1, 1, CONFIG.plan.num_candidates + CONFIG.plan.num_fresh, 2), 0.5)

    def term(weights):
        inputs = found, jnp.zeros((1, 4, 4, 4)), batch, jnp.zeros((1, 2, 1), jnp.int32), points
        terms = interactive_losses(*inputs, CONFIG, weights)
        return float(terms["object_class"][0])

    dog = POSITIVE + 2 * NEGATIVE
    np.testing.assert_allclose(term(None), dog / 2, rtol=1e-5)
    np.testing.assert_allclose(term(jnp.array([1.0, 9.0, 2.0, 9.0, 9.0])), dog / 3, rtol=1e-5)
    np.testing.assert_allclose(term(jnp.array([2.0, 9.0, 1.0, 9.0, 9.0])), 2 * dog / 3, rtol=1e-5)
