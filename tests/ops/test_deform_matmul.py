"""The matrix form of deformable attention: its tiles, its rounding, meshes, and its compiler."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from semsam_jax.core.backend import compiling_for
from semsam_jax.models.pixel_decoder import pixel_centres
from semsam_jax.ops.deform_attention import IMPLEMENTATIONS, pick_implementation
from semsam_jax.ops.deform_attention.matmul import matmul
from semsam_jax.ops.deform_attention.matmul_tiles import make_plan, step_ranges
from semsam_jax.ops.deform_attention.reference import reference
from semsam_jax.train.compile_only import slice_devices

SMALL = functools.partial(matmul, queries=128, step_pixels=32)  # compiles sooner


def make_args(shapes, batch=1, heads=1, spread=2.0, points=2, whole=False) -> tuple:
    """Value, places around each query's own pixel, weights and an output's gradient."""
    rng = np.random.default_rng(11)
    q = sum(h * w for h, w in shapes)
    lead = (batch, q, heads, len(shapes), points)
    offsets = spread * rng.normal(size=(*lead, 2))
    offsets = np.round(offsets) if whole else offsets
    sizes = np.asarray([(w, h) for h, w in shapes], np.float32)[:, None]
    places = pixel_centres(shapes)[None, :, None, None, None] + offsets / sizes
    arrays = (
        rng.normal(size=(batch, q, heads, 8)),
        places,
        rng.dirichlet(np.ones(len(shapes) * points), size=lead[:3]).reshape(lead),
        rng.normal(size=(batch, q, heads * 8)),
    )
    return tuple(jnp.asarray(x, jnp.float32) for x in arrays)


@functools.partial(jax.jit, static_argnums=(0, 1))
def both_ways(function, shapes, value, places, weights, grad):
    out, pull = jax.vjp(lambda *x: function(x[0], shapes, *x[1:]), value, places, weights)
    return out, *pull(grad.astype(out.dtype))


def worst(got: jax.Array, want: jax.Array) -> float:
    """Largest difference as a part of the largest number."""
    return float(jnp.abs(got.astype(jnp.float32) - want).max() / jnp.abs(want).max())


def test_the_tiles_of_a_tpu() -> None:
    """Several steps and tiles, a level wider than 128 columns, an odd number of points."""
    shapes = ((4, 131), (9, 11))
    args = make_args(shapes, points=3, spread=1.5)
    for got, want in zip(
        both_ways(matmul, shapes, *args), both_ways(reference, shapes, *args), strict=True
    ):
        assert worst(got, want) < 2e-6


def test_bfloat16() -> None:
    shapes = ((12, 9), (5, 4))
    value, places, weights, grad = make_args(shapes, heads=2)
    value, grad = value.astype(jnp.bfloat16), grad.astype(jnp.bfloat16)
    exact = both_ways(
        reference, shapes, *(x.astype(jnp.float32) for x in (value, places, weights, grad))
    )
    got = both_ways(SMALL, shapes, value, places, weights, grad)
    assert [x.dtype.name for x in got] == ["bfloat16", "bfloat16", "float32", "float32"]
    for one, want, tolerance in zip(got, exact, (8e-3, 8e-3, 2e-6, 2e-6), strict=True):
        assert worst(one, want) < tolerance


def test_whole_pixels_take_the_side_of_the_reference() -> None:
    """As at the start of training. A place that is whole but for rounding may take either."""
    shapes = ((8, 8), (4, 4))
    args = make_args(shapes, whole=True)
    got, want = both_ways(SMALL, shapes, *args), both_ways(reference, shapes, *args)
    for index in (0, 1, 3):
        assert worst(got[index], want[index]) < 2e-6
    same = jnp.abs(got[2] - want[2]) <= 2e-6 * jnp.abs(want[2]).max()
    assert float(same.mean()) > 0.95


def test_nothing_inside_is_nothing() -> None:
    shapes = ((8, 8), (4, 4))
    value, places, weights, grad = make_args(shapes)
    assert not any(x.any() for x in both_ways(SMALL, shapes, value, places + 50.0, weights, grad))


def test_ranges_hold_the_touched_rows_and_no_more_at_their_ends() -> None:
    shapes, rng = ((64, 64), (20, 13)), np.random.default_rng(3)
    plan = make_plan(shapes, 4, queries=128)
    places = rng.normal(0.5, 0.3, size=(2, 3, 2 * 2 * 4, 256)).astype(np.float32)
    packed = np.asarray(jax.jit(functools.partial(step_ranges, plan))(places))
    assert packed.shape == (2, 3, 2, 2)
    y = places[:, :, 8:].reshape(2, 3, 2, 4, 2, 128)
    for i, (level, (height, _)) in enumerate(zip(plan.levels, shapes, strict=True)):
        low = np.floor(y[:, :, i] * np.float32(height) - np.float32(0.5)).astype(int)
        for b, h, t in np.ndindex(2, 3, 2):
            rows = {r for x in low[b, h, :, t].ravel() for r in (x, x + 1) if 0 <= r < height}
            first, number = divmod(int(packed[b, h, t, i]), 2**16)
            assert first == min(rows) // level.rows
            assert first + number - 1 == max(rows) // level.rows < level.num_steps


def test_images_are_split_over_a_mesh_also_when_recomputed() -> None:
    """Nothing crosses between devices; images that do not divide are done whole everywhere."""
    shapes = ((5, 4),)
    args = make_args(shapes, batch=4)
    function = jax.checkpoint(SMALL, static_argnums=1)
    want = both_ways(reference, shapes, *args)
    devices = np.asarray(jax.devices()[:4]).reshape(2, 2)
    mesh = Mesh(devices, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    split = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    three = tuple(x[:3] for x in args)
    run = functools.partial(both_ways.__wrapped__, function, shapes)
    with jax.set_mesh(mesh):
        program = jax.jit(run, in_shardings=(split,) * 4).lower(*args).compile()
        whole = jax.jit(run)(*three)
    assert not re.search(r"all-gather|all-reduce|all-to-all|collective-permute", program.as_text())
    for got, some, one in zip(program(*jax.device_put(args, split)), whole, want, strict=True):
        assert got.sharding.is_equivalent_to(split, got.ndim)
        assert worst(got, one) < 3e-6
        assert worst(some, one[:3]) < 3e-6


@pytest.mark.parametrize("images", [4, 3])
def test_a_program_for_several_tpus_says_what_each_of_them_does(images: int) -> None:
    """No TPU splits a kernel by itself, which the interpreter does not notice."""
    shapes = ((5, 4),)
    args = make_args(shapes, batch=images)
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("data",), axis_types=(AxisType.Auto,))
    whole = NamedSharding(mesh, PartitionSpec())
    run = jax.jit(
        functools.partial(both_ways.__wrapped__, SMALL, shapes), in_shardings=(whole,) * 4
    )
    with compiling_for("tpu", "TPU v5 lite"):
        with jax.set_mesh(mesh):
            program = run.trace(*args).lower(lowering_platforms=("tpu",)).as_text()
        with pytest.raises(NotImplementedError, match="shard_map"):
            run.trace(*args).lower(lowering_platforms=("tpu",))
    assert program.count("@tpu_custom_call") == 2


@pytest.mark.parametrize(
    ("backend", "kind", "side", "want"),
    [
        ("cpu", "", 1024, "corner_gather"),
        ("gpu", "NVIDIA H200", 1024, "cell_gather"),
        ("tpu", "TPU v5 lite", 1024, "matmul"),
        ("tpu", "TPU v4", 1024, "matmul"),
        ("tpu", "TPU v4", 1088, "cell_gather"),
        ("tpu", "TPU v5", 2048, "matmul"),
        ("tpu", "TPU v6 lite", 2048, "matmul"),
        ("tpu", "", 1536, "cell_gather"),
    ],
)
def test_what_a_device_gets(backend: str, kind: str, side: int, want: str) -> None:
    shapes = tuple((-(-side // s), -(-side // s)) for s in (8, 16, 32, 64))
    pixels = sum(h * w for h, w in shapes)
    value = jax.ShapeDtypeStruct((1, pixels, 8, 32), jnp.bfloat16)
    weights = jax.ShapeDtypeStruct((1, pixels, 8, 4, 4), jnp.float32)
    got = []

    def pick(value, weights):
        got.append(pick_implementation(value, shapes, weights))

    with compiling_for(backend, kind):
        jax.eval_shape(pick, value, weights)
    assert got == [want]
    assert want in IMPLEMENTATIONS


@pytest.mark.nightly
def test_compiles_for_a_tpu_at_full_size_both_ways() -> None:
    """1024 px, bfloat16, v5e: the kernels are in the program, and neither gather nor scatter is."""
    shapes = ((128, 128), (64, 64), (32, 32), (16, 16))
    pixels = sum(h * w for h, w in shapes)
    mesh = Mesh(np.asarray(slice_devices("v5e:2x2"))[:1], ("x",), axis_types=(AxisType.Auto,))

    def array(dtype, *shape: int) -> jax.ShapeDtypeStruct:
        place = NamedSharding(mesh, PartitionSpec())
        return jax.ShapeDtypeStruct((1, pixels, *shape), dtype, sharding=place)

    args = (
        array(jnp.bfloat16, 8, 32),
        array(jnp.float32, 8, 4, 4, 2),
        array(jnp.float32, 8, 4, 4),
        array(jnp.bfloat16, 256),
    )
    run = functools.partial(both_ways.__wrapped__, matmul, shapes)
    with compiling_for("tpu", "TPU v5 lite"):
        compiled = jax.jit(run).lower(*args).compile()
    program = compiled.as_text()
    assert "deform_attention_forward" in program
    assert "deform_attention_backward" in program
    assert not re.search(r" (gather|scatter)\(", program)
    assert compiled.memory_analysis().temp_size_in_bytes < 200 * 2**20
