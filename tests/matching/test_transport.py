"""Costs to the host and assignments back: one device, eight devices, two processes."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semsam_jax.core.errors import ShapeError
from semsam_jax.core.structs import Costs
from semsam_jax.matching.solvers import solve_prompts, solve_queries
from semsam_jax.matching.transport import assign
from semsam_jax.parallel.mesh import batch_sharding, build_mesh, replicated

RNG = np.random.default_rng(0)
PROMPTS = RNG.uniform(-3, 3, (8, 5, 6, 4)).astype(np.float32)
TARGETS = np.where(np.arange(4) < RNG.integers(0, 5, (8, 5, 1)), 1, -1).astype(np.int32)
QUERIES = RNG.uniform(-3, 3, (16, 3, 9, 7)).astype(np.float32)
VALID = np.arange(7) < RNG.integers(0, 8, (16, 1))


def put(sharding):
    arrays = (PROMPTS, QUERIES, TARGETS, VALID)
    prompts, queries, targets, valid = (jax.device_put(x, sharding) for x in arrays)
    return Costs(prompts, queries), targets, valid


def check(assignment):
    np.testing.assert_array_equal(
        assignment.token_of_target, solve_prompts(PROMPTS, TARGETS >= 0)[0]
    )
    np.testing.assert_array_equal(assignment.query_of_instance, solve_queries(QUERIES, VALID)[0])
    assert int(assignment.nonfinite.sum()) == 0


@pytest.mark.parametrize("fsdp", [1, 2, 8])
def test_eight_devices_equal_one(fsdp):
    rows = batch_sharding(build_mesh(fsdp))
    assignment, report = assign(*put(rows))
    check(assignment)
    assert assignment.token_of_target.sharding.is_equivalent_to(rows, 3)
    assert assignment.query_of_instance.sharding.is_equivalent_to(rows, 3)
    assert assignment.nonfinite.shape == (24,)
    assert report.host_sec > 0
    assert report.wait_sec >= 0
    # The answer goes straight into a compiled half that donates nothing of it.
    total = jax.jit(lambda a: a.token_of_target.sum())(assignment)
    assert int(total) == int(solve_prompts(PROMPTS, TARGETS >= 0)[0].sum())


def test_one_device_and_replicas():
    check(assign(*put(jax.devices()[0]))[0])
    check(assign(*put(batch_sharding(build_mesh(devices=jax.devices()[:1]))))[0])
    check(assign(*put(replicated(build_mesh())))[0])


def test_costs_out_of_a_compiled_half():
    mesh = build_mesh(2)
    costs, targets, valid = put(batch_sharding(mesh))

    @jax.jit
    def half(costs):
        return jax.tree.map(
            lambda x: jax.lax.with_sharding_constraint(x * 1.0, batch_sharding(mesh)), costs
        )

    check(assign(half(costs), targets, valid)[0])


def test_one_stream_or_none():
    costs, targets, valid = put(batch_sharding(build_mesh()))
    only, _ = assign(Costs(costs.prompts, None), targets, None)
    assert only.query_of_instance is None
    assert only.nonfinite.shape == (8,)
    only, _ = assign(Costs(None, costs.queries), None, valid)
    assert only.token_of_target is None
    assert only.nonfinite.shape == (16,)
    neither, _ = assign(Costs(None, None), None, None)
    assert neither.token_of_target is None
    assert int(neither.nonfinite.sum()) == 0


def test_bad_costs_are_counted_where_they_are():
    rows = batch_sharding(build_mesh())
    costs, targets, valid = put(rows)
    targets = jax.device_put(np.zeros_like(TARGETS), rows)
    bad = jax.device_put(jnp.asarray(PROMPTS).at[3, 2, 1, 0].set(jnp.nan), rows)
    assignment, _ = assign(Costs(bad, None), targets, None)
    assert np.flatnonzero(assignment.nonfinite).tolist() == [3]
    both, _ = assign(Costs(bad, costs.queries), targets, valid)
    assert int(both.nonfinite.sum()) == 1


def test_misplaced_validity_is_named():
    mesh = build_mesh()
    costs, targets, valid = put(batch_sharding(mesh))
    with pytest.raises(ShapeError, match="prompt_targets has None"):
        assign(costs, None, valid)
    with pytest.raises(ShapeError, match="instance_valid has 8"):
        assign(costs, targets, valid[:8])
    with pytest.raises(ShapeError, match="split it alike"):
        assign(costs, jax.device_put(targets, replicated(mesh)), valid)


def test_two_processes():
    """Each process solves its own rows; together they hold the single-process answer."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = pathlib.Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.matching.two_process_worker", f"127.0.0.1:{port}"]
    workers = [
        subprocess.Popen(
            [*command, str(index)],
            cwd=root,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    try:
        outputs = [worker.communicate(timeout=240)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    for index, (worker, output) in enumerate(zip(workers, outputs, strict=True)):
        assert worker.returncode == 0, output
        assert f"process {index} ok" in output
