"""For TPUs: bilinear sampling as products of matrices, without gather or scatter.

A TPU gathers rows one at a time and multiplies matrices at full speed. A sample at (x, y) is

    sum over pixels of hat(row - y) hat(column - x) V[pixel],   hat(t) = max(0, 1 - |t|)

so the sum of a query's samples, of all points p with weights w, is a product with one matrix:

    A[pixel, query] = sum over p of w_p hat(row - y_p) hat(column - x_p)
    out[channel, query] = sum over pixels of V[channel, pixel] A[pixel, query]

A is computed on the vector unit, a step of rows at a time, and multiplied immediately; it never
leaves the chip. Its derivatives are products of the same kind (`matmul_kernels`). For each tile of
256 queries only those steps are visited that hold a row which some sample of the tile touches
(`matmul_tiles.step_ranges`). The result is therefore exact for any locations, and the time depends
on their spread: neighbouring queries of the encoder sample neighbouring rows. In the worst case all
rows are visited.

Rounding: with a bfloat16 value, A is rounded to bfloat16 as well; sums are float32. At whole pixels
the derivative is that of the floor side, as in `reference`.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float

from semsam_jax.core.backend import target_backend, target_device_kind
from semsam_jax.ops.deform_attention import matmul_kernels
from semsam_jax.ops.deform_attention.matmul_tiles import Plan, fits, make_plan, step_ranges


def matmul(
    value: Float[Array, "b s h e"],
    spatial_shapes: tuple[tuple[int, int], ...],
    sampling_locations: Float[Array, "b q h L P 2"],
    attention_weights: Float[Array, "b q h L P"],
    *,
    queries: int = 256,
    step_pixels: int = 256,
) -> Float[Array, "b q h*e"]:
    """Implements `deform_attention`. Interpreted, and slow, on anything but a TPU.

    The compiler cannot partition a kernel. Under `jax.set_mesh` the images are split over all
    automatic axes of the mesh; if they cannot be divided evenly, every device computes all of them.

    Args:
        value: see `deform_attention`.
        spatial_shapes: see `deform_attention`.
        sampling_locations: see `deform_attention`.
        attention_weights: see `deform_attention`.
        queries: queries per tile, see `make_plan`.
        step_pixels: see `make_plan`.

    Raises:
        NotImplementedError: by JAX, for a program on several devices without a mesh in use.
    """
    b, q, h, _, points = attention_weights.shape
    interpret = target_backend() != "tpu"
    plan = make_plan(spatial_shapes, points, queries, step_pixels, interpret)
    table = _pad_levels(value.transpose(0, 2, 3, 1), plan)
    places = sampling_locations.astype(jnp.float32).transpose(0, 2, 5, 3, 4, 1)
    weights = attention_weights.astype(jnp.float32).transpose(0, 2, 3, 4, 1)
    # Queries that fill the last tile lie outside all levels and touch no row.
    extra = ((0, 0), (0, 0), (0, 0), (0, -q % plan.queries))
    places = jnp.pad(places.reshape(b, h, -1, q), extra, constant_values=-9.0)
    weights = jnp.pad(weights.reshape(b, h, -1, q), extra)
    run = functools.partial(_sample, plan)
    if _free_axes():
        rows = PartitionSpec(_split_axes(b) or None)
        run = jax.shard_map(run, in_specs=(rows,) * 3, out_specs=rows, check_vma=False)
    out = run(table, places, weights)[..., :q]
    return out.transpose(0, 3, 1, 2).reshape(b, q, -1)


def touched_rows(
    spatial_shapes: tuple[tuple[int, int], ...],
    sampling_locations: Float[Array, "b q h L P 2"],
) -> Float[Array, " b"]:
    """Share of all rows that `matmul` visits, 0..1, mean over heads and tiles of each image.

    The kernels' time is proportional to it; any implementation may be in use.
    """
    b, q, h, _, points, _ = sampling_locations.shape
    plan = make_plan(spatial_shapes, points)
    places = sampling_locations.astype(jnp.float32).transpose(0, 2, 5, 3, 4, 1)
    # The last tile is filled up with its last query.
    extra = ((0, 0), (0, 0), (0, 0), (0, -q % plan.queries))
    places = jnp.pad(places.reshape(b, h, -1, q), extra, mode="edge")
    pixels = np.asarray([level.rows * level.padded_width for level in plan.levels], np.float32)
    visited = (step_ranges(plan, places) & 0xFFFF).astype(jnp.float32) * pixels[None, None, None]
    return visited.sum(-1).mean((1, 2)) / plan.num_pixels


def matmul_fits(
    value: Float[Array, "b s h e"], spatial_shapes: tuple[tuple[int, int], ...], q: int, points: int
) -> bool:
    """Whether a head's table fits into the vector memory of the target device.

    With four levels and 32 channels per head in bfloat16, square images of up to 1024 px fit on a
    TPU v4, and up to 2048 px on the other generations.
    """
    mesh = jax.sharding.get_abstract_mesh()
    devices = math.prod(mesh.shape[axis] for axis in _split_axes(value.shape[0]))
    return fits(make_plan(spatial_shapes, points), value, q, devices, target_device_kind())


def _free_axes() -> tuple[str, ...]:
    """Axes of the current mesh that the compiler would split over; none for a single device."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(
        name
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind == AxisType.Auto
    )
    return axes if math.prod(mesh.shape[axis] for axis in axes) > 1 else ()


def _split_axes(images: int) -> tuple[str, ...]:
    """Axes of the current mesh that images are split over; none if they do not divide evenly."""
    mesh, axes = jax.sharding.get_abstract_mesh(), _free_axes()
    return () if images % math.prod(mesh.shape[axis] for axis in axes) else axes


def _pad_levels(value: Float[Array, "b h e s"], plan: Plan) -> Float[Array, "b h e pixels"]:
    lead, parts, start = value.shape[:3], [], 0
    for level in plan.levels:
        stop = start + level.height * level.width
        grid = value[..., start:stop].reshape(*lead, level.height, level.width)
        down, right = level.padded_height - level.height, level.padded_width - level.width
        if down or right:
            grid = jnp.pad(grid, ((0, 0), (0, 0), (0, 0), (0, down), (0, right)))
        parts.append(grid.reshape(*lead, -1))
        start = stop
    return jnp.concatenate(parts, axis=-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sample(
    plan: Plan,
    table: Float[Array, "b h e pixels"],
    places: Float[Array, "b h k2 q"],
    weights: Float[Array, "b h k q"],
) -> Float[Array, "b h e q"]:
    return matmul_kernels.forward(plan, table, places, weights)


def _forward(plan: Plan, *inputs: Array) -> tuple[Array, tuple[Array, ...]]:
    return _sample(plan, *inputs), inputs


def _backward(plan: Plan, inputs: tuple[Array, ...], grad: Array) -> tuple[Array, ...]:
    return matmul_kernels.backward(plan, *inputs, grad)


_sample.defvjp(_forward, _backward)
