"""One step on meshes of eight devices: numbers of one device, and what crosses between devices."""

import os
from collections import Counter
from math import prod

import jax
import numpy as np
import pytest

from semsam_jax.parallel import sharding
from semsam_jax.parallel.mesh import batch_sharding, build_mesh, replicated
from semsam_jax.parallel.program import collectives
from tests.sharded import small

pytestmark = pytest.mark.timeout(3000)
MESHES = {"(1,8)": 8, "(4,2)": 2}
if os.environ.get("SEMSAM_JAX_ALL_MESHES"):
    # A minute and a half of compiling each; the two above hold all that these have.
    MESHES |= {"(8,1)": 1, "(2,4)": 4}


@pytest.fixture(scope="module", autouse=True)
def _small_arrays_are_split_and_compiling_is_quick():
    """Parameters of the small model would stay whole; five compilations need no optimiser."""
    before = sharding.MIN_SHARDED_SIZE
    sharding.MIN_SHARDED_SIZE = 256
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    sharding.MIN_SHARDED_SIZE = before


@pytest.fixture(scope="module")
def params():
    return small.params()


def _one_step(mesh, params):
    """Runs one step; returns (metrics, gradients, the two compiled halves, costs)."""
    state, batch, text = small.on_mesh(mesh, params)
    step = small.make_step(mesh)
    forward = step.forward.lower(state.params, state.step, batch, text).compile()
    outputs, pull_back, costs = forward(state.params, state.step, batch, text)
    assignment, _ = step.match(costs, batch)
    backward = step.backward.lower(state, outputs, pull_back, assignment, batch).compile()
    new, metrics = backward(state, outputs, pull_back, assignment, batch)
    metrics, grads = jax.device_get((metrics, new.opt_state.trace))
    return metrics, grads, (forward, backward), costs


@pytest.fixture(scope="module")
def one_device(params):
    return _one_step(build_mesh(1, jax.devices()[:1]), params)


@pytest.fixture(scope="module", params=MESHES)
def eight_devices(request, params):
    return MESHES[request.param], _one_step(build_mesh(MESHES[request.param]), params)


def test_loss_and_gradients_are_those_of_one_device(eight_devices, one_device):
    (metrics, grads, _, _), (want, wanted_grads, _, _) = eight_devices[1], one_device
    assert want["nonfinite_costs"] == 0
    for name in ("loss", "interactive/total", "generic/total", "grad_norm/all"):
        np.testing.assert_allclose(metrics[name], want[name], rtol=1e-5, err_msg=name)

    def compare(path, got, expected):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        # A sum over rows may cancel; the error is that of its terms.
        atol = 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=atol, err_msg=name)

    jax.tree_util.tree_map_with_path(compare, grads, wanted_grads)
    norms = [np.abs(leaf).max() for leaf in jax.tree.leaves(wanted_grads)]
    assert np.mean(np.asarray(norms) > 0) > 0.95


def test_costs_stay_where_they_are_computed(eight_devices):
    _, (_, _, halves, costs) = eight_devices
    for cost in (costs.prompts, costs.queries):
        assert len(cost.addressable_shards) == 8
        assert all(shard.data.shape[0] == 1 for shard in cost.addressable_shards)
    crossing = {shape for half in halves for one in collectives(half) for shape in one.shapes}
    assert not crossing & {costs.prompts.shape, costs.queries.shape}


def test_only_parameters_gradients_and_scalars_cross(eight_devices, params):
    """Each parameter is gathered once, each gradient summed once; activations stay."""
    fsdp, (_, _, (forward, backward), _) = eight_devices
    leaves = jax.tree.leaves(params)
    total = sum(leaf.size for leaf in leaves)
    table = (small.NUM_NAMES, small.MODEL.decoder.text_dim)
    scores = (small.ROWS, small.NUM_TOKENS)  # XLA does not split `top_k`.
    known = {leaf.shape for leaf in leaves} | {table, scores}
    gathered = 0
    for one in collectives(forward):
        assert one.name in ("all-gather", "collective-permute")
        for shape in one.shapes:
            assert shape in known or prod(shape) <= small.ROWS, (one.name, shape)
            gathered += prod(shape)
    # Arrays below the limit of the rule stay whole.
    assert gathered <= 1.01 * total
    assert (gathered > 0.9 * total) == (fsdp > 1)
    moved = Counter()
    for one in collectives(backward):
        moved[one.name] += sum(prod(shape) for shape in one.shapes)
    assert 0.9 * total < moved["all-reduce"] + moved["reduce-scatter"] < 2 * total
    assert moved["all-to-all"] == 0
    assert moved["all-gather"] + moved["collective-permute"] < 0.01 * total, moved


def test_a_collective_of_activations_would_be_seen():
    """Features split over devices, as a compiler does that is left to itself."""
    mesh = build_mesh(8)
    split = jax.device_put(np.ones((8, 16), np.float32), batch_sharding(mesh))
    whole = jax.jit(lambda x: x + 1, out_shardings=replicated(mesh)).lower(split).compile()
    (one,) = collectives(whole)
    assert (one.name, one.shapes) == ("all-gather", ((8, 16),))
