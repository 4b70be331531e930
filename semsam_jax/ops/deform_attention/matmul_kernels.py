"""The two Pallas kernels of the matrix form; see `matmul` for what they compute.

Both run on the grid (image, head, tile of queries). A grid step holds in vector memory the head's
whole table [channels, pixels], which stays there for all tiles of the head, and the arrays of its
tile: places and weights [samples, queries], output or its gradient [channels, queries]. Pixels and
queries are always the last axis (the lanes), channels and samples the one before it (the sublanes).

For each level the column hats [point, column, query] are written to memory once. Then a loop goes
over the steps of rows that the tile touches. In one step, of at least 256 pixels,

    A[pixel, query] = sum over points of (row hat * weight) * column hat      vector unit
    out += V A                                                                matrix unit

and backward, with A made again,

    dV[step] += dout A^T,  dA = V^T dout                                      matrix unit
    sums of dA * row hat * column hat, and with the slope of either           vector unit

dV is accumulated in float32 over all tiles of a head and written after the last one.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from semsam_jax.ops.deform_attention.matmul_tiles import (
    LANES,
    STRIP,
    SUBLANES,
    Level,
    Plan,
    position,
    step_ranges,
)

_DEFAULT_VMEM = 16 * 2**20


def forward(
    plan: Plan,
    table: Float[Array, "b h e pixels"],
    places: Float[Array, "b h k2 q"],
    weights: Float[Array, "b h k q"],
) -> Float[Array, "b h e q"]:
    """Sums of samples.

    Args:
        plan: static description of the call.
        table: padded levels, concatenated.
        places: float32; x of all samples, then y, as fractions of their level.
        weights: float32.

    Returns:
        The sums, in the dtype of the table.
    """
    grid, tile, whole = _blocks(plan, table, places)
    channels = table.shape[2]
    return pl.pallas_call(
        functools.partial(_forward_kernel, plan),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=grid,
            in_specs=[tile(places.shape[2]), tile(weights.shape[2]), whole],
            out_specs=tile(channels),
            scratch_shapes=[_hats(plan)],
        ),
        out_shape=jax.ShapeDtypeStruct((*table.shape[:3], places.shape[-1]), table.dtype),
        compiler_params=_params(plan, table),
        interpret=plan.interpret,
        name="deform_attention_forward",
    )(step_ranges(plan, places).reshape(-1), places, weights, table)


def backward(
    plan: Plan,
    table: Float[Array, "b h e pixels"],
    places: Float[Array, "b h k2 q"],
    weights: Float[Array, "b h k q"],
    grad: Float[Array, "b h e q"],
) -> tuple[Float[Array, "b h e pixels"], Float[Array, "b h k2 q"], Float[Array, "b h k q"]]:
    """Gradients of table, places and weights, each in the dtype of its array."""
    grid, tile, whole = _blocks(plan, table, places)
    samples = tile(places.shape[2]), tile(weights.shape[2])
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (table, places, weights)]
    grads = pl.pallas_call(
        functools.partial(_backward_kernel, plan),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=grid,
            in_specs=[*samples, whole, tile(table.shape[2])],
            out_specs=[whole, *samples],
            scratch_shapes=[
                _hats(plan),
                _hats(plan),
                pltpu.VMEM((3, plan.points, SUBLANES, plan.queries), jnp.float32),
                pltpu.VMEM(table.shape[2:], jnp.float32),
            ],
        ),
        out_shape=shapes,
        compiler_params=_params(plan, table),
        interpret=plan.interpret,
        name="deform_attention_backward",
    )(step_ranges(plan, places).reshape(-1), places, weights, table, grad)
    return tuple(grads)


def _blocks(plan: Plan, table: Array, places: Array):
    """The grid, and the blocks of arrays per tile and per head."""
    b, h, channels, pixels = table.shape
    grid = (b, h, places.shape[-1] // plan.queries)

    def tile(rows: int) -> pl.BlockSpec:
        return pl.BlockSpec((1, 1, rows, plan.queries), lambda i, j, t, _: (i, j, 0, t))

    whole = pl.BlockSpec((1, 1, channels, pixels), lambda i, j, t, _: (i, j, 0, 0))
    return grid, tile, whole


def _hats(plan: Plan) -> object:
    return pltpu.VMEM((plan.points, plan.max_width, plan.queries), jnp.float32)


def _params(plan: Plan, table: Array) -> pltpu.CompilerParams:
    """Tiles of a head run in order; images and heads in any order."""
    needed = plan.vmem_bytes(table.shape[2], table.dtype.itemsize)
    return pltpu.CompilerParams(
        dimension_semantics=("parallel", "parallel", "arbitrary"),
        vmem_limit_bytes=max(_DEFAULT_VMEM, needed),
    )


@dataclasses.dataclass(frozen=True)
class _Axis:
    """Where the samples of a level lie along one axis.

    A hat is the share of each pixel in a sample: 1 - part at `low`, part at the next, zero
    elsewhere. Its derivative by the place (the slope) is -1 and 1 at the same two.
    """

    low: Int[Array, "points queries"]
    part: Float[Array, "points queries"]

    def hat(self, index: Int[Array, "..."]) -> Float[Array, "n queries"]:
        """Of one index, or of an array [n, queries] of them."""
        return self._of_two(index, 1.0 - self.part, self.part)

    def slope(self, index: Int[Array, "..."]) -> Float[Array, "n queries"]:
        """As `hat`."""
        return self._of_two(index, -1.0, 1.0)

    def _of_two(self, index, at_low, at_next) -> Array:
        return jnp.where(index == self.low, at_low, jnp.where(index == self.low + 1, at_next, 0.0))

    def __getitem__(self, point: int) -> "_Axis":
        return _Axis(self.low[point : point + 1], self.part[point : point + 1])


def _axes(places_ref, plan: Plan, level: int) -> tuple[_Axis, _Axis]:
    """Columns and rows of a level's samples."""
    axes = []
    for axis, size in enumerate((plan.levels[level].width, plan.levels[level].height)):
        start = (axis * len(plan.levels) + level) * plan.points
        pixels = position(places_ref[0, 0, pl.ds(start, plan.points)], size)
        low = jnp.floor(pixels)
        axes.append(_Axis(low.astype(jnp.int32), pixels - low))
    return tuple(axes)


def _fill_columns(columns: _Axis, width: int, hat_ref, slope_ref=None) -> None:
    """Writes the column hats, and slopes, [point, column, query] of a level."""
    for point in range(hat_ref.shape[0]):
        for x in range(0, width, STRIP):
            index = jax.lax.broadcasted_iota(jnp.int32, (STRIP, hat_ref.shape[-1]), 0) + x
            hat_ref[point, pl.ds(x, STRIP)] = columns[point].hat(index)
            if slope_ref is not None:
                slope_ref[point, pl.ds(x, STRIP)] = columns[point].slope(index)


def _matrix(rows: list[Array], hat_ref, width: int, dtype) -> Float[Array, "pixels queries"]:
    """A of one step; `rows` are the row hats times weights [points, queries] of its rows."""
    strips = [[] for _ in rows]
    for x in range(0, width, STRIP):
        hats = [hat_ref[point, pl.ds(x, STRIP)] for point in range(hat_ref.shape[0])]
        for strip, row in zip(strips, rows, strict=True):
            products = (row[p : p + 1] * hat for p, hat in enumerate(hats))
            strip.append(functools.reduce(jnp.add, products))
    # Converted as a whole: the compiler then packs it once, in the order the matrix unit wants.
    return jnp.concatenate([x for strip in strips for x in strip], axis=0).astype(dtype)


def _dot(x: Array, y: Array, contract: tuple[int, int]) -> Float[Array, "m n"]:
    """Product with float32 sums; float32 operands are multiplied as such."""
    is_exact = x.dtype == jnp.float32  # bfloat16 is in any case, and asking for more is an error
    precision = jax.lax.Precision.HIGHEST if is_exact else jax.lax.Precision.DEFAULT
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(
        x, y, dimensions, precision=precision, preferred_element_type=jnp.float32
    )


def _steps(plan: Plan, ranges_ref, level: int) -> tuple[Array, Array]:
    """First step and number of steps of this tile."""
    image, head, tile = (pl.program_id(i) for i in range(3))
    place = ((image * pl.num_programs(1) + head) * pl.num_programs(2) + tile) * len(plan.levels)
    packed = ranges_ref[place + level]
    return packed >> 16, packed & 0xFFFF


def _pixels(level: Level, row: Array) -> pl.Slice:
    """Pixels of the step that begins with a row."""
    start = pl.multiple_of(level.start + row * level.padded_width, LANES)
    return pl.ds(start, level.rows * level.padded_width)


def _forward_kernel(plan: Plan, ranges_ref, places_ref, weights_ref, table_ref, out_ref, hat_ref):
    table_ref, out_ref = table_ref.at[0, 0], out_ref.at[0, 0]
    total = jnp.zeros(out_ref.shape, jnp.float32)
    for i, level in enumerate(plan.levels):
        columns, lines = _axes(places_ref, plan, i)
        share = weights_ref[0, 0, pl.ds(i * plan.points, plan.points)]
        _fill_columns(columns, level.padded_width, hat_ref)
        first, number = _steps(plan, ranges_ref, i)

        def step(k, total, level=level, lines=lines, share=share, first=first):
            row = (first + k) * level.rows
            hats = [lines.hat(row + r) * share for r in range(level.rows)]
            matrix = _matrix(hats, hat_ref, level.padded_width, table_ref.dtype)
            return total + _dot(table_ref[:, _pixels(level, row)], matrix, (1, 0))

        total = jax.lax.fori_loop(0, number, step, total)
    # Zero, or NaN where a place or weight is: a NaN has no row, and would be left out silently.
    flaw = _nan_or_zero(places_ref[0, 0]) + _nan_or_zero(weights_ref[0, 0])
    out_ref[...] = (total + flaw).astype(out_ref.dtype)


def _nan_or_zero(x: Float[Array, "k queries"]) -> Float[Array, "1 queries"]:
    return jnp.sum(jnp.where(jnp.isnan(x), jnp.nan, 0.0), axis=0, keepdims=True)


def _backward_kernel(
    plan: Plan,
    ranges_ref,
    places_ref,
    weights_ref,
    table_ref,
    grad_ref,
    table_out_ref,
    places_out_ref,
    weights_out_ref,
    hat_ref,
    slope_ref,
    sums_ref,
    table_sum_ref,
):
    table_ref, grad_ref = table_ref.at[0, 0], grad_ref.at[0, 0]
    grad = grad_ref[...]

    @pl.when(pl.program_id(2) == 0)
    def _():
        table_sum_ref[...] = jnp.zeros(table_sum_ref.shape, jnp.float32)

    for i, level in enumerate(plan.levels):
        columns, lines = _axes(places_ref, plan, i)
        share = weights_ref[0, 0, pl.ds(i * plan.points, plan.points)]
        width = level.padded_width
        _fill_columns(columns, width, hat_ref, slope_ref)
        first, number = _steps(plan, ranges_ref, i)
        sums_ref[...] = jnp.zeros(sums_ref.shape, jnp.float32)

        def step(k, _, level=level, lines=lines, share=share, first=first, width=width):
            row = (first + k) * level.rows
            pixels = _pixels(level, row)
            hats = [lines.hat(row + r) for r in range(level.rows)]
            slopes = [lines.slope(row + r) for r in range(level.rows)]
            matrix = _matrix([hat * share for hat in hats], hat_ref, width, table_ref.dtype)
            table_sum_ref[:, pixels] += _dot(grad, matrix, (1, 1))
            change = _dot(table_ref[:, pixels], grad, (0, 0))
            for p in range(plan.points):
                sums = [0.0, 0.0, 0.0]
                for r in range(level.rows):
                    by_hat, by_slope = _along_row(change, r * width, width, p, hat_ref, slope_ref)
                    hat, slope = hats[r][p : p + 1], slopes[r][p : p + 1]
                    sums[0] += hat * by_hat
                    sums[1] += hat * by_slope
                    sums[2] += slope * by_hat
                for j, one in enumerate(sums):
                    sums_ref[j, p] += one

        jax.lax.fori_loop(0, number, step, None)
        for p in range(plan.points):
            value, across, along = (
                jnp.sum(sums_ref[j, p], axis=0, keepdims=True) for j in range(3)
            )
            of_point, sample = share[p : p + 1], i * plan.points + p
            weights_out_ref[0, 0, pl.ds(sample, 1)] = value
            places_out_ref[0, 0, pl.ds(sample, 1)] = across * of_point * np.float32(level.width)
            sample += len(plan.levels) * plan.points
            places_out_ref[0, 0, pl.ds(sample, 1)] = along * of_point * np.float32(level.height)

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _():
        table_out_ref[0, 0] = table_sum_ref[...].astype(table_out_ref.dtype)


def _along_row(
    change: Array, start: int, width: int, point: int, hat_ref, slope_ref
) -> tuple[Float[Array, "8 queries"], Float[Array, "8 queries"]]:
    """Products of one row of dA with column hats and slopes, summed but for the last eight."""
    by_hat = by_slope = 0.0
    for x in range(0, width, SUBLANES):
        part = change[start + x : start + x + SUBLANES]
        by_hat += part * hat_ref[point, pl.ds(x, SUBLANES)]
        by_slope += part * slope_ref[point, pl.ds(x, SUBLANES)]
    return by_hat, by_slope
