"""Loss terms as functions of arrays, elementwise or over the last axis, float32."""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from semsam_jax.core.backend import target_backend

KTH_SMALLEST = "kth_smallest"
"""Checkpoint name of the thresholds that `smallest_k_weights` finds: tiny and slow to redo."""

_FOCAL_ALPHA = 0.25
_FOCAL_COST_EPS = 1e-8


def bce_with_logits(logits: Float[Array, "*n"], targets: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Binary cross entropy of each element; targets in 0..1."""
    return jax.nn.softplus(logits) - logits * targets


def dice_loss(
    logits: Float[Array, "*n j"], targets: Float[Array, "*n j"], weights: Float[Array, "*n j"]
) -> Float[Array, "*n"]:
    """1 - soft dice of each row, smoothed by 1.

    Args:
        logits: mask logits at the points.
        targets: 0..1.
        weights: of the points.

    Source: docs/reference.md, sections 8 and 9.
    """
    p = jax.nn.sigmoid(logits)
    inter = jnp.sum(weights * p * targets, axis=-1)
    total = jnp.sum(weights * (p + targets), axis=-1)
    return 1.0 - (2.0 * inter + 1.0) / (total + 1.0)


def sigmoid_focal(logits: Float[Array, "*n"], targets: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Focal loss of each element, alpha 0.25 and gamma 2.

    Source: arXiv 1708.02002; docs/reference.md, section 13.
    """
    p = jax.nn.sigmoid(logits)
    p_true = p * targets + (1.0 - p) * (1.0 - targets)
    alpha = _FOCAL_ALPHA * targets + (1.0 - _FOCAL_ALPHA) * (1.0 - targets)
    return alpha * jnp.square(1.0 - p_true) * bce_with_logits(logits, targets)


def focal_class_cost(logits: Float[Array, "*n v"]) -> Float[Array, "*n v"]:
    """Matching cost of giving each class to a query: focal loss if right minus if wrong.

    Source: docs/reference.md, section 13.
    """
    p = jax.nn.sigmoid(logits)
    if_true = _FOCAL_ALPHA * jnp.square(1.0 - p) * -jnp.log(p + _FOCAL_COST_EPS)
    if_false = (1.0 - _FOCAL_ALPHA) * jnp.square(p) * -jnp.log(1.0 - p + _FOCAL_COST_EPS)
    return if_true - if_false


def pairwise_bce(
    logits: Float[Array, "*b q j"],
    targets: Float[Array, "*b n j"],
    precision: jax.lax.Precision = jax.lax.Precision.HIGHEST,
) -> Float[Array, "*b q n"]:
    """Mean binary cross entropy over the points, each row of one against each of the other."""
    own = jnp.sum(jax.nn.softplus(logits), axis=-1)[..., None]
    return (own - _dot_rows(logits, targets, precision)) / logits.shape[-1]


def pairwise_dice(
    logits: Float[Array, "*b q j"],
    targets: Float[Array, "*b n j"],
    precision: jax.lax.Precision = jax.lax.Precision.HIGHEST,
) -> Float[Array, "*b q n"]:
    """`dice_loss` of each row of one against each row of the other, with equal weights."""
    p = jax.nn.sigmoid(logits)
    total = jnp.sum(p, axis=-1)[..., :, None] + jnp.sum(targets, axis=-1)[..., None, :]
    return 1.0 - (2.0 * _dot_rows(p, targets, precision) + 1.0) / (total + 1.0)


def smallest_k_weights(values: Float[Array, "*n j"], k: int) -> Float[Array, "*n j"]:
    """Weight 1 for the k smallest values of each row, 0 for the others, without sorting.

    The bit patterns of floats >= 0 have the order of the floats, so the k-th smallest is found
    digit by digit from the highest, by counting how many values are below each candidate. Values
    equal to the k-th share what is left of k evenly, so that weights always sum to k.

    Args:
        values: >= 0, no gradient is taken. bfloat16 has 15 bits to find, float32 has 31.
        k: how many to choose, 1..j.

    Returns:
        float32 weights.
    """
    if k >= values.shape[-1]:
        return jnp.ones(values.shape, jnp.float32)
    num_bits = 15 if values.dtype == jnp.bfloat16 else 31
    values = jnp.abs(jax.lax.stop_gradient(values)).astype(jnp.float32)
    bits = jax.lax.bitcast_convert_type(values, jnp.uint32) >> (31 - num_bits)
    width = _digit_width(num_bits)
    num_digits = -(-num_bits // width)

    def add_digit(index: Array, threshold: Array) -> Array:
        shift = (width * (num_digits - 1 - index)).astype(jnp.uint32)
        digit = jnp.zeros(threshold.shape, jnp.uint32)
        for step in range(1, 2**width):
            trial = threshold + (jnp.uint32(step) << shift)
            num_below = jnp.sum(bits < trial[..., None], axis=-1)
            digit += (num_below < k).astype(jnp.uint32)
        return threshold + (digit << shift)

    start = jnp.zeros(bits.shape[:-1], jnp.uint32)
    threshold = jax.lax.fori_loop(0, num_digits, add_digit, start)
    threshold = checkpoint_name(threshold, KTH_SMALLEST)
    is_below = bits < threshold[..., None]
    is_equal = bits == threshold[..., None]
    left = k - jnp.sum(is_below, axis=-1).astype(jnp.float32)
    share = left / jnp.maximum(jnp.sum(is_equal, axis=-1).astype(jnp.float32), 1.0)
    return jnp.where(is_below, 1.0, jnp.where(is_equal, share[..., None], 0.0))


def _digit_width(num_bits: int) -> int:
    """Bits found by one pass over the values: a CPU counts, accelerators wait for memory.

    By the compiler's estimate for a v5e, bfloat16 takes a third of the time of float32
    (docs/benchmarks.md). The highest digit must fit 32 bits.
    """
    if target_backend() == "cpu":
        return 1
    return 3 if num_bits % 3 == 0 else 2


def _dot_rows(
    a: Float[Array, "*b q j"], b: Float[Array, "*b n j"], precision: jax.lax.Precision
) -> Float[Array, "*b q n"]:
    return jnp.einsum("...qj,...nj->...qn", a, b, precision=precision)
