"""One step on one device: micro-batches, averaged parameters, precision, recomputation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semsam_jax.core.structs import StreamBatch
from semsam_jax.parallel.mesh import build_mesh
from semsam_jax.train.micro import MicroBatches
from tests.sharded import small

pytestmark = pytest.mark.timeout(1500)
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
    """Two pieces of two streams each; the pieces are taken by hand and run whole."""
    step = small.make_step(mesh, ema=EMA, micro=MicroBatches(count=2, is_apart=True))
    state, batch, text = small.on_mesh(mesh, params, has_ema=True)
    half = small.ROWS // 2
    expected, losses = jax.tree.map(np.zeros_like, params), []
    for index in range(2):
        rows = slice(index * half, (index + 1) * half)
        cut = jax.tree.map(lambda x, rows=rows: x[rows], batch)
        pieces = (StreamBatch(cut.interactive, None), StreamBatch(None, cut.generic))
        for number, piece in enumerate(pieces):
            grads, metrics = _gradients(step, state, piece, text, 2 * index + number)
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
    assert np.mean([np.abs(g).max() > 0 for g in jax.tree.leaves(expected)]) > 0.95


def test_bfloat16_with_recomputation_stays_near_float32(mesh, params):
    """Three gradients of the same batch: plain, recomputed (equal), in bfloat16 (near)."""
    found = {}
    for name, dtype, remat in (
        ("plain", jnp.float32, "none"),
        ("recomputed", jnp.float32, "full"),
        ("half", jnp.bfloat16, "dots"),
    ):
        state, batch, text = small.on_mesh(mesh, params)
        step = small.make_step(mesh, dtype=dtype, remat=remat)
        found[name] = _gradients(step, state, batch, text, 0)
    grads, metrics = found["plain"]
    again, again_metrics = found["recomputed"]
    np.testing.assert_allclose(again_metrics["loss"], metrics["loss"], rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), again, grads)
    near, near_metrics = found["half"]
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(near))
    np.testing.assert_allclose(near_metrics["loss"], metrics["loss"], rtol=0.02)
    flat, other = (np.concatenate([g.ravel() for g in jax.tree.leaves(t)]) for t in (grads, near))
    cosine = flat @ other / np.linalg.norm(flat) / np.linalg.norm(other)
    assert cosine > 0.97, cosine


def test_recomputed_layers_leave_only_their_inputs(mesh, params):
    """What crosses from one half to the other, by shapes alone."""
    state, batch, text = small.on_mesh(mesh, params)
    hidden = small.MODEL.decoder.feedforward_dim
    kept, has_hidden = {}, {}
    for remat in ("none", "dots", "full"):
        forward = small.make_step(mesh, remat=remat).forward
        _, pull_back, _ = jax.eval_shape(forward, state.params, state.step, batch, text)
        leaves = jax.tree.leaves(pull_back)
        kept[remat] = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
        # Activations have rows; stacked kernels of this width have [layers, inputs, hidden].
        has_hidden[remat] = any(leaf.ndim > 3 and leaf.shape[-1] == hidden for leaf in leaves)
    assert has_hidden == {"none": True, "dots": True, "full": False}
    assert kept["full"] < kept["dots"] < kept["none"]
