"""Bilinear resizing with half-pixel centres."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def resize_bilinear(
    images: Float[Array, "b h1 w1 c"], size_hw: tuple[int, int]
) -> Float[Array, "b h2 w2 c"]:
    """Resizes maps in float32; each output pixel reads its four nearest input pixels.

    No antialiasing when shrinking, edges are repeated: the original's interpolation with
    align_corners False.

    Args:
        images: maps.
        size_hw: height and width of the result, pixels.
    """
    b, _, _, channels = images.shape
    return jax.image.resize(
        images.astype(jnp.float32),
        (b, *size_hw, channels),
        method="bilinear",
        antialias=False,
        precision=jax.lax.Precision.HIGHEST,
    )
