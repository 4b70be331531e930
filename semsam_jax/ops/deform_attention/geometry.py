"""Where a sample falls: its top-left pixel and the shares of its four corners.

Works on the head-major layout [b, h, q, k], k = levels x points, in which neighbouring
numbers belong to the same query and one head can be cut off without a copy.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


class Levels(NamedTuple):
    """Static facts of each of the k samples of a query, [1, 1, 1, k]."""

    height: np.ndarray
    width: np.ndarray
    start: np.ndarray  # index of the level's first row in the table


class Corners(NamedTuple):
    """Top-left pixels (-1 .. size - 1) and shares, [b, h, q, k]; top row first.

    A share is attention weight times bilinear weight, zero for pixels outside.
    """

    row: Int[Array, "b h q k"]
    column: Int[Array, "b h q k"]
    shares: tuple[Float[Array, "b h q k"], ...]


def levels_of(spatial_shapes: tuple[tuple[int, int], ...], points: int, pad: int) -> Levels:
    """Spreads level sizes over samples; table levels are `pad` rows and columns larger."""
    sizes = np.asarray(spatial_shapes, np.int32).repeat(points, axis=0)
    areas = [(height + pad) * (width + pad) for height, width in spatial_shapes]
    starts = np.cumsum([0, *areas[:-1]]).astype(np.int32).repeat(points)
    return Levels(*(x[None, None, None] for x in (sizes[:, 0], sizes[:, 1], starts)))


def corners_of(
    levels: Levels,
    sampling_locations: Float[Array, "b q h L P 2"],
    attention_weights: Float[Array, "b q h L P"],
) -> Corners:
    """Splits every sample into its four corners, in float32."""
    b, q, h = attention_weights.shape[:3]
    locations = sampling_locations.astype(jnp.float32).reshape(b, q, h, -1, 2)
    locations = locations.transpose(4, 0, 2, 1, 3)
    weights = attention_weights.astype(jnp.float32).reshape(b, q, h, -1).transpose(0, 2, 1, 3)

    def split(location: Array, size: np.ndarray) -> tuple[Array, Array, Array]:
        # Two pixels outside all shares are zero, so the clip changes no value; it keeps
        # the conversion to an integer defined for any finite location.
        position = jnp.clip(location * size.astype(np.float32) - 0.5, -2.0, size + 1.0)
        low = jnp.floor(position)
        high_part = position - low
        low = low.astype(jnp.int32)
        low_part = jnp.where((low >= 0) & (low < size), 1.0 - high_part, 0.0)
        high_part = jnp.where((low >= -1) & (low < size - 1), high_part, 0.0)
        return jnp.clip(low, -1, size - 1), low_part, high_part

    column, left, right = split(locations[0], levels.width)
    row, top, bottom = split(locations[1], levels.height)
    top, bottom = top * weights, bottom * weights
    return Corners(row, column, (top * left, top * right, bottom * left, bottom * right))


def inside_weight(
    spatial_shapes: tuple[tuple[int, int], ...],
    sampling_locations: Float[Array, "b q h L P 2"],
    attention_weights: Float[Array, "b q h L P"],
) -> Float[Array, "b q h"]:
    """Returns what `deform_attention` gives for a value of one everywhere.

    It is the part of the attention weight that falls on pixels inside the levels.
    """
    levels = levels_of(spatial_shapes, attention_weights.shape[-1], pad=0)
    shares = corners_of(levels, sampling_locations, attention_weights).shares
    return sum(shares).sum(-1).swapaxes(1, 2)
