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
"""Stands for a cost that is not finite; any assignment that can avoid it does."""


def solve_prompts(
    costs: Float[np.ndarray, "b p k t"], target_valid: Bool[np.ndarray, "b p t"]
) -> tuple[Int[np.ndarray, "b p t"], Int[np.ndarray, " b"]]:
    """Gives every target of a prompt a token of its own, at the least total cost.

    One small problem per prompt, about 3 microseconds each: faster than solving all blocks
    together in numpy, and equal to the reference's one large problem (SPEC vii).

    Args:
        costs: of a prompt's tokens for its targets.
        target_valid: False for padding, whose token is reported as 0.

    Returns:
        (token of each target int32, number of non-finite costs of valid targets int32).
        With more valid targets than tokens, those left over get token 0.
    """
    b, p, k, t = costs.shape
    costs, nonfinite = _clean(costs, np.broadcast_to(target_valid[:, :, None, :], costs.shape))
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
    """Gives every instance a query of its own in each layer, at the least total cost.

    Args:
        costs: of the queries for the instances.
        instance_valid: False for padding, whose query is reported as 0.

    Returns:
        (query of each instance int32, number of non-finite costs of valid instances int32).
        With more valid instances than queries, those left over get query 0.
    """
    b, num_layers, _, n = costs.shape
    costs, nonfinite = _clean(costs, np.broadcast_to(instance_valid[:, None, None, :], costs.shape))
    answer = np.zeros((b, num_layers, n), np.int32)

    def solve_row(row: int) -> None:
        instances = np.flatnonzero(instance_valid[row])
        for layer in range(num_layers):
            # Few rows, many columns: the shape that scipy solves fastest.
            which, query = linear_sum_assignment(costs[row, layer].T[instances])
            answer[row, layer, instances[which]] = query

    list(_threads().map(solve_row, range(b)))
    return answer, nonfinite


def _clean(
    costs: np.ndarray, is_used: Bool[np.ndarray, "*shape"]
) -> tuple[np.ndarray, Int[np.ndarray, " b"]]:
    """Float64 copy within +-LARGE_COST, and the count of bad entries that matter."""
    is_bad = ~np.isfinite(costs)
    clean = np.clip(np.where(is_bad, LARGE_COST, costs.astype(np.float64)), -LARGE_COST, LARGE_COST)
    axes = tuple(range(1, costs.ndim))
    count = (is_bad & is_used).sum(axis=axes, dtype=np.int32)
    return clean, count


@functools.cache
def _threads() -> ThreadPoolExecutor:
    """Workers for large problems; scipy releases the interpreter while it solves."""
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="assignment")
