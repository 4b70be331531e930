"""EfficientNet-Lite backbones: small, plain convolutions, four maps at strides 4..32.

Batch statistics are frozen and folded into the convolutions, so every layer is a
convolution with a bias. Padding follows TensorFlow's SAME rule, as the weights expect.
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from semsam_jax.core.backend import target_backend
from semsam_jax.models.layers import REMAT_POLICIES, Dense, parameter
from semsam_jax.models.presets import EfficientNetLiteConfig
from semsam_jax.ops.positional import wave_grid


class BlockSpec(NamedTuple):
    """Sizes of one inverted residual block."""

    kernel_size: int
    stride: int
    expansion: int
    features: int


_STAGES = (  # (repeats, first block of the stage) of Lite0
    (1, BlockSpec(3, 1, 1, 16)),
    (2, BlockSpec(3, 2, 6, 24)),
    (2, BlockSpec(5, 2, 6, 40)),
    (3, BlockSpec(3, 2, 6, 80)),
    (3, BlockSpec(5, 1, 6, 112)),
    (4, BlockSpec(5, 2, 6, 192)),
    (1, BlockSpec(3, 1, 6, 320)),
)
# Factors on channels and repeats of each variant.
_SCALES = {"lite0": (1.0, 1.0), "lite2": (1.1, 1.2)}
STEM_FEATURES = 32
# Root mean square of the four maps of an image with the ImageNet weights.
_TYPICAL_RMS = {"lite0": (9.1, 7.9, 6.5, 2.6), "lite2": (9.7, 8.1, 6.5, 2.4)}
_POSITION_GAIN = 1.5

_init = nn.initializers.he_normal()


def blocks(variant: str) -> tuple[BlockSpec, ...]:
    """All blocks of a variant, in order.

    Channels are scaled and rounded to multiples of 8, repeats are scaled and rounded up, except
    those of the first and the last stage; the stem is not scaled.

    Source: EfficientNet-Lite of the TPU model garden; arXiv 1905.11946 for the rule.
    """
    width, depth = _SCALES[variant]
    specs = []
    for index, (repeats, spec) in enumerate(_STAGES):
        is_fixed = index in (0, len(_STAGES) - 1)
        count = repeats if is_fixed else math.ceil(repeats * depth)
        spec = spec._replace(features=_multiple_of_8(spec.features * width))
        specs += [spec] + [spec._replace(stride=1)] * (count - 1)
    return tuple(specs)


def _multiple_of_8(channels: float) -> int:
    """The nearest multiple of 8 that is at most a tenth smaller."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


def _last_of_each_stride(specs: tuple[BlockSpec, ...]) -> tuple[int, ...]:
    """Indices of the last blocks at strides 4, 8, 16 and 32."""
    starts = [i for i, spec in enumerate(specs) if spec.stride == 2]
    return (*(start - 1 for start in starts[1:]), len(specs) - 1)


def depthwise(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k c"], stride: int
) -> Float[Array, "b h2 w2 c"]:
    """Convolves each channel with its own kernel, SAME padding.

    A sum of shifted products: XLA turns it into one loop over the output, which on a CPU
    is many times faster than a grouped convolution. Other runtimes have a loop of their own.
    """
    if target_backend() == "onnx":
        channels = x.shape[-1]
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x,
            kernel[:, :, None],
            (stride, stride),
            "SAME",
            dimension_numbers=layout,
            feature_group_count=channels,
        )
    size = kernel.shape[0]
    pads, outs = [], []
    for length in x.shape[1:3]:
        out = -(-length // stride)
        total = max((out - 1) * stride + size - length, 0)
        # The last slice must reach past the end even where no padding is needed.
        pads.append((total // 2, total - total // 2 + stride - 1))
        outs.append(out)
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    y = jnp.zeros((), x.dtype)
    for i in range(size):
        for j in range(size):
            rows, columns = i + stride * outs[0], j + stride * outs[1]
            part = x[:, i:rows:stride, j:columns:stride]
            y = y + part * kernel[i, j][None, None, None]
    return y


class _Depthwise(nn.Module):
    kernel_size: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        c, size = x.shape[-1], self.kernel_size
        # [kh, kw, 1, c] is the layout of a grouped convolution in the parameter tree.
        kernel = parameter(self, "kernel", _init, (size, size, 1, c))
        bias = parameter(self, "bias", nn.initializers.zeros, (c,))
        y = depthwise(x, kernel[:, :, 0].astype(self.dtype), self.stride)
        return y + bias.astype(self.dtype)[None, None, None]


class _Block(nn.Module):
    """Expand, convolve each channel, project; residual where shapes agree."""

    spec: BlockSpec
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        spec, c = self.spec, x.shape[-1]
        y = x
        if spec.expansion > 1:
            expand = Dense(c * spec.expansion, dtype=self.dtype, kernel_init=_init, name="expand")
            y = nn.relu6(expand(y))
        y = _Depthwise(spec.kernel_size, spec.stride, self.dtype, name="depthwise")(y)
        y = nn.relu6(y)
        y = Dense(spec.features, dtype=self.dtype, kernel_init=_init, name="project")(y)
        return x + y if spec.stride == 1 and c == spec.features else y


class EfficientNetLite(nn.Module):
    """The backbone.

    Attributes:
        config: whether it is trained; if not, gradients stop at its maps.
        dtype: compute dtype.
        remat: key of `layers.REMAT_POLICIES`, for each block.

    Source: EfficientNet (arXiv 1905.11946) and its Lite variants: ReLU6, no
    squeeze-excite, stem and head not scaled.
    """

    config: EfficientNetLiteConfig = EfficientNetLiteConfig()
    dtype: Any = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(
        self,
        image: Float[Array, "b h w 3"],
        *,
        train: bool = False,
        draw: Int[Array, " b"] | None = None,
    ) -> tuple[Float[Array, "b _h _w _c"], ...]:
        """Extracts features.

        Args:
            image: (pixels - 127) / 128, any size.
            train: no effect, statistics are frozen; part of the backbones' common interface.
            draw: no effect, nothing is random.

        Returns:
            Maps at strides 4, 8, 16, 32 with `config.channels` channels, the last
            `config.position_channels` of which are waves of the position.
        """
        del train, draw
        conv = nn.Conv(
            STEM_FEATURES, (3, 3), strides=2, dtype=self.dtype, kernel_init=_init, name="stem"
        )
        x = nn.relu6(conv(image.astype(self.dtype)))
        maps, block = [], _Block
        if self.remat != "none":
            block = nn.remat(_Block, policy=REMAT_POLICIES[self.remat])
        specs = blocks(self.config.variant)
        outputs = _last_of_each_stride(specs)
        for i, spec in enumerate(specs):
            x = block(spec, self.dtype, name=f"block{i}")(x)
            if i in outputs:
                maps.append(x)
        if not self.config.is_trained:
            maps = [jax.lax.stop_gradient(x) for x in maps]
        sizes = _TYPICAL_RMS[self.config.variant]
        return tuple(self._with_positions(x, size) for x, size in zip(maps, sizes, strict=True))

    def _with_positions(self, x: Float[Array, "b h w c"], size: float) -> Float[Array, "b h w c2"]:
        b, h, w, _ = x.shape
        # Scaled like the features, so that the following projection can use the position.
        waves = _POSITION_GAIN * size * wave_grid(h, w, self.config.position_channels)
        waves = jnp.asarray(waves, x.dtype)
        return jnp.concatenate([x, jnp.broadcast_to(waves, (b, *waves.shape))], axis=-1)
