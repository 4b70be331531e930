"""Layers against small independent computations in numpy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semsam_jax.core.errors import ShapeError
from semsam_jax.models.layers import (
    MLP,
    Dense,
    GroupNorm,
    LayerNorm,
    MultiHeadAttention,
    scan_layers,
    stacked_params,
)

RNG = np.random.default_rng(0)


def random_params(module: nn.Module, *args, seed: int = 0) -> dict:
    """Parameters of the module with every leaf random, so that no term can hide."""
    params = module.init(jax.random.key(0), *args)["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.3, x.dtype), params)


def test_layer_norm_has_float32_statistics() -> None:
    x = jnp.asarray(RNG.normal(size=(2, 5, 16)) * 3 + 100, jnp.float32)
    module = LayerNorm(eps=1e-5)
    params = random_params(module, x)
    got = module.apply({"params": params}, x)
    x64 = np.asarray(x, np.float64)
    want = (x64 - x64.mean(-1, keepdims=True)) / np.sqrt(x64.var(-1, keepdims=True) + 1e-5)
    want = want * np.asarray(params["scale"]) + np.asarray(params["bias"])
    np.testing.assert_allclose(got, want, atol=2e-5)
    half = LayerNorm(dtype=jnp.bfloat16).apply({"params": params}, x)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(np.float32), want, atol=2e-2)


def test_group_norm_matches_definition() -> None:
    x = jnp.asarray(RNG.normal(size=(2, 3, 4, 12)) * 2 + 5, jnp.float32)
    module = GroupNorm(groups=4)
    params = random_params(module, x)
    groups = np.asarray(x, np.float64).reshape(2, 12, 4, 3)
    mean, var = groups.mean((1, 3), keepdims=True), groups.var((1, 3), keepdims=True)
    want = ((groups - mean) / np.sqrt(var + 1e-5)).reshape(x.shape)
    want = want * np.asarray(params["scale"]) + np.asarray(params["bias"])
    np.testing.assert_allclose(module.apply({"params": params}, x), want, atol=1e-5)


def test_dense_matches_definition_and_starts_as_flax_does() -> None:
    x = jnp.asarray(RNG.normal(size=(2, 3, 8)), jnp.float32)
    params = random_params(Dense(5), x)
    product = np.asarray(x, np.float64) @ np.asarray(params["kernel"], np.float64)
    want = product + np.asarray(params["bias"])
    np.testing.assert_allclose(Dense(5).apply({"params": params}, x), want, atol=1e-5)
    start, other = (layer.init(jax.random.key(0), x)["params"] for layer in (Dense(5), nn.Dense(5)))
    jax.tree.map(np.testing.assert_array_equal, start, other)
    bare = Dense(5, use_bias=False, dtype=jnp.bfloat16)
    got = bare.apply({"params": {"kernel": params["kernel"]}}, x)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(np.float32), product, atol=5e-2)


def test_a_parameter_of_another_shape_is_named() -> None:
    x = jnp.zeros((2, 8))
    params = Dense(5).init(jax.random.key(0), x)["params"]
    with pytest.raises(ShapeError, match=r"kernel: got shape \(8, 5\); expected \(7, 5\)"):
        Dense(5).apply({"params": params}, x[:, :7])


def test_mlp_names_and_relu() -> None:
    x = jnp.asarray(RNG.normal(size=(3, 8)), jnp.float32)
    module = MLP(hidden=6, features=2, num_layers=3)
    params = random_params(module, x)
    assert sorted(params) == ["layers_0", "layers_1", "layers_2"]
    y = np.asarray(x)
    for i in range(3):
        layer = params[f"layers_{i}"]
        y = y @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])
        y = np.maximum(y, 0) if i < 2 else y
    np.testing.assert_allclose(module.apply({"params": params}, x), y, atol=1e-5)
    zero = MLP(hidden=6, features=2, num_layers=2, zero_last=True)
    np.testing.assert_array_equal(zero.init_with_output(jax.random.key(1), x)[0], 0.0)


@pytest.mark.parametrize("has_pos", [False, True])
@pytest.mark.parametrize("has_mask", [False, True])
def test_attention_matches_numpy(has_pos: bool, has_mask: bool) -> None:
    b, n, c, heads = 2, 5, 8, 2
    x = RNG.normal(size=(b, n, c)).astype(np.float32)
    pos = RNG.normal(size=(b, n, c)).astype(np.float32) if has_pos else None
    blocked = RNG.random((1, n, n)) > 0.6 if has_mask else None
    if has_mask:
        blocked[:, np.arange(n), np.arange(n)] = False
    module = MultiHeadAttention(num_heads=heads)
    args = [None if a is None else jnp.asarray(a) for a in (x, pos, blocked)]
    params = random_params(module, *args)
    kernel, bias = (np.asarray(params["in_proj"][k], np.float64) for k in ("kernel", "bias"))
    qk_in = x if pos is None else x + pos
    want = np.zeros((b, n, c))
    for image in range(b):
        q, k, v = (
            source[image] @ kernel[:, i * c : (i + 1) * c] + bias[i * c : (i + 1) * c]
            for i, source in enumerate((qk_in, qk_in, x))
        )
        for head in range(heads):
            part = slice(head * 4, head * 4 + 4)
            logits = q[:, part] @ k[:, part].T / 2.0
            if has_mask:
                logits = np.where(blocked[0], -np.inf, logits)
            weights = np.exp(logits - logits.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            want[image, :, part] = weights @ v[:, part]
    want = want @ np.asarray(params["out_proj"]["kernel"]) + np.asarray(params["out_proj"]["bias"])
    np.testing.assert_allclose(module.apply({"params": params}, *args), want, atol=1e-5)


class _Stack(nn.Module):
    length: int = 3
    remat: str = "none"

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        layer = nn.Dense(x.shape[-1], parent=None)
        params = stacked_params(self, "layers", layer, self.length, x)

        def body(layer_params: dict, carry: jax.Array, gain: jax.Array) -> tuple:
            y = gain * layer.apply({"params": layer_params}, carry)
            return carry + jnp.tanh(y), y

        gains = jnp.arange(1.0, self.length + 1)
        return scan_layers(body, params, x, gains, remat=self.remat)


def test_stack_equals_a_loop_and_starts_every_layer_differently() -> None:
    x = jax.random.normal(jax.random.key(7), (2, 4))
    params = _Stack().init(jax.random.key(0), x)["params"]
    kernel = np.asarray(params["layers"]["kernel"])
    assert kernel.shape == (3, 4, 4)
    assert np.abs(kernel[0] - kernel[1]).max() > 1e-3
    # As strong a start as a single layer's, so the fan is of one layer, not of the stack.
    single = nn.Dense(4).init(jax.random.key(3), x)["params"]["kernel"]
    assert 0.3 < kernel.std() / np.std(single) < 3
    carry, ys = _Stack().apply({"params": params}, x)
    want, steps = np.asarray(x), []
    for i in range(3):
        steps.append((i + 1) * (want @ kernel[i]))
        want = want + np.tanh(steps[-1])
    np.testing.assert_allclose(carry, want, atol=1e-5)
    np.testing.assert_allclose(ys, np.stack(steps), atol=1e-5)

    def loss(p: dict, remat: str) -> jax.Array:
        return jnp.sum(_Stack(remat=remat).apply({"params": p}, x)[0] ** 2)

    grads = [jax.jit(jax.grad(loss), static_argnums=1)(params, r) for r in ("none", "dots", "full")]
    # Entries are sums of terms as large as the largest entry, so that is the scale of rounding.
    for other in grads[1:]:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * np.abs(a).max()),
            grads[0],
            other,
        )
    shapes = jax.eval_shape(_Stack().init, jax.random.key(0), x)["params"]
    assert shapes["layers"]["kernel"].shape == (3, 4, 4)
