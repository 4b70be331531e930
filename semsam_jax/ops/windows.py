"""Window partitioning, and the constants of shifted-window attention."""

import functools

import numpy as np
from jaxtyping import Array, Float, Int


def padded_size(size: int, window: int) -> int:
    """Returns the next multiple of `window`."""
    return -(-size // window) * window


def to_windows(x: Float[Array, "b h w c"], window: int) -> Float[Array, "bn m c"]:
    """Cuts maps whose sides are multiples of `window` into windows of m pixels, image by image."""
    b, h, w, c = x.shape
    x = x.reshape(b * h // window, window, w // window, window, c)
    return x.transpose(0, 2, 1, 3, 4).reshape(-1, window * window, c)


def from_windows(
    x: Float[Array, "bn m c"], window: int, height: int, width: int
) -> Float[Array, "b h w c"]:
    """Inverse of `to_windows` for maps of height x width pixels."""
    c = x.shape[-1]
    x = x.reshape(-1, width // window, window, window, c)
    return x.transpose(0, 2, 1, 3, 4).reshape(-1, height, width, c)


@functools.cache
def relative_position_index(window: int) -> Int[np.ndarray, "m m"]:
    """Row of the bias table for each (query, key) pair of pixels of a window.

    The table has one row per offset (dy, dx), both from -(window - 1) to window - 1.

    Source: docs/reference.md, section 2.
    """
    position = np.stack(np.divmod(np.arange(window * window), window), axis=-1)
    offset = position[:, None] - position[None] + (window - 1)
    return (offset[..., 0] * (2 * window - 1) + offset[..., 1]).astype(np.int32)


@functools.cache
def shifted_window_regions(
    height: int, width: int, window: int, shift: int
) -> Int[np.ndarray, "n m"]:
    """Region of each pixel of each window; regions differ if they were not adjacent before the
    cyclic shift.

    Args:
        height: rows of the padded map, a multiple of `window`.
        width: columns of the padded map, a multiple of `window`.
        window: side of a window.
        shift: how far the map was rolled up and left.

    Source: Swin (arXiv 2103.14030) section 3.2; docs/reference.md, section 2.
    """

    def region(size: int) -> np.ndarray:
        position = np.arange(size)
        return (position >= size - window).astype(np.int32) + (position >= size - shift)

    regions = region(height)[:, None] * 3 + region(width)[None]
    regions = regions.reshape(height // window, window, width // window, window)
    return regions.transpose(0, 2, 1, 3).reshape(-1, window * window)
