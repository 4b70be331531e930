"""For CPUs: one head at a time, so that its table stays in the cache.

The forward pass is a single fused loop over (query, channel) that adds up all corners;
nothing of size [q, samples, e] is ever written to memory.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from semsam_jax.ops.deform_attention.geometry import corners_of, levels_of


def rows(
    value: Float[Array, "b s h e"],
    spatial_shapes: tuple[tuple[int, int], ...],
    sampling_locations: Float[Array, "b q h L P 2"],
    attention_weights: Float[Array, "b q h L P"],
) -> Float[Array, "b q h*e"]:
    """See `deform_attention`; each corner is a row of its head's table [s, e]."""
    b, _, h, e = value.shape
    levels = levels_of(spatial_shapes, attention_weights.shape[-1], pad=0)
    row, column, shares = corners_of(levels, sampling_locations, attention_weights)
    # A clipped corner points at some pixel of its level, with share zero.
    top = levels.start + jnp.maximum(row, 0) * levels.width
    bottom = levels.start + jnp.minimum(row + 1, levels.height - 1) * levels.width
    left, right = jnp.maximum(column, 0), jnp.minimum(column + 1, levels.width - 1)
    index = jnp.concatenate([top + left, top + right, bottom + left, bottom + right], axis=-1)
    share = jnp.concatenate(shares, axis=-1)
    table, index, share = (
        x.swapaxes(0, 1) for x in (value.swapaxes(1, 2).astype(jnp.float32), index, share)
    )
    out = jax.lax.map(lambda head: _sum_rows(*head), (table, index, share))
    return out.transpose(1, 2, 0, 3).reshape(b, -1, h * e).astype(value.dtype)


@jax.custom_vjp
def _sum_rows(
    table: Float[Array, "b s e"], index: Int[Array, "b q k"], share: Float[Array, "b q k"]
) -> Float[Array, "b q e"]:
    """Sum over k of share * table[index]."""
    out = jnp.zeros((*index.shape[:2], table.shape[-1]), jnp.float32)
    for k in range(index.shape[-1]):
        out = out + _take(table, index[..., k]) * share[..., k, None]
    return out


def _take(table: Float[Array, "b s e"], index: Int[Array, "b *i"]) -> Float[Array, "b *i e"]:
    return jax.vmap(lambda t, i: t.at[i].get(mode="promise_in_bounds"))(table, index)


def _forward(table: Array, index: Array, share: Array) -> tuple[Array, tuple]:
    return _sum_rows(table, index, share), (table, index, share)


def _backward(saved: tuple, grad: Float[Array, "b q e"]) -> tuple[Array, None, Array]:
    table, index, share = saved
    grad_share = jnp.einsum("bqke,bqe->bqk", _take(table, index), grad)
    updates = share[..., None] * grad[:, :, None]
    add = jax.vmap(lambda i, u: jnp.zeros(table.shape[1:]).at[i].add(u, mode="promise_in_bounds"))
    return add(index, updates), None, grad_share


_sum_rows.defvjp(_forward, _backward)
