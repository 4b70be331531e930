"""Building blocks shared by every network: norms, MLP, attention, scanned stacks.

Parameters are float32; modules compute in `dtype`. Norm and softmax statistics are
always float32.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from semsam_jax.core.errors import ShapeError
from semsam_jax.ops.convolution import convolve, embed_patches

# Uniform in +-1/sqrt(fan_in), the usual initialisation of a linear layer.
linear_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
xavier_init = nn.initializers.xavier_uniform()

REMAT_POLICIES = {
    "none": jax.checkpoint_policies.everything_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}
"""What a layer keeps for its backward pass: everything, the results of its linear layers, or
only its input. The rest is recomputed."""


@jax.custom_vjp
def relu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """max(x, 0) whose residual is only the sign of each number.

    `jax.nn.relu` also keeps zeros of the shape of `x`, a constant that would be replicated on every
    device for the global batch.
    """
    return jnp.maximum(x, 0)


def _relu_forward(x: Array) -> tuple[Array, Array]:
    return relu(x), x > 0


def _relu_backward(is_positive: Array, gradient: Array) -> tuple[Array]:
    return (jnp.where(is_positive, gradient, 0),)


relu.defvjp(_relu_forward, _relu_backward)


def _broadcast(vector: Float[Array, " c"], ndim: int) -> Float[Array, "..."]:
    return vector.reshape((1,) * (ndim - 1) + (-1,))


def parameter(
    module: nn.Module, name: str, init: nn.initializers.Initializer, shape: tuple[int, ...]
) -> Float[Array, "..."]:
    """A float32 parameter of a module, by name.

    Like `module.param`, which traces `init` at every call to compare shapes: a third of the time to
    trace a network.

    Raises:
        ShapeError: the parameter that was given has another shape.
    """
    if not module.has_variable("params", name):
        return module.param(name, init, shape, jnp.float32)
    value = module.get_variable("params", name)
    if jnp.shape(value) != shape:
        where = "/".join((*module.path, name))
        raise ShapeError(f"parameter {where}: got shape {jnp.shape(value)}; expected {shape}.")
    return value


class Dense(nn.Module):
    """A linear layer on the last axis.

    Attributes:
        features: channels out.
        use_bias: whether a bias is added.
        kernel_init: initialiser of the kernel [in, out].
        bias_init: initialiser of the bias [out].
        dtype: compute dtype.
        precision: of the product; None takes the backend's default, which rounds the factors of a
            float32 product to bfloat16 (TPU) or TF32 (GPU).
    """

    features: int
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    bias_init: nn.initializers.Initializer = nn.initializers.zeros
    dtype: Any = jnp.float32
    precision: jax.lax.Precision | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "*n c"]) -> Float[Array, "*n d"]:
        """Multiplies, then adds the bias."""
        kernel = parameter(self, "kernel", self.kernel_init, (x.shape[-1], self.features))
        y = jnp.matmul(x.astype(self.dtype), kernel.astype(self.dtype), precision=self.precision)
        if not self.use_bias:
            return y
        bias = parameter(self, "bias", self.bias_init, (self.features,))
        return y + _broadcast(bias.astype(self.dtype), y.ndim)


class Conv(nn.Module):
    """Convolution with k // 2 zeros of padding on every side (`ops.convolution`).

    Attributes:
        features: channels out.
        kernel_size: k, odd.
        stride: of both axes.
        use_bias: whether a bias is added.
        kernel_init: initialiser of the kernel [k, k, in, out].
        dtype: compute dtype.
    """

    features: int
    kernel_size: int
    stride: int = 1
    use_bias: bool = True
    kernel_init: Any = nn.initializers.lecun_normal()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        """Convolves, then adds the bias."""
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = parameter(self, "kernel", self.kernel_init, shape)
        y = convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride)
        if not self.use_bias:
            return y
        bias = parameter(self, "bias", nn.initializers.zeros, (self.features,))
        return y + _broadcast(bias.astype(self.dtype), y.ndim)


class PatchProjection(nn.Module):
    """A linear layer on adjacent k x k patches.

    The bias is initialised randomly, as in PyTorch's convolution: with a zero bias, the padding of
    an image would reach the layer norms as zero vectors, each of which multiplies the gradient by
    1/sqrt(eps), and in a deep backbone float32 overflows.

    Attributes:
        features: channels out.
        patch_size: k; divides both sides of the input.
        dtype: compute dtype.
    """

    features: int
    patch_size: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        """Projects every patch, then adds the bias."""
        shape = (self.patch_size, self.patch_size, image.shape[-1], self.features)
        kernel = parameter(self, "kernel", linear_init, shape)
        bound = math.prod(shape[:-1]) ** -0.5

        def start(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        bias = parameter(self, "bias", start, (self.features,))
        y = embed_patches(image.astype(self.dtype), kernel.astype(self.dtype))
        return y + _broadcast(bias.astype(self.dtype), y.ndim)


class LayerNorm(nn.Module):
    """Layer norm over the last axis, float32 inside, returned in `dtype`."""

    eps: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... c"]) -> Float[Array, "... c"]:
        """Normalises each vector of `x`."""
        channels = x.shape[-1]
        scale = parameter(self, "scale", nn.initializers.ones, (channels,))
        bias = parameter(self, "bias", nn.initializers.zeros, (channels,))
        x = x.astype(jnp.float32)
        x = x - x.mean(-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.eps)
        x = x * _broadcast(scale, x.ndim) + _broadcast(bias, x.ndim)
        return x.astype(self.dtype)


class GroupNorm(nn.Module):
    """Group norm of [b, h, w, c] over pixels and c/groups channels, float32 inside."""

    groups: int = 32
    eps: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Normalises each group of channels of each image."""
        b, _, _, c = x.shape
        scale = parameter(self, "scale", nn.initializers.ones, (c,))
        bias = parameter(self, "bias", nn.initializers.zeros, (c,))
        x = x.astype(jnp.float32)

        def group_mean(y: Float[Array, "b h w c"]) -> Float[Array, "b 1 1 c"]:
            # Pixels first: the reduction then runs over whole contiguous channel rows.
            mean = y.mean((1, 2)).reshape(b, self.groups, -1).mean(-1)
            return jnp.repeat(mean, c // self.groups, axis=-1)[:, None, None, :]

        x = x - group_mean(x)
        gain = jax.lax.rsqrt(group_mean(jnp.square(x)) + self.eps) * _broadcast(scale, 4)
        return (x * gain + _broadcast(bias, 4)).astype(self.dtype)


class MLP(nn.Module):
    """`num_layers` linear layers with ReLU between them, named layers_0, layers_1, ...

    Attributes:
        hidden: width of all layers but the last.
        features: width of the last layer.
        num_layers: number of linear layers.
        zero_last: starts the last kernel at zero (box refinement starts at identity).
        dtype: compute dtype.
        precision: see `Dense`.
    """

    hidden: int
    features: int
    num_layers: int
    zero_last: bool = False
    dtype: Any = jnp.float32
    precision: jax.lax.Precision | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "... c"]) -> Float[Array, "... d"]:
        """Applies the layers; no activation after the last."""
        for i in range(self.num_layers):
            is_last = i == self.num_layers - 1
            x = Dense(
                self.features if is_last else self.hidden,
                dtype=self.dtype,
                precision=self.precision,
                kernel_init=nn.initializers.zeros if is_last and self.zero_last else linear_init,
                name=f"layers_{i}",
            )(x)
            x = x if is_last else relu(x)
        return x


class DenseParams(nn.Module):
    """Kernel [inputs, features] and bias of a linear layer that the parent applies."""

    inputs: int
    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self) -> tuple[Float[Array, "i o"], Float[Array, " o"]]:
        """Returns kernel and bias in `dtype`."""
        kernel = parameter(self, "kernel", xavier_init, (self.inputs, self.features))
        bias = parameter(self, "bias", nn.initializers.zeros, (self.features,))
        return kernel.astype(self.dtype), bias.astype(self.dtype)


class MultiHeadAttention(nn.Module):
    """Self-attention whose position is added to queries and keys, not to values."""

    num_heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n c"],
        pos: Float[Array, "b n c"] | None = None,
        blocked: Bool[Array, "#b n m"] | None = None,
        others: tuple[Float[Array, "b o c"], Float[Array, "b o c"]] | None = None,
    ) -> Float[Array, "b n c"]:
        """Attends within each row of the batch.

        Args:
            x: tokens; values are computed from them without positions.
            pos: added to the tokens before the query and key projections.
            blocked: [.., query, key], True where attention is masked. A query with all keys masked
                gets the mean of all values.
            others: tokens and positions that are attended to as well, with `pos`; they are the
                first keys.

        Returns:
            The attended tokens after the output projection, without residual.
        """
        b, n, c = x.shape
        if others is not None:
            x, pos = (jnp.concatenate(pair, axis=1) for pair in zip(others, (x, pos), strict=True))
        # Queries, keys and values, in this order.
        kernel, bias = DenseParams(c, 3 * c, self.dtype, name="in_proj")()
        x = x.astype(self.dtype)
        if pos is None:
            q, k, v = jnp.split(x @ kernel + _broadcast(bias, 3), 3, axis=-1)
        else:
            qk = (x + pos.astype(self.dtype)) @ kernel[:, : 2 * c] + _broadcast(bias[: 2 * c], 3)
            q, k = jnp.split(qk, 2, axis=-1)
            v = x @ kernel[:, 2 * c :] + _broadcast(bias[2 * c :], 3)
        q, k, v = (y.reshape(b, -1, self.num_heads, c // self.num_heads) for y in (q, k, v))
        q = q if others is None else q[:, -n:]
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
        logits = logits * (c // self.num_heads) ** -0.5
        if blocked is not None:
            logits = jnp.where(blocked[:, None], jnp.finfo(jnp.float32).min, logits)
        weights = jax.nn.softmax(logits, axis=-1).astype(self.dtype)
        out = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(b, n, c)
        return Dense(c, dtype=self.dtype, kernel_init=linear_init, name="out_proj")(out)


def stacked_params(parent: nn.Module, name: str, layer: nn.Module, length: int, *args: Any) -> Any:
    """Declares the parameters of `length` equal layers as one tree of stacked leaves.

    Call it inside a compact method of `parent`. Each layer is initialised with its own key.

    Args:
        parent: module that owns the parameters, under `name`.
        name: name of the stack in the parameter tree.
        layer: one layer, made with `parent=None`; its init may use only parameters.
        length: number of layers.
        *args: example inputs of the layer; of arrays only shapes and dtypes are read,
            plain numbers (as in static shapes) are passed on.

    Returns:
        The layer's parameter tree with a leading axis `length` on every leaf.
    """
    if parent.has_variable("params", name):
        return parent.get_variable("params", name)  # `param` would trace `init` for its shapes

    def abstract(x: Any) -> Any:
        return jax.ShapeDtypeStruct(x.shape, x.dtype) if hasattr(x, "shape") else x

    shapes = jax.tree.map(abstract, args)

    def init(key: Array) -> Any:
        keys = jax.random.split(key, length)
        return jax.vmap(lambda k: layer.lazy_init(k, *shapes)["params"])(keys)

    return parent.param(name, init)


def scan_layers(
    body: Callable[[Any, Any, Any], tuple[Any, Any]],
    params: Any,
    carry: Any,
    xs: Any = None,
    *,
    remat: str = "none",
    unroll: int | bool = 1,
) -> tuple[Any, Any]:
    """Runs stacked layers one after the other with `jax.lax.scan`.

    Args:
        body: `(layer_params, carry, x) -> (carry, y)`; calls `layer.apply`, and closes over what
            all layers share.
        params: tree from `stacked_params`.
        carry: input of the first layer.
        xs: optional tree of per-layer inputs (keys, drop rates), leading axis = layers.
        remat: key of `REMAT_POLICIES`.
        unroll: as in `jax.lax.scan`.

    Returns:
        The last carry and the stacked `y` of all layers.
    """

    def step(carry: Any, inputs: tuple[Any, Any]) -> tuple[Any, Any]:
        return body(inputs[0], carry, inputs[1])

    # Inside a scan nothing can be merged with the forward pass, so the barriers that
    # keep XLA from undoing the recomputation are not needed.
    if remat != "none":
        step = jax.checkpoint(step, prevent_cse=False, policy=REMAT_POLICIES[remat])
    return jax.lax.scan(step, carry, (params, xs), unroll=unroll)
