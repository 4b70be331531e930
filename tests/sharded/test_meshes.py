"""One step on meshes of eight devices: numbers of one device, and what crosses between devices."""

import dataclasses
from collections import Counter
from math import prod

import jax
import numpy as np
import pytest

from semsam_jax.core.structs import Costs
from semsam_jax.parallel import sharding
from semsam_jax.parallel.mesh import batch_sharding, build_mesh, replicated
from semsam_jax.parallel.program import collectives
from tests.conftest import optimizations_off
from tests.sharded import small

pytestmark = pytest.mark.timeout(3000)
PROGRAMS = ("_forward", "_backward")
# A minute of compiling each; the first splits along both axes, the others along one or both.
MESHES = [
    pytest.param(2, id="(4,2)"),
    *(
        pytest.param(fsdp, id=name, marks=pytest.mark.nightly)
        for name, fsdp in {"(8,1)": 1, "(2,4)": 4, "(1,8)": 8}.items()
    ),
]


@pytest.fixture(scope="module", autouse=True)
def _small_arrays_are_split_and_compiling_is_quick():
    """Parameters of the small model would stay whole; compiling so often needs no optimiser."""
    with pytest.MonkeyPatch.context() as patch, optimizations_off():
        patch.setattr(sharding, "MIN_SHARDED_SIZE", 256)
        yield


@pytest.fixture(scope="module")
def params():
    return small.params()


@dataclasses.dataclass
class _Step:
    """What one step gave, and its two compiled programs."""

    metrics: dict
    grads: dict
    programs: tuple[jax.stages.Compiled, jax.stages.Compiled]
    costs: Costs


def _one_step(mesh, params) -> _Step:
    """Takes one step."""
    state, batch, text = small.on_mesh(mesh, params)
    step = small.make_step(mesh)
    given = (state.params, state.step, batch, text)
    forward = step.forward.lower(*given).compile()
    outputs, vjp_fn, costs = forward(*given)
    assignment, _ = step.match(costs, batch)
    rest = (outputs, vjp_fn, assignment, batch)
    backward = step.backward.lower(state, *rest).compile()
    new, metrics = backward(state, *rest)
    metrics, grads = jax.device_get((metrics, new.opt_state.trace))
    return _Step(metrics, grads, (forward, backward), costs)


@pytest.fixture(scope="module")
def one_device(params):
    return _one_step(build_mesh(1, jax.devices()[:1]), params)


@pytest.fixture(scope="module", params=MESHES)
def eight_devices(request, params):
    return request.param, _one_step(build_mesh(request.param), params)


def test_loss_and_gradients_are_those_of_one_device(eight_devices, one_device):
    metrics, want = eight_devices[1].metrics, one_device.metrics
    assert want["nonfinite_costs"] == 0
    for name in (
        "loss",
        "interactive/total",
        "generic/total",
        "grad_norm/all",
        "encoder/touched_rows",
    ):
        np.testing.assert_allclose(metrics[name], want[name], rtol=1e-5, err_msg=name)

    def compare(path, got, expected):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        # A sum over rows may cancel; the error is that of its terms.
        atol = 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=atol, err_msg=name)

    jax.tree_util.tree_map_with_path(compare, eight_devices[1].grads, one_device.grads)
    norms = [np.abs(leaf).max() for leaf in jax.tree.leaves(one_device.grads)]
    assert np.mean(np.asarray(norms) > 0) > 0.95


def test_costs_stay_where_they_are_computed(eight_devices):
    programs, costs = eight_devices[1].programs, eight_devices[1].costs
    for cost in (costs.prompts, costs.queries):
        assert len(cost.addressable_shards) == 8
        assert all(shard.data.shape[0] == 1 for shard in cost.addressable_shards)
    crossing = {shape for stage in programs for one in collectives(stage) for shape in one.shapes}
    assert not crossing & {costs.prompts.shape, costs.queries.shape}


def test_only_parameters_gradients_and_scalars_cross(eight_devices, params):
    """Each parameter is gathered once, each gradient summed once; activations stay."""
    fsdp, (forward, backward) = eight_devices[0], eight_devices[1].programs
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
