"""Sine position encodings of pixels and of boxes."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def _frequencies(num_features: int, temperature: float) -> np.ndarray:
    """Divisor of each feature; a sine and the cosine after it share one."""
    pair = np.arange(num_features) // 2
    return np.float32(temperature) ** (2 * pair / num_features).astype(np.float32)


def _grid(y: Float[np.ndarray, "h d"], x: Float[np.ndarray, "w d"]) -> Float[Array, "h w c"]:
    """Broadcast inside the program: as a constant it would be as large as the map."""
    shape = (len(y), len(x), y.shape[1])
    parts = [jnp.broadcast_to(y[:, None], shape), jnp.broadcast_to(x[None], shape)]
    return jnp.concatenate(parts, axis=-1)


def sine_grid(
    height: int, width: int, channels: int, temperature: float = 10000.0
) -> Float[Array, "h w c"]:
    """Encodes every pixel of a map: half of the channels for y, then half for x.

    Row i counts as (i + 1) / H of a full turn; sines on even and cosines on odd channels.

    Args:
        height: rows of the map.
        width: columns of the map.
        channels: number of features, divisible by 4.
        temperature: ratio of the longest to the shortest wave.

    Returns:
        Float32 features; rows and columns are constants, computed on the host.

    Source: DETR (arXiv 2005.12872); docs/reference.md, section 3.
    """
    half = channels // 2
    axes = []
    for size in (height, width):
        turn = np.arange(1, size + 1, dtype=np.float32) / np.float32(size + 1e-6)
        angle = (turn * np.float32(2 * math.pi))[:, None] / _frequencies(half, temperature)[None]
        features = np.where(np.arange(half)[None] % 2 == 0, np.sin(angle), np.cos(angle))
        axes.append(features.astype(np.float32))
    return _grid(*axes)


def wave_grid(
    height: int, width: int, channels: int, max_turns: float = 16.0
) -> Float[Array, "h w c"]:
    """Encodes pixel centres by waves of half a turn up to `max_turns` over the map.

    The dot product of two pixels' codes falls off with their distance, so a mask embedding can
    select by location as well as by content.

    Args:
        height: rows of the map.
        width: columns of the map.
        channels: number of features, divisible by 4: sine and cosine, for y and for x.
        max_turns: turns of the shortest wave over the map.

    Returns:
        Float32 features.

    Source: Fourier features (arXiv 2006.10739), with fixed, geometrically spaced frequencies.
    """
    turns = np.geomspace(0.5, max_turns, channels // 4)
    axes = []
    for size in (height, width):
        angle = 2 * math.pi * ((np.arange(size) + 0.5) / size)[:, None] * turns[None]
        axes.append(np.concatenate([np.sin(angle), np.cos(angle)], axis=-1).astype(np.float32))
    return _grid(*axes)


def sine_boxes(
    boxes: Float[Array, "*n 4"], channels: int, temperature: float = 10000.0
) -> Float[Array, "*n c"]:
    """Encodes boxes: a quarter of the channels each for cy, cx, w, h, in this order.

    Args:
        boxes: (cx, cy, w, h) as fractions; a full unit is a full turn.
        channels: number of features, divisible by 8.
        temperature: ratio of the longest to the shortest wave.

    Returns:
        Float32 features, sines on even and cosines on odd channels of each quarter.

    Source: DAB-DETR (arXiv 2201.12329); docs/reference.md, section 4.
    """
    quarter = channels // 4
    order = jnp.stack([boxes[..., i] for i in (1, 0, 2, 3)], axis=-1).astype(jnp.float32)
    waves = _frequencies(quarter, temperature)[::2].reshape((1,) * boxes.ndim + (-1,))
    angle = order[..., None] * (2 * math.pi) / waves
    features = jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1)
    return features.reshape(*boxes.shape[:-1], channels)
