"""One step on one device: how micro-batches are cut, and what layers keep."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from semsam_jax.models.semantic_sam import SemanticSAM
from semsam_jax.parallel.mesh import batch_sharding, build_mesh, replicated
from semsam_jax.train.micro import MicroBatches
from semsam_jax.train.state import shard_state
from semsam_jax.train.step import TrainStep
from tests.sharded import small

pytestmark = pytest.mark.timeout(3000)
GOOD = {"loss": np.float32(1), "nonfinite_costs": np.int32(0)}
"""Metrics of a step, as far as the update reads them."""


@pytest.fixture(scope="module")
def mesh():
    return build_mesh(1, jax.devices()[:1])


@pytest.fixture(scope="module")
def params():
    return small.params()


def test_streams_accumulated_apart_cut_every_row_once():
    batch = jax.tree.map(jnp.asarray, small.batch())
    pieces = MicroBatches(count=2, is_apart=True).cut(batch, shards=2)
    assert [(p.interactive is None, p.generic is None) for p in pieces] == [
        (False, True),
        (True, False),
    ] * 2
    # Two devices of four rows each: every micro-batch takes half of each device's rows.
    image, boxes = (np.asarray(x) for x in (batch.interactive.image, batch.generic.boxes))
    first, second = (np.asarray(pieces[i].interactive.image) for i in (0, 2))
    np.testing.assert_array_equal(first, image[[0, 1, 4, 5]])
    np.testing.assert_array_equal(second, image[[2, 3, 6, 7]])
    np.testing.assert_array_equal(pieces[3].generic.boxes, boxes[[2, 3, 6, 7]])


def test_what_micro_batches_hold_is_counted_as_of_one_step():
    """As without micro-batches; terms are means, over those that have the stream."""
    click = {"loss": 2.0, "nonfinite_costs": 1, "interactive/num_pairs": 7.0, "interactive/l1": 3.0}
    query = {"loss": 4.0, "nonfinite_costs": 0, "generic/num_instances": 5.0}
    other = click | {"interactive/num_pairs": 9.0, "interactive/l1": 1.0}
    merged = MicroBatches(count=2, is_apart=True).merge([click, query, other, query])
    assert merged == {
        "loss": 6.0,
        "nonfinite_costs": 2,
        "interactive/num_pairs": 16.0,
        "interactive/l1": 2.0,
        "generic/num_instances": 10.0,
    }


@pytest.mark.nightly  # compiles a step twice; their arithmetic is the next test
def test_micro_batches_add_up_to_a_step(mesh, params):
    """Each of them alone gives its half, with its own random draws."""
    micro = MicroBatches(count=2)
    step = small.make_step(mesh, micro=micro)
    state, batch, text = small.on_mesh(mesh, params)
    batch = batch.replace(generic=None)  # one stream compiles in half the time
    new, metrics, _ = step(state, batch, text)
    losses, grads = [], []
    parts = jax.device_put(micro.cut(batch, shards=1), batch_sharding(mesh))
    for draw, part in enumerate(parts):  # placed as in a step: the same programs
        state, _, _ = small.on_mesh(mesh, params)
        number = jax.device_put(jnp.int32(draw), replicated(mesh))
        outputs, vjp_fn, costs = step.forward(state.params, number, part, text)
        assignment, _ = step.match(costs, part)
        nothing = jax.tree.map(jnp.zeros_like, state.params)
        half, own = step.accumulate(nothing, outputs, vjp_fn, assignment, part, number)
        losses.append(float(own["loss"]))
        grads.append(jax.device_get(half))
    assert len(grads) == 2
    assert float(metrics["loss"]) == pytest.approx(sum(losses) / 2, rel=1e-6)
    wanted = jax.tree.leaves(jax.tree.map(lambda *g: sum(g), *grads))
    largest = max(np.abs(leaf).max() for leaf in wanted)
    for got, want in zip(jax.tree.leaves(new.opt_state.trace), wanted, strict=True):
        scale = max(np.abs(want).max(), 1e-6 * largest)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * scale)


def test_a_micro_batch_counts_as_its_part_of_a_step(mesh, monkeypatch):
    """Of any gradient, so that two of them give their mean."""
    grads = {"decoder": np.float32([3.0, -1.0])}
    monkeypatch.setattr(TrainStep, "_gradients", lambda *_: (grads, GOOD))
    so_far = {"decoder": jnp.float32([1.0, 2.0])}
    step = small.make_step(mesh, micro=MicroBatches(count=2))
    found, _ = step.accumulate(so_far, None, None, None, None, jnp.int32(0))
    np.testing.assert_array_equal(found["decoder"], [2.5, 1.5])


def test_recomputed_layers_leave_only_their_inputs(mesh, params):
    """What crosses from one half to the other, by shapes alone."""
    state, batch, text = small.on_mesh(mesh, params)
    hidden = small.MODEL.decoder.feedforward_dim
    kept, has_hidden = {}, {}
    for remat in ("none", "full"):
        forward = small.make_step(mesh, remat=remat).forward
        _, vjp_fn, _ = jax.eval_shape(forward, state.params, state.step, batch, text)
        leaves = jax.tree.leaves(vjp_fn)
        kept[remat] = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
        # Of a stack of one layer: [layers, rows, tokens, hidden].
        stacks = [leaf.shape for leaf in leaves if leaf.ndim == 4 and leaf.shape[0] == 1]
        has_hidden[remat] = any(shape[-1] == hidden for shape in stacks)
    assert has_hidden == {"none": True, "full": False}
    assert kept["full"] < 0.4 * kept["none"]


def test_the_average_follows_and_what_is_frozen_keeps_every_bit(mesh):
    start = {
        "decoder": np.linspace(-1, 1, 7, dtype=np.float32),
        "backbone": np.full(3, 0.1, np.float32),
    }
    tx = optax.masked(optax.sgd(0.5), {"decoder": True, "backbone": False})
    tx = optax.chain(tx, optax.masked(optax.set_to_zero(), {"decoder": False, "backbone": True}))
    state = shard_state(start, tx, True, mesh)
    step = TrainStep(
        SemanticSAM(small.MODEL), tx, small.CRITERION, mesh, num_objects=1, seed=0, ema=0.98
    )
    mean, value = start["decoder"].astype(np.float64), start["decoder"].astype(np.float64)
    for _ in range(3):
        grads = jax.tree.map(jnp.ones_like, state.params)
        state, metrics = step.update(state, grads, GOOD)
        value = value - 0.5
        mean = 0.98 * mean + 0.02 * value
    assert metrics["is_finite"]
    assert state.step == 3
    np.testing.assert_allclose(state.params["decoder"], value, rtol=1e-6)
    np.testing.assert_allclose(state.ema_params["decoder"], mean, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(state.ema_params["backbone"], start["backbone"])


@pytest.mark.parametrize(
    ("grad", "changes"),
    [
        (np.nan, {}),
        (1.0, {"loss": np.float32(np.inf)}),
        (1.0, {"nonfinite_costs": np.int32(2)}),  # the assignment, and so the loss, means nothing
    ],
)
def test_a_step_of_numbers_that_are_not_finite_changes_nothing_but_its_number(mesh, grad, changes):
    tx = optax.sgd(0.5)
    state = shard_state({"decoder": np.ones(3, np.float32)}, tx, True, mesh)
    step = TrainStep(
        SemanticSAM(small.MODEL), tx, small.CRITERION, mesh, num_objects=1, seed=0, ema=0.9
    )
    grads = {"decoder": jnp.array([1.0, grad, 1.0])}
    state, metrics = step.update(state, grads, GOOD | changes)
    assert not metrics["is_finite"]
    assert state.step == 1
    np.testing.assert_array_equal(state.params["decoder"], np.ones(3))
    np.testing.assert_array_equal(state.ema_params["decoder"], np.ones(3))
