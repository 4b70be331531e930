"""For CPUs: one head at a time, so that its table stays in the cache.

The forward pass is a single fused loop over (query, channel) that adds up all corners;
nothing of size [q, samples, e] is ever written to memory.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from semsam_jax.ops.deform_attention.geometry import (
    Levels,
    SamplePoints,
    corners_of,
    levels_of,
    samples_of,
)

Indices = tuple[Int[Array, "b q k"], ...]
Shares = tuple[Float[Array, "b q k"], ...]


def corner_gather(
    value: Float[Array, "b s h e"],
    spatial_shapes: tuple[tuple[int, int], ...],
    sampling_locations: Float[Array, "b q h L P 2"],
    attention_weights: Float[Array, "b q h L P"],
) -> Float[Array, "b q h*e"]:
    """Implements `deform_attention`; each corner is a row of its head's table [s, e]."""
    b, _, h, e = value.shape
    levels = levels_of(spatial_shapes, attention_weights.shape[-1], pad=0)
    samples = samples_of(sampling_locations, attention_weights)
    table = value.swapaxes(1, 2).astype(jnp.float32)
    table, samples = jax.tree.map(lambda x: x.swapaxes(0, 1), (table, samples))
    # Two loops: were the corners computed in the second, XLA would fuse them into the
    # sum and repeat them for every channel.
    index, share = jax.lax.map(lambda head: _index_and_share(levels, head), samples)
    out = jax.lax.map(lambda head: _sum_rows(*head), (table, index, share))
    return out.transpose(1, 2, 0, 3).reshape(b, -1, h * e).astype(value.dtype)


def _index_and_share(levels: Levels, samples: SamplePoints) -> tuple[Indices, Shares]:
    """Table row and share of every corner of one head's samples."""
    start, height, width = (x[None, None] for x in (levels.start, levels.height, levels.width))
    row, column, shares = corners_of(levels, samples)
    # A clipped corner points at some pixel of its level, with share zero.
    top = start + jnp.maximum(row, 0) * width
    bottom = start + jnp.minimum(row + 1, height - 1) * width
    left, right = jnp.maximum(column, 0), jnp.minimum(column + 1, width - 1)
    return (top + left, top + right, bottom + left, bottom + right), shares


@jax.custom_vjp
def _sum_rows(
    table: Float[Array, "b s e"], indices: Indices, shares: Shares
) -> Float[Array, "b q e"]:
    """Sum over corners and k of share * table[index]."""
    out = jnp.zeros((*indices[0].shape[:2], table.shape[-1]), jnp.float32)
    for index, share in zip(indices, shares, strict=True):
        for k in range(index.shape[-1]):
            corner, weight = (jax.lax.slice_in_dim(x, k, k + 1, axis=2) for x in (index, share))
            out = out + _take(table, corner) * weight
    return out


def _take(table: Float[Array, "b s e"], index: Int[Array, "b *i 1"]) -> Float[Array, "b *i e"]:
    """The same as indexing under `vmap`, which takes four times as long to trace."""
    dimensions = jax.lax.GatherDimensionNumbers(
        offset_dims=(index.ndim - 1,),
        collapsed_slice_dims=(1,),
        start_index_map=(1,),
        operand_batching_dims=(0,),
        start_indices_batching_dims=(0,),
    )
    sizes = (1, 1, table.shape[-1])
    return jax.lax.gather(table, index, dimensions, sizes, mode="promise_in_bounds")


def _forward(table: Array, indices: Indices, shares: Shares) -> tuple[Array, tuple]:
    return _sum_rows(table, indices, shares), (table, indices, shares)


def _backward(saved: tuple, grad: Float[Array, "b q e"]) -> tuple[Array, None, Shares]:
    table, indices, shares = saved
    grad_shares = tuple(
        jnp.einsum("bqke,bqe->bqk", _take(table, index[..., None]), grad) for index in indices
    )
    index, share = jnp.concatenate(indices, axis=-1), jnp.concatenate(shares, axis=-1)
    updates = share[..., None] * grad[:, :, None]
    add = jax.vmap(lambda i, u: jnp.zeros(table.shape[1:]).at[i].add(u, mode="promise_in_bounds"))
    return add(index, updates), None, grad_shares


_sum_rows.defvjp(_forward, _backward)
