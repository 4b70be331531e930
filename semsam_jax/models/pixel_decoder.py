"""Pixel decoder: deformable encoder over strides 8..64, then one step to stride 4."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from semsam_jax.core.errors import ConfigError
from semsam_jax.core.structs import Pyramid
from semsam_jax.models.deformable import DeformableAttention
from semsam_jax.models.layers import (
    Conv,
    Dense,
    GroupNorm,
    LayerNorm,
    parameter,
    relu,
    scan_layers,
    stacked_params,
    xavier_init,
)
from semsam_jax.models.presets import PixelDecoderConfig
from semsam_jax.ops.positional import sine_grid

# Convolutions start uniform in +-sqrt(3 / fan_in) ("Caffe2 Xavier fill").
_conv_init = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")


def pixel_centres(spatial_shapes: tuple[tuple[int, int], ...]) -> Float[np.ndarray, "s 2"]:
    """Returns (x, y) of all pixels of all levels, as fractions of their level."""
    levels = []
    for height, width in spatial_shapes:
        y = (np.arange(height, dtype=np.float32) + 0.5) / np.float32(height)
        x = (np.arange(width, dtype=np.float32) + 0.5) / np.float32(width)
        grid = np.stack(np.meshgrid(x, y, indexing="xy"), axis=-1)
        levels.append(grid.reshape(-1, 2))
    return np.concatenate(levels).astype(np.float32)


class EncoderLayer(nn.Module):
    """Deformable self-attention and feed-forward, each followed by its norm."""

    num_heads: int
    num_points: int
    feedforward_dim: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b s c"],
        pos: Float[Array, "#b s c"],
        spatial_shapes: tuple[tuple[int, int], ...],
    ) -> tuple[Float[Array, "b s c"], Float[Array, "b s c"]]:
        """Returns the layer's output and, for inspection, what the attention added."""
        # One row for the batch: a constant of all rows would be replicated on every device.
        centres = pixel_centres(spatial_shapes)[None, :, None]
        centres = np.broadcast_to(centres, (1, x.shape[1], len(spatial_shapes), 2))
        attention = DeformableAttention(
            self.num_heads, self.num_points, dtype=self.dtype, name="self_attn"
        )
        y = attention(x + pos, jnp.asarray(centres), x, spatial_shapes)
        x = LayerNorm(dtype=self.dtype, name="norm1")(x + y)
        widen = Dense(
            self.feedforward_dim, dtype=self.dtype, kernel_init=xavier_init, name="linear1"
        )
        narrow = Dense(x.shape[-1], dtype=self.dtype, kernel_init=xavier_init, name="linear2")
        z = narrow(relu(widen(x)))
        return LayerNorm(dtype=self.dtype, name="norm2")(x + z), y


class _Encoder(nn.Module):
    config: PixelDecoderConfig
    dtype: Any
    remat: str

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b s c"],
        pos: Float[Array, "#b s c"],
        spatial_shapes: tuple[tuple[int, int], ...],
    ) -> Float[Array, "b s c"]:
        config = self.config
        layer = EncoderLayer(
            config.num_heads, config.num_points, config.feedforward_dim, self.dtype, parent=None
        )
        params = stacked_params(self, "layers", layer, config.num_layers, x, pos, spatial_shapes)
        is_captured = self.is_mutable_collection("intermediates")
        is_watched = self.is_mutable_collection("statistics") and not self.is_initializing()
        kept = ["statistics"] if is_watched else []

        def body(params: Any, x: Array, _: None) -> tuple[Array, Any]:
            (out, added), said = layer.apply(
                {"params": params}, x, pos, spatial_shapes, mutable=kept
            )
            return out, ((out, added) if is_captured else None, jax.tree.leaves(said))

        x, (outputs, said) = scan_layers(body, params, x, remat=self.remat)
        if is_captured:
            self.sow("intermediates", "layers_out", outputs)
        if is_watched:
            self.sow("statistics", "touched_rows", said[0].mean(0))
        return x


class _ConvNorm(nn.Module):
    """Convolution and group norm."""

    features: int
    kernel_size: int
    groups: int
    strides: int = 1
    use_bias: bool = True
    init: Any = _conv_init
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        x = Conv(
            self.features,
            self.kernel_size,
            self.strides,
            use_bias=self.use_bias,
            dtype=self.dtype,
            kernel_init=self.init,
            name="conv",
        )(x)
        return GroupNorm(self.groups, dtype=self.dtype, name="norm")(x)


class PixelDecoder(nn.Module):
    """Refines the backbone's maps jointly and computes the mask features.

    The original always computes this part in float32; here `dtype` applies.

    Attributes:
        config: sizes.
        dtype: compute dtype; sampling coordinates and norms are float32 in any case.
        remat: key of `layers.REMAT_POLICIES`, for each encoder layer.

    Source: Mask DINO (arXiv 2206.02777) section 3; docs/reference.md, section 3.
    """

    config: PixelDecoderConfig
    dtype: Any = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(self, maps: tuple[Float[Array, "b _h _w _c"], ...]) -> Pyramid:
        """Refines four maps at strides 4, 8, 16 and 32.

        Args:
            maps: backbone maps, high to low resolution.

        Returns:
            Pyramid with levels of strides 8, 16, 32, 64 (those of the configuration) and
            float32 mask features.

        Raises:
            ConfigError: inconsistent numbers of inputs and levels.
        """
        config = self.config
        if not 0 <= config.num_levels - config.num_inputs <= 1 or config.num_inputs > len(maps):
            raise ConfigError(
                f"model.pixel_decoder: got {config.num_inputs} inputs and {config.num_levels} "
                f"levels; expected 1..{len(maps)} inputs, and as many levels or one more."
            )
        inputs = list(maps[-config.num_inputs :])
        # The extra level is computed from the backbone's last map.
        inputs += inputs[-1:] * (config.num_levels - config.num_inputs)
        levels = []
        for i, x in enumerate(inputs):
            is_extra = i == config.num_inputs
            levels.append(
                _ConvNorm(
                    config.dim,
                    kernel_size=3 if is_extra else 1,
                    groups=config.norm_groups,
                    strides=2 if is_extra else 1,
                    init=xavier_init,
                    dtype=self.dtype,
                    name=f"input_proj{i}",
                )(x)
            )
            self.sow("intermediates", f"input_proj{i}_out", levels[-1])
        levels = self._refine(levels)
        return Pyramid(levels=tuple(levels), mask_features=self._to_stride4(maps[0], levels[0]))

    def _refine(self, levels: list[Array]) -> list[Array]:
        """Runs the encoder over all levels as one sequence."""
        b, _, _, c = levels[0].shape
        shapes = tuple((x.shape[1], x.shape[2]) for x in levels)
        sizes = np.asarray([height * width for height, width in shapes])
        embed = parameter(self, "level_embed", nn.initializers.normal(1.0), (len(levels), c))
        pos = jnp.concatenate(
            [sine_grid(*shape, c).reshape(-1, c) + embed[i][None] for i, shape in enumerate(shapes)]
        ).astype(self.dtype)
        x = jnp.concatenate([x.reshape(b, -1, c) for x in levels], axis=1)
        x = _Encoder(self.config, self.dtype, self.remat, name="encoder")(x, pos[None], shapes)
        parts = jnp.split(x, np.cumsum(sizes)[:-1], axis=1)
        return [p.reshape(b, *shape, c) for p, shape in zip(parts, shapes, strict=True)]

    def _to_stride4(
        self, stride4: Float[Array, "b h w c"], finest: Float[Array, "b h2 w2 d"]
    ) -> Float[Array, "b h w m"]:
        """One feature pyramid step from the finest level, then the projection to mask features."""
        config = self.config
        lateral = _ConvNorm(
            config.dim, 1, config.norm_groups, use_bias=False, dtype=self.dtype, name="adapter"
        )(stride4)
        self.sow("intermediates", "adapter_out", lateral)
        b, h, w, _ = stride4.shape
        x = lateral + jax.image.resize(finest, (b, h, w, config.dim), "bilinear")
        x = _ConvNorm(
            config.dim, 3, config.norm_groups, use_bias=False, dtype=self.dtype, name="fpn"
        )(x)
        x = relu(x)
        self.sow("intermediates", "fpn_out", x)
        x = Conv(
            config.mask_dim, 1, dtype=self.dtype, kernel_init=_conv_init, name="mask_features"
        )(x)
        return x.astype(jnp.float32)
