"""Convolution, with formulations that are fast on CPUs."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from semsam_jax.core.backend import target_backend

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def convolve(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k c d"], stride: int = 1
) -> Float[Array, "b h2 w2 d"]:
    """Convolves with k // 2 zeros of padding on every side, k odd.

    A 1x1 kernel is a matrix product. On a CPU the gradient of a larger kernel is one matrix product
    per kernel pixel; XLA would convolve with a kernel as large as the map.
    """
    if kernel.shape[0] == 1:
        return x[:, ::stride, ::stride] @ kernel[0, 0]
    if target_backend() == "cpu":
        return _with_products(x, kernel, stride)
    return _native(x, kernel, stride)


def embed_patches(
    image: Float[Array, "b h w c"], kernel: Float[Array, "k k c d"]
) -> Float[Array, "b h2 w2 d"]:
    """Convolves with stride k and no padding: a product on patches; k divides h and w."""
    size, _, channels, features = kernel.shape
    b, h, w, _ = image.shape
    patches = image.reshape(b, h // size, size, w // size, size, channels)
    patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // size, w // size, -1)
    return patches @ kernel.reshape(-1, features)


def _native(x: Array, kernel: Array, stride: int) -> Array:
    pad = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), [(pad, pad)] * 2, dimension_numbers=_LAYOUT
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _with_products(x: Array, kernel: Array, stride: int) -> Array:
    return _native(x, kernel, stride)


def _forward(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    return _native(x, kernel, stride), (x, kernel)


def _backward(stride: int, saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, kernel = saved
    _, vjp_fn = jax.vjp(lambda x: _native(x, kernel, stride), x)
    (grad_x,) = vjp_fn(grad)
    size, pad = kernel.shape[0], kernel.shape[0] // 2
    _, height, width, depth = grad.shape
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    flat = grad.reshape(-1, depth)
    columns = [
        padded[:, i : i + stride * height : stride, j : j + stride * width : stride]
        for i in range(size)
        for j in range(size)
    ]
    grad_kernel = jnp.stack([column.reshape(-1, x.shape[-1]).T @ flat for column in columns])
    return grad_x, grad_kernel.reshape(kernel.shape)


_with_products.defvjp(_forward, _backward)
