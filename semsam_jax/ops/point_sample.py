"""Bilinear sampling of maps at points given as fractions of the canvas.

A point (x, y) in 0..1 lies at pixel (x * width - 0.5, y * height - 0.5): the centre of the
top-left pixel of a 4 x 4 map is (1/8, 1/8). Outside the map everything is zero.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def bilinear_corners(
    points: Float[Array, "*n 2"], height: int, width: int
) -> list[tuple[Int[Array, "*n"], Int[Array, "*n"], Float[Array, "*n"]]]:
    """The four pixels around each point.

    Args:
        points: (x, y), fractions of the canvas.
        height: rows of the map.
        width: columns of the map.

    Returns:
        Four (row, column, weight); rows and columns are inside the map, and the weight of
        a corner that was outside is zero.
    """
    x = points[..., 0].astype(jnp.float32) * width - 0.5
    y = points[..., 1].astype(jnp.float32) * height - 0.5
    left, top = jnp.floor(x), jnp.floor(y)
    corners = []
    for down in (0, 1):
        for right in (0, 1):
            column, row = left + right, top + down
            weight = (1.0 - jnp.abs(x - column)) * (1.0 - jnp.abs(y - row))
            is_inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            corners.append(
                (
                    jnp.clip(row, 0, height - 1).astype(jnp.int32),
                    jnp.clip(column, 0, width - 1).astype(jnp.int32),
                    jnp.where(is_inside, weight, 0.0),
                )
            )
    return corners


def gather_rows(table: Array, index: Int[Array, "b j"]) -> Array:
    """Rows `table[b, index[b, j]]` of [b, rows, columns]; the index must be in range."""
    return jax.vmap(lambda rows, i: rows.at[i].get(mode="promise_in_bounds"))(table, index)


def sample_points(
    features: Float[Array, "b h w d"], points: Float[Array, "b *m j 2"]
) -> Float[Array, "b *m j d"]:
    """Bilinear values of a map at points, float32.

    Args:
        features: maps.
        points: (x, y), fractions of the canvas.

    Source: docs/reference.md, section 8, point sampling with align_corners False and zeros outside.
    """
    b, height, width, d = features.shape
    flat = features.astype(jnp.float32).reshape(b, height * width, d)
    out = jnp.zeros((), jnp.float32)
    for row, column, weight in bilinear_corners(points.reshape(b, -1, 2), height, width):
        out = out + gather_rows(flat, row * width + column) * weight[..., None]
    return out.reshape(*points.shape[:-1], d)
