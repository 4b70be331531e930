"""A quadratic window around each token's predicted box, added to its mask logits.

A mask logit is the product of a token's embedding with a pixel's features, which hardly encode
position: masks of a small model leak to everything that looks similar. A quadratic in the pixel's
position is such a product too, so the window adds six channels and no new operation. Not in the
paper; preset `lite` has it.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

NUM_CHANNELS = 6
"""Channels that a window adds to mask embeddings and mask features."""

# Lower bound of the half sides of a box (fractions of the canvas).
_SMALLEST_HALF_SIDE = 0.04
# Before the softplus: initial curvature, which has little effect.
_CURVATURE_START = -3.0


def window_features(height: int, width: int) -> Float[np.ndarray, "h w 6"]:
    """(1, x, y, x^2, y^2, xy) at the centres of cells; the origin is the middle of the canvas."""
    y = (np.arange(height, dtype=np.float32) + 0.5) / height - 0.5
    x = (np.arange(width, dtype=np.float32) + 0.5) / width - 0.5
    y, x = np.meshgrid(y, x, indexing="ij")
    return np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=-1)


def window_embed(shape: Float[Array, "*q 6"], boxes: Float[Array, "*q 4"]) -> Float[Array, "*q 6"]:
    """Weights of `window_features` that make a quadratic around each box.

    With (u, v) the offset from the box's centre in half sides of the box, a mask logit gains
    s0 + s1 u + s2 v - softplus(s3) u^2 - softplus(s4) v^2 + s5 u v.

    Args:
        shape: (s0 ... s5) of each token.
        boxes: cxcywh, fractions of the canvas; they get no gradient from here.

    Returns:
        float32 weights, in the order of `window_features`.
    """
    boxes = jax.lax.stop_gradient(boxes.astype(jnp.float32))
    cx, cy = boxes[..., 0] - 0.5, boxes[..., 1] - 0.5
    # 1 / half side: u = i (x - cx), v = j (y - cy).
    i, j = (1.0 / jnp.maximum(boxes[..., n] / 2, _SMALLEST_HALF_SIDE) for n in (2, 3))
    s0, s1, s2, s3, s4, s5 = jnp.moveaxis(shape.astype(jnp.float32), -1, 0)
    a, b, c = s1 * i, s2 * j, s5 * i * j
    p, q = jax.nn.softplus(s3) * i * i, jax.nn.softplus(s4) * j * j
    constant = s0 - a * cx - b * cy - p * cx * cx - q * cy * cy + c * cx * cy
    x, y = a + 2 * p * cx - c * cy, b + 2 * q * cy - c * cx
    return jnp.stack([constant, x, y, -p, -q, c], axis=-1)


def shape_bias(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Initial bias of a shape: no offset, no slope, a weak curvature."""
    del key
    start = [0.0, 0.0, 0.0, _CURVATURE_START, _CURVATURE_START, 0.0]
    return jnp.broadcast_to(jnp.asarray(start, dtype), shape)
