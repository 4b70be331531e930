"""For GPUs: one gather fetches all four corners of a sample.

The cost of a gather is its number of rows, so the 2x2 pixels around every sample are packed along
channels first. Heads are processed one after the other, which divides the memory for gathered cells
by the number of heads. TPUs use this form where `matmul` does not fit.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from semsam_jax.ops.deform_attention.geometry import corners_of, levels_of, samples_of


def cell_gather(
    value: Float[Array, "b s h e"],
    spatial_shapes: tuple[tuple[int, int], ...],
    sampling_locations: Float[Array, "b q h L P 2"],
    attention_weights: Float[Array, "b q h L P"],
) -> Float[Array, "b q h*e"]:
    """Implements `deform_attention`; each sample is one row of a table [cells, 4, e]."""
    b, _, h, e = value.shape
    # The cell of a sample is named by its top-left corner, which starts at -1.
    levels = levels_of(spatial_shapes, attention_weights.shape[-1], pad=1)
    row, column, shares = corners_of(levels, samples_of(sampling_locations, attention_weights))
    start, width = (x[None, None, None] for x in (levels.start, levels.width + 1))
    index = start + (row + 1) * width + column + 1
    inputs = (pack(value, spatial_shapes), index, jnp.stack(shares, axis=-1))
    inputs = jax.tree.map(lambda x: x.swapaxes(0, 1), inputs)
    out = jax.lax.map(lambda head: jax.vmap(_sum_cells)(*head), inputs)
    return out.transpose(1, 2, 0, 3).reshape(b, -1, h * e).astype(value.dtype)


def pack(
    value: Float[Array, "b s h e"], spatial_shapes: tuple[tuple[int, int], ...]
) -> Float[Array, "b h cells 4*e"]:
    """Packs the 2x2 pixels around every pixel corner along channels: one cell per corner."""
    b, _, h, e = value.shape
    tables, start = [], 0
    for height, width in spatial_shapes:
        grid = value[:, start : start + height * width].reshape(b, height, width, h, e)
        start += height * width
        grid = jnp.pad(grid.transpose(0, 3, 1, 2, 4), ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
        top, bottom = grid[:, :, :-1], grid[:, :, 1:]
        corners = [top[..., :-1, :], top[..., 1:, :], bottom[..., :-1, :], bottom[..., 1:, :]]
        tables.append(jnp.concatenate(corners, axis=-1).reshape(b, h, -1, 4 * e))
    return jnp.concatenate(tables, axis=2)


@jax.custom_vjp
def _sum_cells(
    table: Float[Array, "cells e4"], index: Int[Array, "q k"], share: Float[Array, "q k 4"]
) -> Float[Array, "q e"]:
    """Sum over k and corners of share * corner of table[index], in float32."""
    # Multiply and sum, not a matrix product: XLA fuses these with the gather.
    cells = jnp.sum(_take(table, index) * _spread(share, table.shape[-1]), axis=1)
    return cells.reshape(len(cells), 4, -1).sum(1)


def _take(table: Float[Array, "cells e4"], index: Int[Array, "q k"]) -> Float[Array, "q k e4"]:
    return table.at[index].get(mode="promise_in_bounds").astype(jnp.float32)


def _spread(share: Float[Array, "q k 4"], channels: int) -> Float[Array, "q k e4"]:
    """Repeats the share of each corner over the corner's channels."""
    return jnp.repeat(share, channels // 4, axis=-1)


def _forward(table: Array, index: Array, share: Array) -> tuple[Array, tuple]:
    return _sum_cells(table, index, share), (table, index, share)


def _backward(saved: tuple, grad: Float[Array, "q e"]) -> tuple[Array, None, Array]:
    table, index, share = saved
    grad = jnp.tile(grad, (1, 4))[:, None]
    # Gather, multiply and sum are one fusion; operands of a matrix product [q, k, 4 * e] would be
    # written to memory.
    products = (_take(table, index) * grad).reshape(*index.shape, 4, -1)
    grad_share = products.sum(-1)
    updates = _spread(share, table.shape[-1]) * grad
    # Many samples hit one cell: add them up in float32 whatever the table's dtype.
    zeros = jnp.zeros(table.shape, jnp.float32)
    grad_table = zeros.at[index].add(updates, mode="promise_in_bounds")
    return grad_table.astype(table.dtype), None, grad_share


_sum_cells.defvjp(_forward, _backward)
