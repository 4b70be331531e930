"""Every implementation of deformable attention against recorded and hand-made numbers."""

import dataclasses
from pathlib import Path

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from semsam_jax.core.errors import ConfigError, ShapeError
from semsam_jax.ops.deform_attention import IMPLEMENTATIONS, deform_attention
from tests.golden.table import compare

RUN = jax.jit(deform_attention, static_argnums=1, static_argnames="implementation")
GOLDEN = Path(__file__).parents[1] / "golden" / "data"


@dataclasses.dataclass(frozen=True)
class ArgSpec:
    """Shapes of one real call, pyramid reduced by four; 32 channels a head as always."""

    name: str
    shapes: tuple[tuple[int, int], ...]
    batch: int
    num_queries: int | None  # None: every pixel is a query
    heads: int = 8
    channels: int = 32


SPECS = [
    ArgSpec("encoder_wide", ((20, 27), (10, 14), (5, 7), (3, 4)), 2, None, heads=2),
    ArgSpec("decoder_clicks", ((3, 4), (5, 7), (10, 14), (20, 27)), 1, 60),
    ArgSpec("raw_memory", ((3, 4), (5, 7), (10, 14), (20, 27)), 1, 48, heads=1, channels=256),
    ArgSpec("one_pixel_levels", ((1, 1), (1, 5), (4, 1), (2, 2)), 2, 7, heads=2, channels=4),
]


def make_args(spec: ArgSpec) -> tuple[jax.Array, jax.Array, jax.Array]:
    rng = np.random.default_rng(7)
    num_pixels = sum(h * w for h, w in spec.shapes)
    q = num_pixels if spec.num_queries is None else spec.num_queries
    value = rng.normal(size=(spec.batch, num_pixels, spec.heads, spec.channels))
    locations = rng.uniform(-0.3, 1.3, size=(spec.batch, q, spec.heads, 4, 4, 2))
    weights = rng.dirichlet(np.ones(16), size=(spec.batch, q, spec.heads))
    weights = weights.reshape(*weights.shape[:3], 4, 4)
    return tuple(jnp.asarray(x, jnp.float32) for x in (value, locations, weights))


@pytest.fixture(params=sorted(IMPLEMENTATIONS))
def implementation(request: pytest.FixtureRequest) -> str:
    return request.param


def test_golden_output_and_gradients(implementation: str) -> None:
    with np.load(GOLDEN / "units.npz") as file:
        data = {
            key.split("/")[1]: file[key] for key in file.files if key.startswith("msdeform_core")
        }
    shapes = tuple((int(h), int(w)) for h, w in data["spatial_shapes"])
    args = [jnp.asarray(data[key]) for key in ("value", "sampling_locations", "attention_weights")]

    def run(value: jax.Array, locations: jax.Array, weights: jax.Array) -> jax.Array:
        return deform_attention(value, shapes, locations, weights, implementation=implementation)

    out, pull = jax.vjp(jax.jit(run), *args)
    compare("units", "msdeform_core/output", out, 2e-6)
    grads = pull(jnp.asarray(data["grad_output"]))
    for got, key in zip(grads, ("value", "locations", "weights"), strict=True):
        largest = float(np.abs(data[f"grad_{key}"]).max())
        compare("units", f"msdeform_core/grad_{key}", got, 1e-5 * largest)


def _pairs() -> list:
    """Every implementation on every pyramid; the interpreter takes long to compile, and kernels are
    compared with recorded numbers here and with the reference in `test_deform_matmul`.
    """
    return [
        pytest.param(name, spec, id=f"{spec.name}-{name}", marks=marks)
        for name in sorted(set(IMPLEMENTATIONS) - {"reference"})
        for spec in SPECS
        for marks in [pytest.mark.nightly if name == "matmul" else ()]
    ]


@pytest.mark.parametrize(("implementation", "spec"), _pairs())
def test_equals_reference_with_gradients(implementation: str, spec: ArgSpec) -> None:
    args = make_args(spec)

    def loss(name: str, *args: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = deform_attention(args[0], spec.shapes, *args[1:], implementation=name)
        return jnp.sum(jnp.sin(out)), out

    grads, outs = {}, {}
    for name in ("reference", implementation):
        run = jax.jit(jax.grad(loss, (1, 2, 3), has_aux=True), static_argnums=0)
        grads[name], outs[name] = run(name, *args)
    np.testing.assert_allclose(outs[implementation], outs["reference"], atol=5e-6)
    for got, want in zip(grads[implementation], grads["reference"], strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5 * float(jnp.abs(want).max()))


def samples(implementation: str, image: list, places: list[tuple[float, float]]) -> np.ndarray:
    """Bilinear samples of a one-channel image, each by a query of its own."""
    pixels = jnp.asarray(image, jnp.float32)
    out = RUN(
        pixels.reshape(1, -1, 1, 1),
        (pixels.shape,),
        jnp.asarray(places, jnp.float32).reshape(1, -1, 1, 1, 1, 2),
        jnp.ones((1, len(places), 1, 1, 1)),
        implementation=implementation,
    )
    return np.asarray(out[0, :, 0])


def test_one_pixel(implementation: str) -> None:
    want = {
        (0.5, 0.5): 4.0,  # the centre of the only pixel
        (0.0, 0.5): 2.0,  # half of the sample lies outside, where all is zero
        (1.0, 1.0): 1.0,
        (1.5, 0.5): 0.0,
        (-9.0, 40.0): 0.0,
        (3e9, -3e9): 0.0,
        (np.inf, 0.5): 0.0,
        (0.5, -np.inf): 0.0,
    }
    got = samples(implementation, [[4.0]], list(want))
    np.testing.assert_allclose(got, list(want.values()), atol=1e-6)


def test_ramp(implementation: str) -> None:
    want = {
        (1 / 8, 0.25): 0.0,
        (3 / 8, 0.25): 1.0,
        (0.25, 0.25): 0.5,
        (7 / 8, 0.75): 13.0,
        (0.75, 0.5): 7.5,  # between columns 2 and 3 and between the rows
        (1.0, 0.75): 6.5,  # half of 13 at the right border
        (-1 / 8, 0.25): 0.0,  # exactly one pixel to the left of the first centre
        (0.5, 1.25): 0.0,
    }
    ramp = [[0.0, 1.0, 2.0, 3.0], [10.0, 11.0, 12.0, 13.0]]
    np.testing.assert_allclose(
        samples(implementation, ramp, list(want)), list(want.values()), atol=1e-5
    )


def test_a_nan_reaches_its_own_query_and_head_alone(implementation: str) -> None:
    shapes, q = ((5, 4), (3, 2)), 9
    rng = np.random.default_rng(3)
    value = jnp.asarray(rng.normal(size=(1, 26, 2, 3)), jnp.float32)
    locations = rng.uniform(size=(1, q, 2, 2, 1, 2)).astype(np.float32)
    weights = rng.uniform(size=(1, q, 2, 2, 1)).astype(np.float32)
    want = RUN(value, shapes, locations, weights, implementation="reference")
    locations[0, 1, 0, 0, 0, 0] = np.nan
    locations[0, 3, 1, 1, 0, 1] = np.nan
    weights[0, 5, 0, 1, 0] = np.nan
    got = RUN(value, shapes, locations, weights, implementation=implementation)
    is_nan = np.isnan(got.reshape(q, 2, 3))
    assert {tuple(i) for i in np.argwhere(is_nan.all(-1))} == {(1, 0), (3, 1), (5, 0)}
    assert is_nan.sum() == 9
    np.testing.assert_allclose(np.where(np.isnan(got), want, got), want, atol=1e-5)


def test_corners_of_all_samples_stay_in_fusions() -> None:
    # What a GPU's compiler fuses with a gather, a sum or a scatter; an operand of a matrix product
    # would be written to memory (`python -m benchmarks.gpu_compile`).
    fused = {"gather", "convert_element_type", "broadcast_in_dim", "reshape", "mul"}
    fused |= {"reduce_sum", "scatter-add"}
    spec = SPECS[0]
    args = make_args(spec)
    grad = jnp.ones((*args[1].shape[:2], spec.heads * spec.channels))

    def both_ways(*args: jax.Array) -> tuple[jax.Array, ...]:
        def run(*args: jax.Array) -> jax.Array:
            return deform_attention(args[0], spec.shapes, *args[1:], implementation="cell_gather")

        return jax.vjp(run, *args)[1](grad)

    corners = spec.batch * args[1].shape[1] * 16 * 4 * spec.channels
    found: set[str] = set()

    def look(jaxpr: jax.extend.core.Jaxpr) -> None:
        for equation in jaxpr.eqns:
            inner = [getattr(x, "jaxpr", x) for x in equation.params.values()]
            inner = [x for x in inner if isinstance(x, jax.extend.core.Jaxpr)]
            for one in inner:
                look(one)
            sizes = [x.aval.size for x in (*equation.invars, *equation.outvars)]
            name = equation.primitive.name
            if (not inner or name == "scatter-add") and max(sizes, default=0) >= corners:
                found.add(name)

    look(jax.make_jaxpr(both_ways)(*args).jaxpr)
    assert {"reduce_sum", "scatter-add"} <= found <= fused


def test_half_precision_keeps_dtype(implementation: str) -> None:
    spec = SPECS[1]
    value, locations, weights = make_args(spec)
    want = RUN(value, spec.shapes, locations, weights, implementation="reference")
    got = RUN(
        value.astype(jnp.bfloat16), spec.shapes, locations, weights, implementation=implementation
    )
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), want, atol=2e-2)


def test_errors_name_the_fix() -> None:
    spec = SPECS[1]
    value, locations, weights = make_args(spec)
    with pytest.raises(
        ConfigError, match="use None or one of reference, corner_gather, cell_gather"
    ):
        deform_attention(value, spec.shapes, locations, weights, implementation="fast")
    with pytest.raises(ShapeError, match="pixels on 4 levels"):
        deform_attention(value[:, :-1], spec.shapes, locations, weights)
