"""Moves costs to the host and assignments back to the devices.

The only place where a training step involves the host. Each process solves the rows on its own
devices and returns the assignments to the same devices, so processes do not communicate. A host
callback inside the compiled program would gather all costs on one device and could deadlock.
"""

import dataclasses
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from semsam_jax.core.errors import ShapeError
from semsam_jax.core.structs import Assignment, Costs
from semsam_jax.matching.solvers import solve_prompts, solve_queries

Solver = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class AssignReport:
    """Time that matching took in this process.

    Attributes:
        host_sec: seconds from the costs being ready to the assignments being queued.
        wait_sec: seconds of waiting for the device to finish the costs.
    """

    host_sec: float
    wait_sec: float


def assign(
    costs: Costs, prompt_targets: jax.Array | None, instance_valid: jax.Array | None
) -> tuple[Assignment, AssignReport]:
    """Solves all assignments of a step on the host.

    Args:
        costs: of one or both streams; None for an absent stream and under the many-to-one rule,
            which selects tokens on the device. Only the batch axis may be sharded.
        prompt_targets: int32 [b,p,t] of the interactive rows, -1 is padding; sharded like
            `costs.prompts`.
        instance_valid: bool [b,n] of the generic rows; sharded like `costs.queries`.

    Returns:
        The assignment, sharded like the costs, and the report. `nonfinite` holds one count per row:
        on each device its interactive rows, then its generic rows.

    Raises:
        ShapeError: costs and validity are sharded differently.
    """
    start = time.perf_counter()
    jax.block_until_ready(costs)
    ready = time.perf_counter()
    tokens = queries = None
    counts: list[jax.Array] = []
    if costs.prompts is not None:
        tokens, bad = _solve("prompt_targets", costs.prompts, prompt_targets, _solve_prompts)
        counts.append(bad)
    if costs.queries is not None:
        queries, bad = _solve("instance_valid", costs.queries, instance_valid, solve_queries)
        counts.append(bad)
    report = AssignReport(host_sec=time.perf_counter() - ready, wait_sec=ready - start)
    return Assignment(tokens, queries, _join(counts)), report


def _solve_prompts(costs: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return solve_prompts(costs, targets >= 0)


def _solve(
    name: str, costs: jax.Array, valid: jax.Array | None, solver: Solver
) -> tuple[jax.Array, jax.Array]:
    """Solves the shards of this process; replicated rows are solved once."""
    for shard in costs.addressable_shards:
        shard.data.copy_to_host_async()
    valid_of = _matching_shards(name, costs, valid)
    solved: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
    answers, counts = {}, {}
    for shard in costs.addressable_shards:
        rows = _rows(shard.index, costs)
        if rows not in solved:
            solved[rows] = solver(np.asarray(shard.data), np.asarray(valid_of[shard.device]))
        answers[shard.device], counts[shard.device] = solved[rows]
    return _put_back(answers, costs.shape[0], costs), _put_back(counts, costs.shape[0], costs)


def _matching_shards(
    name: str, costs: jax.Array, valid: jax.Array | None
) -> dict[jax.Device, jax.Array]:
    """The shard of `valid` on each device, checked to hold the same rows as the costs."""
    if valid is None or valid.shape[0] != costs.shape[0]:
        raise ShapeError(
            f"assign: the costs have {costs.shape[0]} rows, {name} has "
            f"{None if valid is None else valid.shape[0]}; pass both from the same rows."
        )
    rows = {shard.device: _rows(shard.index, valid) for shard in valid.addressable_shards}
    for shard in costs.addressable_shards:
        is_whole = shard.data.shape[1:] == costs.shape[1:]
        if not is_whole or rows.get(shard.device) != _rows(shard.index, costs):
            raise ShapeError(
                f"assign: the costs are sharded as {costs.sharding}, {name} as "
                f"{valid.sharding}; split only the batch axis, and split it alike."
            )
    return {shard.device: shard.data for shard in valid.addressable_shards}


def _put_back(pieces: dict[jax.Device, np.ndarray], num_rows: int, like: jax.Array) -> jax.Array:
    """Builds a global array that is sharded like `like`."""
    sharding = like.sharding
    if isinstance(sharding, NamedSharding):
        # Assignments have fewer axes than costs: keep the spec of the batch axis.
        sharding = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[:1]))
    parts = [jax.device_put(piece, device) for device, piece in pieces.items()]
    shape = (num_rows, *parts[0].shape[1:])
    return jax.make_array_from_single_device_arrays(shape, sharding, parts)


def _join(counts: list[jax.Array]) -> jax.Array:
    """One vector of counts: on each device those of one stream, then those of the other."""
    if not counts:
        return jnp.zeros(1, jnp.int32)
    if len(counts) == 1:
        return counts[0]
    pieces = [{s.device: np.asarray(s.data) for s in c.addressable_shards} for c in counts]
    merged = {device: np.concatenate([p[device] for p in pieces]) for device in pieces[0]}
    return _put_back(merged, sum(c.shape[0] for c in counts), counts[0])


def _rows(index: tuple[slice, ...], array: jax.Array) -> tuple[int, int]:
    start, stop, _ = index[0].indices(array.shape[0])
    return start, stop
