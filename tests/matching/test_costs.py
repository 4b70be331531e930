"""Prompt costs against recorded numbers, and their blocks."""

import jax
import jax.numpy as jnp
import numpy as np

from semsam_jax.criterion.terms import LossWeights
from semsam_jax.matching.costs import prompt_costs
from semsam_jax.matching.solvers import solve_prompts
from tests.criterion import recorded
from tests.golden.table import golden


def last_layer():
    predictions, features = recorded.interactive_predictions()
    return jax.tree.map(lambda x: x[-1], predictions), features


def blocks(dense: np.ndarray) -> list[np.ndarray]:
    """The [6, targets] block of each prompt out of [48, 41]."""
    counts = golden("criterion")["tgt/level_target_counts"]
    ends = np.cumsum(counts)
    return [
        dense[p * 6 : p * 6 + 6, end - count : end]
        for p, (end, count) in enumerate(zip(ends, counts, strict=True))
    ]


def costs_with(**weights):
    predictions, features = last_layer()
    only = {name: 0.0 for name in ("mask_bce", "dice", "l1", "giou")} | weights
    return prompt_costs(
        predictions,
        features,
        recorded.interactive_rows(),
        jnp.asarray(golden("criterion")["m2m/rand_matcher"]),
        LossWeights(**only),
    )


def check(costs, key, atol):
    for prompt, want in enumerate(blocks(golden("criterion")[key])):
        np.testing.assert_allclose(costs[0, prompt, :, : want.shape[1]], want, atol=atol)


def test_each_term_and_the_total_golden():
    check(costs_with(mask_bce=1.0), "m2m/cost_mask_bce", 1e-5)
    check(costs_with(dice=1.0), "m2m/cost_dice", 1e-5)
    check(costs_with(giou=1.0), "m2m/cost_giou_neg", 1e-5)
    check(costs_with(mask_bce=5.0, dice=5.0, l1=5.0, giou=2.0), "m2m/cost_total_D", 1e-4)


def test_assignment_golden():
    rows = recorded.interactive_rows()
    costs = costs_with(mask_bce=5.0, dice=5.0, l1=5.0, giou=2.0)
    tokens, _ = solve_prompts(np.asarray(costs), np.asarray(rows.prompt_targets) >= 0)
    np.testing.assert_array_equal(tokens, recorded.recorded_assignment())


def test_no_gradient_and_no_other_prompt():
    predictions, features = last_layer()
    rows = recorded.interactive_rows()
    points = jnp.asarray(golden("criterion")["m2m/rand_matcher"])

    def total(predictions, features):
        return prompt_costs(predictions, features, rows, points, LossWeights()).sum()

    grads = jax.grad(total, argnums=(0, 1))(predictions, features)
    assert not any(np.any(np.asarray(g)) for g in jax.tree.leaves(grads))
    moved = predictions.replace(boxes=predictions.boxes.at[:, 3].add(0.1))
    before = prompt_costs(predictions, features, rows, points, LossWeights())
    after = prompt_costs(moved, features, rows, points, LossWeights())
    is_changed = np.any(np.asarray(before != after), axis=(0, 2, 3))
    assert is_changed.tolist() == [p == 3 for p in range(8)]
