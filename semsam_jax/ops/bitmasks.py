"""Bit-packed masks: eight pixels of a row per byte, the first pixel in the highest bit.

The same order as `np.packbits(masks, axis=-1)`. A hundred masks of 1024 x 1024 take 13 MB.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from semsam_jax.ops.point_sample import bilinear_corners, gather_rows


def mask_areas(mask_bits: UInt8[Array, "*n h w8"]) -> Int[Array, "*n"]:
    """Number of pixels of packed masks, int32."""
    return jax.lax.population_count(mask_bits).astype(jnp.int32).sum((-2, -1))


def sample_bits(
    mask_bits: UInt8[Array, "b n h w8"], points: Float[Array, "b j 2"]
) -> Float[Array, "b n j"]:
    """Bilinear values of packed masks at points, read straight from the bytes.

    Args:
        mask_bits: masks packed along x, at any stride.
        points: (x, y), fractions of the canvas; one set for all masks of an image.

    Returns:
        float32 in 0..1; zero outside the canvas, as `point_sample.sample_points`.
    """
    b, n, height, bytes_per_row = mask_bits.shape
    # One row per byte position: a single gather then serves all masks of the image.
    table = jnp.moveaxis(mask_bits.reshape(b, n, height * bytes_per_row), 1, 2)
    out = jnp.zeros((), jnp.float32)
    for row, column, weight in bilinear_corners(points, height, bytes_per_row * 8):
        octet = gather_rows(table, row * bytes_per_row + column // 8)
        shift = (7 - column % 8).astype(jnp.uint8)
        bit = (octet >> shift[..., None]) & jnp.uint8(1)
        out = out + bit.astype(jnp.float32) * weight[..., None]
    return jnp.moveaxis(out, 1, 2)
