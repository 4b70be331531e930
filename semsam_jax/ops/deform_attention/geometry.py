"""Bilinear geometry of a sample: its top-left pixel and the weights of its four corners.

Uses the head-major layout [..., q, k], k = levels x points: neighbouring numbers belong to the same
query, and a head is sliced off without a copy.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


class SamplePoints(NamedTuple):
    """Locations and weights of all samples, float32 [b, h, q, k]."""

    x: Float[Array, "*n q k"]  # fraction of the level's width
    y: Float[Array, "*n q k"]
    weight: Float[Array, "*n q k"]


class Levels(NamedTuple):
    """Static facts of each of the k samples of a query, [k]."""

    height: np.ndarray
    width: np.ndarray
    start: np.ndarray  # index of the level's first row in the table


class Corners(NamedTuple):
    """Top-left pixels (-1 .. size - 1) and shares, [..., q, k]; top row first.

    A share is attention weight times bilinear weight, zero for pixels outside.
    """

    row: Int[Array, "*n q k"]
    column: Int[Array, "*n q k"]
    shares: tuple[Float[Array, "*n q k"], ...]


def levels_of(spatial_shapes: tuple[tuple[int, int], ...], points: int, pad: int) -> Levels:
    """Repeats level sizes for each sample; table levels are `pad` rows and columns larger."""
    sizes = np.asarray(spatial_shapes, np.int32).repeat(points, axis=0)
    areas = [(height + pad) * (width + pad) for height, width in spatial_shapes]
    starts = np.cumsum([0, *areas[:-1]]).astype(np.int32).repeat(points)
    return Levels(sizes[:, 0], sizes[:, 1], starts)


def samples_of(
    sampling_locations: Float[Array, "b q h L P 2"],
    attention_weights: Float[Array, "b q h L P"],
) -> SamplePoints:
    """Rearranges the samples head by head, in float32."""
    b, q, h = attention_weights.shape[:3]
    locations = sampling_locations.astype(jnp.float32).reshape(b, q, h, -1, 2)
    x, y = locations.transpose(4, 0, 2, 1, 3)
    weight = attention_weights.astype(jnp.float32).reshape(b, q, h, -1).transpose(0, 2, 1, 3)
    return SamplePoints(x, y, weight)


def corners_of(levels: Levels, samples: SamplePoints) -> Corners:
    """Splits every sample into its four corners."""
    lead = (1,) * (samples.x.ndim - 1)

    def split(fraction: Array, sizes: np.ndarray) -> tuple[Array, Array, Array]:
        size = sizes.reshape(*lead, -1)
        # Two pixels outside all shares are zero, so the clip changes no value; it keeps
        # the conversion to an integer defined for any finite location.
        position = jnp.clip(fraction * size.astype(np.float32) - 0.5, -2.0, size + 1.0)
        # A NaN is given a pixel that exists, so that it reaches the sum.
        low = jnp.floor(jnp.where(jnp.isnan(position), 0.0, position))
        high_part = position - low
        low = low.astype(jnp.int32)
        low_part = jnp.where((low >= 0) & (low < size), 1.0 - high_part, 0.0)
        high_part = jnp.where((low >= -1) & (low < size - 1), high_part, 0.0)
        return jnp.clip(low, -1, size - 1), low_part, high_part

    column, left, right = split(samples.x, levels.width)
    row, top, bottom = split(samples.y, levels.height)
    top, bottom = top * samples.weight, bottom * samples.weight
    return Corners(row, column, (top * left, top * right, bottom * left, bottom * right))


def inside_weight(
    spatial_shapes: tuple[tuple[int, int], ...],
    sampling_locations: Float[Array, "b q h L P 2"],
    attention_weights: Float[Array, "b q h L P"],
) -> Float[Array, "b q h"]:
    """Output of `deform_attention` for a value of one everywhere.

    It is the share of the attention weight that falls on pixels inside the levels.
    """
    levels = levels_of(spatial_shapes, attention_weights.shape[-1], pad=0)
    shares = corners_of(levels, samples_of(sampling_locations, attention_weights)).shares
    return sum(shares).sum(-1).swapaxes(1, 2)
