"""Host solvers against exhaustive search; padding, ties and costs that are not finite."""

import itertools

import numpy as np
import pytest

from semsam_jax.matching.solvers import solve_prompts, solve_queries


def cheapest(block: np.ndarray) -> float:
    """Least total cost of giving each column of [k,t] a row of its own, by trying all."""
    k, t = block.shape
    return min(
        sum(block[token, target] for target, token in enumerate(tokens))
        for tokens in itertools.permutations(range(k), t)
    )


@pytest.mark.parametrize("decimals", [7, 0])
def test_prompts_equal_exhaustive_search(decimals):
    rng = np.random.default_rng(decimals)
    costs = np.round(rng.uniform(-3, 3, (2, 5, 4, 4)), decimals).astype(np.float32)
    valid = np.arange(4)[None, None] < rng.integers(0, 5, (2, 5, 1))
    tokens, nonfinite = solve_prompts(costs, valid)
    assert tokens.dtype == np.int32
    assert nonfinite.tolist() == [0, 0]
    for row, prompt in np.ndindex(2, 5):
        own = valid[row, prompt]
        chosen = tokens[row, prompt][own]
        assert len(set(chosen)) == own.sum()
        assert not tokens[row, prompt][~own].any()
        if own.any():
            block = costs[row, prompt][:, own]
            total = block[chosen, np.arange(own.sum())].sum()
            assert total == pytest.approx(cheapest(block), abs=1e-5)


def test_targets_need_not_come_first():
    costs = np.zeros((1, 1, 2, 3), np.float32)
    costs[0, 0] = [[9, 0, 9], [9, 1, 0]]
    tokens, _ = solve_prompts(costs, np.array([[[False, True, True]]]))
    assert tokens.tolist() == [[[0, 0, 1]]]


def test_queries_equal_exhaustive_search():
    rng = np.random.default_rng(0)
    costs = rng.uniform(-3, 3, (2, 3, 5, 4)).astype(np.float32)
    valid = np.array([[True, True, True, False], [False] * 4])
    queries, nonfinite = solve_queries(costs, valid)
    assert queries.shape == (2, 3, 4)
    assert queries.dtype == np.int32
    assert not queries[1].any()
    assert nonfinite.tolist() == [0, 0]
    for layer in range(3):
        block = costs[0, layer][:, :3]
        chosen = queries[0, layer, :3]
        assert len(set(chosen)) == 3
        assert block[chosen, np.arange(3)].sum() == pytest.approx(cheapest(block), abs=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_bad_costs_are_avoided_and_counted(bad):
    costs = np.ones((2, 1, 3, 2), np.float32)
    costs[0, 0, 0, :] = bad
    costs[1, 0, :, 1] = bad  # padding there
    valid = np.array([[[True, True]], [[True, False]]])
    tokens, nonfinite = solve_prompts(costs, valid)
    assert sorted(tokens[0, 0]) == [1, 2]
    assert nonfinite.tolist() == [2, 0]
    queries, nonfinite = solve_queries(costs, np.array([[True, True], [True, False]]))
    assert sorted(queries[0, 0]) == [1, 2]
    assert nonfinite.tolist() == [2, 0]


def test_everything_bad_or_too_many_targets_still_answers():
    tokens, nonfinite = solve_prompts(np.full((1, 1, 2, 2), np.nan), np.ones((1, 1, 2), bool))
    assert sorted(tokens[0, 0]) == [0, 1]
    assert nonfinite.tolist() == [4]
    tokens, _ = solve_prompts(np.full((1, 1, 2, 3), 3e38), np.ones((1, 1, 3), bool))
    assert sorted(tokens[0, 0]) == [0, 0, 1]
    queries, _ = solve_queries(np.zeros((1, 2, 2, 4)), np.array([[True] * 3 + [False]]))
    assert [sorted(layer[:3]) for layer in queries[0]] == [[-1, 0, 1]] * 2
    assert queries[0, :, 3].tolist() == [0, 0]


def test_no_rows_and_no_targets():
    tokens, nonfinite = solve_prompts(np.zeros((0, 2, 6, 6)), np.zeros((0, 2, 6), bool))
    assert tokens.shape == (0, 2, 6)
    assert nonfinite.shape == (0,)
    queries, _ = solve_queries(np.zeros((1, 2, 5, 0)), np.zeros((1, 0), bool))
    assert queries.shape == (1, 2, 0)
