"""The deformable attention module against recorded numbers, in both projection orders."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semsam_jax.convert.torch_reader import read_state_dict
from semsam_jax.core.errors import ConfigError, ShapeError
from semsam_jax.models.deformable import DeformableAttention, cheaper_projection
from tests.golden.table import compare

GOLDEN = Path(__file__).parents[1] / "golden" / "data"
ENCODER = "model.sem_seg_head.pixel_decoder.transformer.encoder.layers.0.self_attn"
DECODER = "model.sem_seg_head.predictor.decoder.layers.0.cross_attn"
NAMES = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")


@pytest.fixture(scope="module")
def units() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "units.npz") as file:
        return {k.split("/")[1]: file[k] for k in file.files if k.startswith("msdeform_module")}


@pytest.fixture(scope="module")
def params() -> dict[str, dict]:
    state = read_state_dict(GOLDEN / "tiny_ref.pth")
    return {
        prefix: {
            name: {
                "kernel": jnp.asarray(state[f"{prefix}.{name}.weight"].T),
                "bias": jnp.asarray(state[f"{prefix}.{name}.bias"]),
            }
            for name in NAMES
        }
        for prefix in (ENCODER, DECODER)
    }


@pytest.mark.parametrize("implementation", ["reference", None])
@pytest.mark.parametrize("project", ["before", "after"])
@pytest.mark.parametrize("kind", ["ref2", "ref4"])
def test_golden(
    units: dict, params: dict, kind: str, project: str, implementation: str | None
) -> None:
    prefix = ENCODER if kind == "ref2" else DECODER
    shapes = tuple((int(h), int(w)) for h, w in units["spatial_shapes"])
    module = DeformableAttention(project=project, implementation=implementation)
    run = jax.jit(lambda p, *args: module.apply({"params": p}, *args, shapes))
    inputs = [jnp.asarray(units[key]) for key in ("query", kind, "memory")]
    (key,) = (key for key in units if key.startswith(f"out_{kind}"))
    compare("units", f"msdeform_module/{key}", run(params[prefix], *inputs), 1e-5)


def test_orders_agree_with_gradients(units: dict, params: dict) -> None:
    shapes = tuple((int(h), int(w)) for h, w in units["spatial_shapes"])
    inputs = [jnp.asarray(units[key]) for key in ("query", "ref4", "memory")]

    def loss(p: dict, inputs: list, project: str) -> jax.Array:
        module = DeformableAttention(project=project)
        return jnp.sum(jnp.sin(module.apply({"params": p}, *inputs, shapes)))

    grads = [
        jax.jit(jax.grad(loss, (0, 1)), static_argnums=2)(params[DECODER], inputs, project)
        for project in ("before", "after")
    ]

    def compare(a: jax.Array, b: jax.Array) -> None:
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, float(jnp.abs(a).max())))

    jax.tree.map(compare, *grads)


def test_choice_follows_the_cost() -> None:
    assert cheaper_projection(6, 11480, 256, 128) == "after"
    assert cheaper_projection(11480, 11480, 256, 128) == "before"
    assert cheaper_projection(6000, 11480, 256, 128) == "before"


def test_start_looks_in_eight_directions() -> None:
    args = (jnp.zeros((1, 2, 64)), jnp.zeros((1, 2, 1, 2)), jnp.zeros((1, 4, 64)), ((2, 2),))
    module = DeformableAttention()
    params = module.init(jax.random.key(0), *args)["params"]
    assert not np.any(params["sampling_offsets"]["kernel"])
    bias = np.asarray(params["sampling_offsets"]["bias"]).reshape(8, 1, 4, 2)
    np.testing.assert_allclose(bias[0, 0], [[1, 0], [2, 0], [3, 0], [4, 0]], atol=1e-6)
    np.testing.assert_allclose(bias[3, 0, 1], [-2, 2], atol=1e-6)


def test_errors_name_the_fix() -> None:
    query, memory, shapes = jnp.zeros((1, 2, 64)), jnp.zeros((1, 4, 64)), ((2, 2),)
    key = jax.random.key(0)
    with pytest.raises(ShapeError, match=r"give \(x, y\) points"):
        DeformableAttention().init(key, query, jnp.zeros((1, 2, 1, 3)), memory, shapes)
    module = DeformableAttention(project="never")
    with pytest.raises(ConfigError, match="None, 'before' or 'after'"):
        module.init(key, query, jnp.zeros((1, 2, 1, 2)), memory, shapes)
