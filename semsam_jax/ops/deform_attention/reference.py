"""Reference implementation, level by level and corner by corner."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def reference(
    value: Float[Array, "b s h e"],
    spatial_shapes: tuple[tuple[int, int], ...],
    sampling_locations: Float[Array, "b q h L P 2"],
    attention_weights: Float[Array, "b q h L P"],
) -> Float[Array, "b q h*e"]:
    """Implements `deform_attention`; four gathers per level."""
    b, _, h, e = value.shape
    out = jnp.zeros((b, sampling_locations.shape[1], h, e), jnp.float32)
    images = jnp.arange(b)[:, None, None, None]
    heads = jnp.arange(h)[None, None, :, None]
    start = 0
    for level, (height, width) in enumerate(spatial_shapes):
        grid = value[:, start : start + height * width].reshape(b, height, width, h, e)
        start += height * width
        x = sampling_locations[:, :, :, level, :, 0].astype(jnp.float32) * width - 0.5
        y = sampling_locations[:, :, :, level, :, 1].astype(jnp.float32) * height - 0.5
        x, y = jnp.clip(x, -2, width + 1), jnp.clip(y, -2, height + 1)  # infinity lies outside
        left, top = jnp.floor(x), jnp.floor(y)
        for row, row_part in ((top, top + 1 - y), (top + 1, y - top)):
            for column, column_part in ((left, left + 1 - x), (left + 1, x - left)):
                # As a denial, so that a NaN is not outside and reaches the sum.
                is_inside = ~((row < 0) | (row >= height) | (column < 0) | (column >= width))
                i = jnp.clip(row, 0, height - 1).astype(jnp.int32)
                j = jnp.clip(column, 0, width - 1).astype(jnp.int32)
                pixels = grid[images, i, j, heads].astype(jnp.float32)
                share = row_part * column_part * is_inside * attention_weights[:, :, :, level]
                out = out + jnp.sum(pixels * share[..., None], axis=3)
    return out.reshape(b, -1, h * e).astype(value.dtype)
