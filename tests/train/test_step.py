"""One step on one device: micro-batches, averaged parameters, precision, recomputation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semsam_jax.core.structs import StreamBatch
from semsam_jax.parallel.mesh import build_mesh
from semsam_jax.train.micro import MicroBatches
from tests.sharded import small

pytestmark = pytest.mark.timeout(3000)
EMA = 0.75


@pytest.fixture(scope="module", autouse=True)
def _compiling_is_quick():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def mesh():
    return build_mesh(1, jax.devices()[:1])


@pytest.fixture(scope="module")
def params():
    return small.params()


def _gradients(step, state, part, text, draw):
    """Gradients of a batch in one piece, with the random numbers of step number `draw`."""
    state = state.replace(step=jnp.asarray(draw, jnp.int32))
    outputs, pull_back, costs = step.forward(state.params, state.step, part, text)
    assignment, _ = step.match(costs, part)
    # A copy, since the backward half takes the state over.
    copy = jax.tree.map(jnp.copy, state)
    new, metrics = step.backward(copy, outputs, pull_back, assignment, part)
    return jax.device_get((new.opt_state.trace, metrics))


def test_micro_batches_are_the_mean_of_their_pieces_and_the_average_follows(mesh, params):
    """Two pieces of four rows; they are cut by hand and each is run whole."""
    step = small.make_step(mesh, ema=EMA, micro=MicroBatches(count=2))
    state, batch, text = small.on_mesh(mesh, params, has_ema=True)
    batch = StreamBatch(batch.interactive, None)
    half = small.ROWS // 2
    expected, losses = jax.tree.map(np.zeros_like, params), []
    for index in range(2):
        rows = slice(index * half, (index + 1) * half)
        piece = jax.tree.map(lambda x, rows=rows: x[rows], batch)
        grads, metrics = _gradients(step, state, piece, text, index)
        expected = jax.tree.map(lambda a, g: a + g / 2, expected, grads)
        losses.append(metrics["loss"])
    new, metrics, report = step(state, batch, text)
    assert report.host_sec > 0
    assert int(new.step) == 1
    np.testing.assert_allclose(metrics["loss"], sum(losses) / 2, rtol=1e-5)

    def check(path, grad, wanted, before, after, average):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        np.testing.assert_allclose(grad, wanted, rtol=1e-4, atol=1e-5, err_msg=name)
        # The optimiser adds what it is given.
        np.testing.assert_allclose(after, before + grad, rtol=1e-5, atol=1e-6, err_msg=name)
        mean = EMA * before + (1 - EMA) * np.asarray(after)
        np.testing.assert_allclose(average, mean, rtol=1e-5, atol=1e-6, err_msg=name)

    jax.tree_util.tree_map_with_path(
        check, new.opt_state.trace, expected, params, new.params, new.ema_params
    )
    moved = {name: max(np.abs(g).max() for g in jax.tree.leaves(t)) for name, t in expected.items()}
    assert moved["backbone"] > 0
    assert moved["decoder"] > 0


def test_streams_apart_cut_every_row_once():
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


def test_recomputed_layers_leave_only_their_inputs(mesh, params):
    """What crosses from one half to the other, by shapes alone."""
    state, batch, text = small.on_mesh(mesh, params)
    hidden = small.MODEL.decoder.feedforward_dim
    kept, has_hidden = {}, {}
    for remat in ("none", "full"):
        forward = small.make_step(mesh, remat=remat).forward
        _, pull_back, _ = jax.eval_shape(forward, state.params, state.step, batch, text)
        leaves = jax.tree.leaves(pull_back)
        kept[remat] = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
        # Of a stack of one layer: [layers, rows, tokens, hidden].
        stacks = [leaf.shape for leaf in leaves if leaf.ndim == 4 and leaf.shape[0] == 1]
        has_hidden[remat] = any(shape[-1] == hidden for shape in stacks)
    assert has_hidden == {"none": True, "full": False}
    assert kept["full"] < 0.4 * kept["none"]
