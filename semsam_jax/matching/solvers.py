"""Exact minimum-cost assignment on the host.

Solvers are total: they never raise inside a training step. Costs that are not finite are
replaced by a large value and counted; the caller turns the count into an error.
"""

import functools
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment

LARGE_COST = 1e6
"""Replaces costs that are not finite, so that any other assignment is preferred."""

UNASSIGNED = -1
"""Query of an instance that is left over because every query has another instance."""


def solve_prompts(
    costs: Float[np.ndarray, "b p k t"], target_valid: Bool[np.ndarray, "b p t"]
) -> tuple[Int[np.ndarray, "b p t"], Int[np.ndarray, " b"]]:
    """Assigns the targets of each prompt to distinct tokens at minimum total cost.

    One small problem per prompt, about 3 microseconds each, equivalent to the single large problem
    of the reference (docs/reference.md, section 8).

    Args:
        costs: of assigning targets to tokens.
        target_valid: False for padding, whose token is reported as 0.

    Returns:
        (token of each target int32, number of non-finite costs of valid targets int32).
        If there are more valid targets than tokens, the remaining ones get token 0; a run never
        has any (`data.max_targets` is at most the number of tokens).
    """
    b, p, k, t = costs.shape
    costs, is_bad = _clean(costs)
    nonfinite = (is_bad & target_valid[:, :, None, :]).sum(axis=(1, 2, 3), dtype=np.int32)
    blocks = np.ascontiguousarray(np.swapaxes(costs, 2, 3)).reshape(b * p, t, k)
    answer = np.zeros((b * p, t), np.int32)
    for block, valid, tokens in zip(blocks, target_valid.reshape(b * p, t), answer, strict=True):
        targets = valid.nonzero()[0]
        if targets.size:
            which, token = linear_sum_assignment(block[targets])
            tokens[targets[which]] = token
    return answer.reshape(b, p, t), nonfinite


def solve_queries(
    costs: Float[np.ndarray, "b l q n"], instance_valid: Bool[np.ndarray, "b n"]
) -> tuple[Int[np.ndarray, "b l n"], Int[np.ndarray, " b"]]:
    """Assigns the instances of each image to distinct queries, in each layer, at minimum total
    cost.

    Args:
        costs: of assigning instances to queries.
        instance_valid: False for padding, whose query is reported as 0.

    Returns:
        (query of each instance int32, number of non-finite costs of valid instances int32).
        If there are more valid instances than queries, the remaining ones get `UNASSIGNED`.
    """
    b, num_layers, _, n = costs.shape
    answer = np.zeros((b, num_layers, n), np.int32)

    def solve_row(row: int) -> int:
        instances = np.flatnonzero(instance_valid[row])
        # SciPy is fastest with few rows and many columns. Padding is not copied.
        blocks, is_bad = _clean(costs[row, :, :, instances].transpose(1, 0, 2))
        answer[row, :, instances] = UNASSIGNED
        for layer, block in enumerate(blocks):
            which, query = linear_sum_assignment(block)
            answer[row, layer, instances[which]] = query
        return int(is_bad.sum())

    return answer, np.array(list(_threads().map(solve_row, range(b))), np.int32)


def _clean(
    costs: Float[np.ndarray, "*shape"],
) -> tuple[Float[np.ndarray, "*shape"], Bool[np.ndarray, "*shape"]]:
    """A copy clipped to +-LARGE_COST, and a mask of the entries that were not finite."""
    is_bad = ~np.isfinite(costs)
    if is_bad.any():
        costs = np.where(is_bad, LARGE_COST, costs)
    return np.clip(costs, -LARGE_COST, LARGE_COST), is_bad


@functools.cache
def _threads() -> ThreadPoolExecutor:
    """Threads for large problems; SciPy releases the GIL while it solves."""
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="assignment")
