"""For TPUs: `packed`, one head at a time, with all four corners side by side in the lanes.

A TPU stores the last axis of an array in rows of 128: an array [.., 4, 32] takes eight times
its size. Here the last axis is always 4 * e, which is 128 for the usual 32 channels a head,
and one head of one image is in memory at a time.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from semsam_jax.ops.deform_attention.geometry import Samples, corners_of, levels_of, samples_of
from semsam_jax.ops.deform_attention.packed import pack


def lanes(
    value: Float[Array, "b s h e"],
    spatial_shapes: tuple[tuple[int, int], ...],
    sampling_locations: Float[Array, "b q h L P 2"],
    attention_weights: Float[Array, "b q h L P"],
) -> Float[Array, "b q h*e"]:
    """See `deform_attention`; each sample is one row of its head's table [cells, 4 * e]."""
    b, _, h, e = value.shape
    levels = levels_of(spatial_shapes, attention_weights.shape[-1], pad=1)
    samples = samples_of(sampling_locations, attention_weights)
    table = pack(value, spatial_shapes)

    def one_head(table: Array, samples: Samples) -> Float[Array, "b q e"]:
        row, column, shares = corners_of(levels, samples)
        start, width = (x[None, None] for x in (levels.start, levels.width + 1))
        index = start + (row + 1) * width + column + 1
        return jax.vmap(_sum_cells)(table, index, jnp.stack(shares, axis=-1))

    # Images stay in one piece: their axis is split over devices, a loop over it would not be.
    by_head = jax.tree.map(lambda x: x.swapaxes(0, 1), (table, samples))
    out = jax.lax.map(lambda head: one_head(*head), by_head)
    return out.transpose(1, 2, 0, 3).reshape(b, -1, h * e).astype(value.dtype)


@jax.custom_vjp
def _sum_cells(
    table: Float[Array, "cells e4"], index: Int[Array, "q k"], share: Float[Array, "q k 4"]
) -> Float[Array, "q e"]:
    """Sum over k and corners of share * corner of table[index], in float32."""
    e = table.shape[-1] // 4
    corners = jnp.sum(_take(table, index) * _spread(share, e), axis=1)
    return corners.reshape(-1, 4, e).sum(1)


def _take(table: Float[Array, "cells e4"], index: Int[Array, "q k"]) -> Float[Array, "q k e4"]:
    return table.at[index].get(mode="promise_in_bounds").astype(jnp.float32)


def _spread(share: Float[Array, "q k 4"], channels: int) -> Float[Array, "q k e4"]:
    """Repeats the share of each corner over its channels."""
    q, k, _ = share.shape
    return jnp.broadcast_to(share[..., None], (q, k, 4, channels)).reshape(q, k, -1)


def _forward(table: Array, index: Array, share: Array) -> tuple[Array, tuple]:
    return _sum_cells(table, index, share), (table, index, share)


def _backward(saved: tuple, grad: Float[Array, "q e"]) -> tuple[Array, None, Array]:
    table, index, share = saved
    q, k, e = *index.shape, grad.shape[-1]
    grad = jnp.tile(grad, (1, 4))[:, None]
    grad_share = (_take(table, index) * grad).reshape(q, k, 4, e).sum(-1)
    # Many samples hit one cell: add them up in float32 whatever the table's dtype.
    zeros = jnp.zeros(table.shape, jnp.float32)
    grad_table = zeros.at[index].add(grad * _spread(share, e), mode="promise_in_bounds")
    return grad_table.astype(table.dtype), None, grad_share


_sum_cells.defvjp(_forward, _backward)
