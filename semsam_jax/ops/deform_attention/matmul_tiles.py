"""Tiling of the matrix form: levels padded to whole blocks, queries in tiles, rows in steps.

Everything is static except `step_ranges`, the steps that a tile of queries has to visit.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

LANES = 128
SUBLANES = 8
STRIP = 16  # columns of a hat that are made at a time; levels are at least as wide
_MIB = 2**20
_RESERVE = 3 * _MIB  # what the compiler keeps for values that do not fit its registers
_MAX_RANGES = 2**16  # numbers in scalar memory, 4 bytes each
_VMEM = {"TPU v4": 16, "TPU v5 lite": 96, "TPU v5": 48, "TPU v6 lite": 96, "TPU7x": 48}
"""MiB of a core's vector memory that a kernel may take, by `jax.Device.device_kind`.

All of a v4's, three quarters of the others', because the compiler keeps arrays of its own there.
Unknown kinds get 16.
"""


@dataclasses.dataclass(frozen=True)
class Level:
    """A level as the kernels see it: rows of `padded_width` pixels, in steps of `rows` rows.

    Attributes:
        height: rows that hold pixels.
        width: columns that hold pixels.
        padded_height: rows with padding, a whole number of steps.
        padded_width: columns with padding.
        start: index of the first pixel among those of all padded levels.
        rows: rows of a step.
    """

    height: int
    width: int
    padded_height: int
    padded_width: int
    start: int
    rows: int

    @property
    def num_pixels(self) -> int:
        """Pixels, padding included."""
        return self.padded_height * self.padded_width

    @property
    def num_steps(self) -> int:
        """Steps of the whole level."""
        return self.padded_height // self.rows


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything static about one call.

    Attributes:
        levels: of the pyramid.
        points: samples per level.
        queries: queries per tile, a multiple of 128.
        interpret: run the kernels as ordinary array operations, without a TPU.
    """

    levels: tuple[Level, ...]
    points: int
    queries: int
    interpret: bool = False

    @property
    def num_pixels(self) -> int:
        """Pixels of all levels, padding included."""
        return sum(level.num_pixels for level in self.levels)

    @property
    def max_width(self) -> int:
        """Columns of the widest level."""
        return max(level.padded_width for level in self.levels)

    def vmem_bytes(self, channels: int, itemsize: int) -> int:
        """Vector memory of the backward kernel, which needs more than the forward one.

        Of a head's table: two buffers of the value, two of its gradient, and their sum in
        float32. Hats and slopes of the columns of one level; sums of the gradients of places and
        weights; two buffers of everything that comes by tiles.

        Args:
            channels: channels per head.
            itemsize: bytes per number of the value.
        """
        samples = len(self.levels) * self.points
        tables = (4 * itemsize + 4) * channels * self.num_pixels
        hats = 2 * 4 * self.points * self.max_width * self.queries
        sums = 3 * 4 * self.points * SUBLANES * self.queries
        tiles = 2 * self.queries * (2 * 3 * 4 * samples + itemsize * channels)
        return tables + hats + sums + tiles + _RESERVE

    def num_ranges(self, images: int, heads: int, queries: int) -> int:
        """Numbers that `step_ranges` gives."""
        return images * heads * -(-queries // self.queries) * len(self.levels)


def make_plan(
    spatial_shapes: tuple[tuple[int, int], ...],
    points: int,
    queries: int = 256,
    step_pixels: int = 256,
    interpret: bool = False,
) -> Plan:
    """Pads the levels and cuts them into steps.

    A level of up to 128 columns is padded to a power of two, a wider one to a multiple of 128.
    The defaults are the best of 128 to 512 queries and 128 to 512 pixels by the compiler's final
    schedule for a TPU v5e, or within three per cent of it; no chip has measured them.

    Args:
        spatial_shapes: (H, W) of each level.
        points: samples per level.
        queries: queries per tile.
        step_pixels: a step is at least this many pixels; a multiple of 128 on a TPU.
        interpret: see `Plan`.
    """
    levels, start = [], 0
    for height, width in spatial_shapes:
        if width > LANES:
            padded_width = -(-width // LANES) * LANES
        else:
            padded_width = max(STRIP, 1 << (width - 1).bit_length())
        rows = max(1, step_pixels // padded_width)
        padded_height = -(-height // rows) * rows
        levels.append(Level(height, width, padded_height, padded_width, start, rows))
        start += levels[-1].num_pixels
    return Plan(tuple(levels), points, queries, interpret)


def fits(
    plan: Plan, value: Float[Array, "b s h e"], num_queries: int, devices: int, device_kind: str
) -> bool:
    """Whether both kernels fit into the vector memory of a device.

    Args:
        plan: of the call.
        value: the features, for their sizes and dtype.
        num_queries: queries of an image.
        devices: over which the images are split.
        device_kind: `jax.Device.device_kind`.
    """
    images, _, heads, channels = value.shape
    capacity = _VMEM.get(device_kind, 16) * _MIB
    ranges = plan.num_ranges(-(-images // devices), heads, num_queries)
    return (
        plan.vmem_bytes(channels, value.dtype.itemsize) <= capacity
        and ranges <= _MAX_RANGES
        and max(level.height for level in plan.levels) < 2**14
    )


def position(fraction: Float[Array, "*n"], size: int | np.ndarray) -> Float[Array, "*n"]:
    """Locations in pixels, whose centres are whole numbers; NaN becomes a location outside.

    Two pixels outside a level all weights are zero, so the clip changes no value; it keeps the
    conversion to integers defined.
    """
    size = np.asarray(size, np.float32)
    pixels = jnp.clip(fraction * size - 0.5, -2.0, size + 1.0)
    return jnp.where(jnp.isnan(pixels), -2.0, pixels)


def step_ranges(plan: Plan, places: Float[Array, "b h k2 q"]) -> Int[Array, "b h tiles L"]:
    """First step and number of steps of each tile and level, as first * 2^16 + number.

    Args:
        plan: of the call.
        places: x of all samples, then y, as fractions of their level; q is a whole number of tiles.
    """
    b, h, k2, q = places.shape
    heights = _by_level([level.height for level in plan.levels], plan.points)
    low = jnp.floor(position(places[:, :, k2 // 2 :], heights)).astype(jnp.int32)
    is_inside = (low >= -1) & (low < heights)
    top = jnp.where(is_inside, jnp.maximum(low, 0), 2**14)
    bottom = jnp.where(is_inside, jnp.minimum(low + 1, heights - 1), -1)
    by_tile = (b, h, len(plan.levels), plan.points, q // plan.queries, plan.queries)
    top = top.reshape(by_tile).min((3, 5))
    bottom = bottom.reshape(by_tile).max((3, 5))
    rows = np.asarray([level.rows for level in plan.levels], np.int32)[None, None, :, None]
    first = top // rows
    number = jnp.maximum(bottom // rows - first + 1, 0)
    return (first * 2**16 + number).swapaxes(2, 3)


def _by_level(numbers: list[int], points: int) -> np.ndarray:
    """A number of each level for each of its samples, [1, 1, k, 1]."""
    return np.asarray(numbers, np.int32).repeat(points)[None, None, :, None]
