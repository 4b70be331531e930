"""Loss terms against recorded numbers, and selection without sorting against sorting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semsam_jax.core.backend import compiling_for
from semsam_jax.ops import losses
from semsam_jax.ops.point_sample import sample_points
from tests.golden.table import compare, golden


@pytest.fixture(scope="module")
def units():
    return golden("units")


def test_rowwise_losses_golden(units):
    logits, targets = (jnp.asarray(units[f"maskloss/{k}"]) for k in ("logits", "targets"))
    dice = losses.dice_loss(logits, targets, jnp.ones_like(logits))
    compare("units", "maskloss/dice_per_row", dice, 1e-6)
    bce = losses.bce_with_logits(logits, targets).mean(1).sum() / 3
    compare("units", "maskloss/bce_num_masks3", bce, 1e-6 * units["maskloss/bce_num_masks3"])
    # Rows are queries here: mean over queries, sum over classes, per box.
    focal = losses.sigmoid_focal(logits, targets).mean(0).sum() / 3
    compare("units", "maskloss/focal_numboxes3", focal, 1e-5 * units["maskloss/focal_numboxes3"])


def test_pairwise_losses_golden(units):
    logits, targets = (jnp.asarray(units[f"maskloss/{k}"]) for k in ("logits", "targets"))
    compare("units", "maskloss/pair_dice", losses.pairwise_dice(logits, targets[:3]), 1e-6)
    bce = losses.pairwise_bce(logits, targets[:3])
    compare("units", "maskloss/pair_bce", bce, 1e-5 * units["maskloss/pair_bce"].min())


def test_uncertain_points_golden(units):
    logits = jnp.moveaxis(jnp.asarray(units["uncertain/logits"]), 1, -1)
    over, fresh = units["uncertain/rand_oversample"], units["uncertain/rand_random"]
    values = sample_points(logits, jnp.asarray(over))[..., 0]
    weights = np.asarray(losses.smallest_k_weights(jnp.abs(values), 30))
    want = units["uncertain/coords"]
    for row in range(3):
        assert set(np.unique(weights[row])) == {0.0, 1.0}
        got = over[row][weights[row] == 1]
        assert {tuple(p) for p in got} == {tuple(p) for p in want[row, :30]}
        np.testing.assert_array_equal(fresh[row], want[row, 30:])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("backend", ["cpu", "tpu"])
def test_smallest_k_equals_sorting(backend, dtype):
    num_finite, integers = {
        jnp.float32: (0x7F800000, np.uint32),
        jnp.bfloat16: (0x7F80, np.uint16),
    }[dtype]
    bits = np.random.default_rng(1).choice(num_finite, (5, 257), replace=False)
    values = bits.astype(integers).view(dtype)
    order = np.argsort(bits, axis=1)
    with compiling_for(backend):
        for k in (1, 2, 100, 191, 256, 257):
            weights = np.asarray(losses.smallest_k_weights(jnp.asarray(values), k))
            want = np.zeros(values.shape, np.float32)
            np.put_along_axis(want, order[:, :k], 1.0, axis=1)
            np.testing.assert_array_equal(weights, want)


def test_smallest_k_shares_ties_and_takes_anything():
    tied = jnp.array([[0.0, 1.0, 1.0, 1.0, 2.0], [3.0] * 5, [jnp.inf, jnp.nan, 0.0, 1e-45, 1e38]])
    weights = np.asarray(losses.smallest_k_weights(tied, 2))
    np.testing.assert_allclose(weights[0], [1, 1 / 3, 1 / 3, 1 / 3, 0], atol=1e-6)
    np.testing.assert_allclose(weights[1], np.full(5, 0.4), atol=1e-6)
    np.testing.assert_allclose(weights[2], [0, 0, 1, 1, 0], atol=1e-6)
    gradient = jax.grad(lambda x: (losses.smallest_k_weights(x, 2) * 3).sum())(tied)
    np.testing.assert_array_equal(gradient, np.zeros((3, 5)))


def test_weighted_dice_counts_points():
    key = jax.random.key(0)
    logits = jax.random.normal(key, (2, 6))
    targets = (jax.random.uniform(jax.random.key(1), (2, 6)) > 0.5).astype(jnp.float32)
    weights = jnp.broadcast_to(jnp.array([1.0, 0.0, 2.0, 1.0, 1.0, 1.0]), (2, 6))
    index = jnp.array([0, 2, 2, 3, 4, 5])
    want = losses.dice_loss(logits[:, index], targets[:, index], jnp.ones((2, 6)))
    np.testing.assert_allclose(losses.dice_loss(logits, targets, weights), want, atol=1e-6)


def test_extreme_logits_stay_finite():
    logits = jnp.array([-1e4, 1e4, 0.0])
    for targets in (jnp.zeros(3), jnp.ones(3)):
        for fn in (losses.bce_with_logits, losses.sigmoid_focal):
            value, gradient = jax.value_and_grad(lambda x, fn=fn, t=targets: fn(x, t).sum())(logits)
            assert np.isfinite(value)
            assert np.isfinite(gradient).all()
    assert np.isfinite(losses.focal_class_cost(logits)).all()
