"""Swin transformer backbone: four maps at strides 4, 8, 16 and 32.

Blocks come in pairs, one with regular and one with shifted windows. A stage scans over its pairs,
so the program does not grow with the depth; an odd block, `last`, follows them.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from semsam_jax.core.backend import target_backend
from semsam_jax.models.layers import (
    REMAT_POLICIES,
    Dense,
    LayerNorm,
    PatchProjection,
    parameter,
    scan_layers,
    stacked_params,
)
from semsam_jax.models.presets import SwinConfig
from semsam_jax.ops.windows import (
    from_windows,
    padded_size,
    relative_position_index,
    shifted_window_regions,
    to_windows,
)

# What the original adds to logits between regions; finite, so it only nearly blocks.
_BLOCKED_LOGIT = -100.0
_PATCH = 4
_SQRT_HALF = math.sqrt(0.5)

_init = nn.initializers.truncated_normal(0.02)


def drop_path_scales(key: Array, rates: np.ndarray, batch: int) -> Float[Array, "r b"]:
    """Draws the factor of each residual branch of each image: 0 or 1/(1-rate).

    Args:
        key: random key.
        rates: [r] probability of dropping each branch.
        batch: number of images.
    """
    keep = 1.0 - jnp.asarray(rates, jnp.float32)[:, None]
    return jax.random.bernoulli(key, keep, (len(rates), batch)) / keep


class WindowAttention(nn.Module):
    """Self-attention inside windows, with a learned bias for every relative offset."""

    num_heads: int
    window: int
    shift: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Attends in each window of a map of any size.

        The map is padded with zeros to whole windows; padding is attended to as ordinary keys
        (docs/reference.md, section 2).
        """
        b, height, width, c = x.shape
        heads = self.num_heads
        rows, columns = (padded_size(size, self.window) for size in (height, width))
        x = jnp.pad(x, ((0, 0), (0, rows - height), (0, columns - width), (0, 0)))
        if self.shift:
            x = jnp.roll(x, (-self.shift, -self.shift), axis=(1, 2))
        x = to_windows(x, self.window)
        m = x.shape[1]
        # A TPU's compiler copies less if all images' windows are on one axis (docs/benchmarks.md).
        batch = (len(x),) if target_backend() == "tpu" else (b, len(x) // b)
        x = x.reshape(*batch, m, c)
        qkv = Dense(3 * c, dtype=self.dtype, kernel_init=_init, name="qkv")(x)
        q, k, v = (y.reshape(*batch, m, heads, c // heads) for y in jnp.split(qkv, 3, axis=-1))
        logits = jnp.einsum("...qhd,...khd->...hqk", q * (c // heads) ** -0.5, k)
        logits = logits.astype(jnp.float32) + self._bias().reshape(*(1,) * len(batch), heads, m, m)
        if self.shift:
            region = shifted_window_regions(rows, columns, self.window, self.shift)
            # Compared by the program: the mask as a constant would be as large as the logits.
            is_blocked = jnp.asarray(region)[:, :, None] != jnp.asarray(region)[:, None, :]
            blocked = jnp.where(is_blocked, _BLOCKED_LOGIT, 0.0)
            blocked = jnp.broadcast_to(blocked, (b, *blocked.shape))
            logits = logits + blocked.reshape(*batch, 1, m, m)
        weights = jax.nn.softmax(logits, axis=-1).astype(self.dtype)
        x = jnp.einsum("...hqk,...khd->...qhd", weights, v).reshape(*batch, m, c)
        x = Dense(c, dtype=self.dtype, kernel_init=_init, name="proj")(x)
        x = from_windows(x.reshape(-1, m, c), self.window, rows, columns)
        if self.shift:
            x = jnp.roll(x, (self.shift, self.shift), axis=(1, 2))
        return x[:, :height, :width]

    def _bias(self) -> Float[Array, "heads m m"]:
        shape = ((2 * self.window - 1) ** 2, self.num_heads)
        table = parameter(self, "relative_position_bias_table", _init, shape)
        return table[relative_position_index(self.window)].transpose(2, 0, 1)


def _gelu(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Exact GELU by `erf`, in float32. `jax.nn.gelu` takes `erfc`, which has two branches: by the
    compiler's estimate for a v5e, two blocks of 256 x 256 pixels take a tenth longer with it.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1.0 + jax.lax.erf(wide * _SQRT_HALF))).astype(x.dtype)


class _FeedForward(nn.Module):
    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        c = x.shape[-1]
        x = Dense(self.features, dtype=self.dtype, kernel_init=_init, name="fc1")(x)
        x = _gelu(x)
        return Dense(c, dtype=self.dtype, kernel_init=_init, name="fc2")(x)


class SwinBlock(nn.Module):
    """Window attention and MLP, each after a norm and around a residual."""

    num_heads: int
    window: int
    shift: int
    mlp_ratio: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], scales: Float[Array, "2 b"] | None = None
    ) -> Float[Array, "b h w c"]:
        """`scales` multiplies the two branches of each image (drop path)."""
        y = LayerNorm(dtype=self.dtype, name="norm1")(x)
        y = WindowAttention(self.num_heads, self.window, self.shift, self.dtype, name="attn")(y)
        x = x + _scaled(y, scales, 0)
        y = LayerNorm(dtype=self.dtype, name="norm2")(x)
        y = _FeedForward(int(x.shape[-1] * self.mlp_ratio), self.dtype, name="mlp")(y)
        return x + _scaled(y, scales, 1)


def _scaled(
    y: Float[Array, "b h w c"], scales: Float[Array, "2 b"] | None, branch: int
) -> Float[Array, "b h w c"]:
    return y if scales is None else y * scales[branch].astype(y.dtype)[:, None, None, None]


class _BlockPair(nn.Module):
    num_heads: int
    config: SwinConfig
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], scales: Float[Array, "4 b"] | None = None
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"]]:
        window, outputs = self.config.window_size, []
        for i, (name, shift) in enumerate((("regular", 0), ("shifted", window // 2))):
            block = SwinBlock(
                self.num_heads, window, shift, self.config.mlp_ratio, self.dtype, name=name
            )
            x = block(x, None if scales is None else scales[2 * i : 2 * i + 2])
            outputs.append(x)
        return tuple(outputs)


class PatchMerging(nn.Module):
    """Halves a map (odd sides are padded by one) and doubles its channels."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        """Joins each 2x2 neighbourhood column by column, norms and projects it."""
        b, h, w, c = x.shape
        x = jnp.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)))
        x = x.reshape(b, (h + 1) // 2, 2, (w + 1) // 2, 2, c)
        x = x.transpose(0, 1, 3, 4, 2, 5).reshape(b, (h + 1) // 2, (w + 1) // 2, 4 * c)
        x = LayerNorm(dtype=self.dtype, name="norm")(x)
        dense = Dense(2 * c, use_bias=False, dtype=self.dtype, kernel_init=_init, name="reduction")
        return dense(x)


class _Stage(nn.Module):
    num_heads: int
    depth: int
    has_downsample: bool
    config: SwinConfig
    dtype: Any
    remat: str

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], scales: Float[Array, "r b"] | None
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b h2 w2 c2"] | None]:
        """Returns the map of this stage and the input of the next."""
        if self.depth > 1:
            x = self._pairs(x, None if scales is None else scales[: self.depth // 2 * 4])
        if self.depth % 2:
            config = self.config
            block = SwinBlock
            if self.remat != "none":
                block = nn.remat(SwinBlock, policy=REMAT_POLICIES[self.remat])
            last = block(
                self.num_heads, config.window_size, 0, config.mlp_ratio, self.dtype, name="last"
            )
            x = last(x, None if scales is None else scales[-2:])
            self.sow("intermediates", "last_block", x)
        if not self.has_downsample:
            return x, None
        return x, PatchMerging(self.dtype, name="downsample")(x)

    def _pairs(
        self, x: Float[Array, "b h w c"], scales: Float[Array, "r b"] | None
    ) -> Float[Array, "b h w c"]:
        pairs = self.depth // 2
        pair = _BlockPair(self.num_heads, self.config, self.dtype, parent=None)
        params = stacked_params(self, "pairs", pair, pairs, x)
        is_captured = self.is_mutable_collection("intermediates")

        def body(params: Any, x: Array, scales: Array | None) -> tuple[Array, Any]:
            outputs = pair.apply({"params": params}, x, scales)
            return outputs[-1], outputs if is_captured else None

        if scales is not None:
            scales = scales.reshape(pairs, 4, -1)
        x, outputs = scan_layers(body, params, x, scales, remat=self.remat)
        if is_captured:
            self.sow("intermediates", "blocks", outputs)
        return x


class _PatchEmbed(nn.Module):
    features: int
    dtype: Any

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b h4 w4 c"]:
        _, h, w, _ = image.shape
        image = jnp.pad(image, ((0, 0), (0, -h % _PATCH), (0, -w % _PATCH), (0, 0)))
        return LayerNorm(dtype=self.dtype, name="norm")(
            PatchProjection(self.features, _PATCH, dtype=self.dtype, name="proj")(image)
        )


class Swin(nn.Module):
    """The backbone.

    Attributes:
        config: sizes.
        dtype: compute dtype.
        remat: key of `layers.REMAT_POLICIES`, for each pair of blocks.

    Source: Swin (arXiv 2103.14030); docs/reference.md, section 2.
    """

    config: SwinConfig
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
            image: normalised pixels, any size.
            train: drop residual branches; needs the rng stream "drop_path".
            draw: which of the b random draws each image gets, by default its own position.

        Returns:
            Normed maps at strides 4, 8, 16, 32 (sides rounded up).
        """
        config = self.config
        scales = None
        if train and config.drop_path_rate > 0:
            rates = np.linspace(0, config.drop_path_rate, sum(config.depths)).repeat(2)
            scales = drop_path_scales(self.make_rng("drop_path"), rates, image.shape[0])
            scales = scales if draw is None else scales[:, draw]
        x = _PatchEmbed(config.embed_dim, self.dtype, name="patch_embed")(image)
        self.sow("intermediates", "patch_embed_out", x)
        maps, start = [], 0
        for i, depth in enumerate(config.depths):
            stage = _Stage(
                config.num_heads[i],
                depth,
                i < len(config.depths) - 1,
                config,
                self.dtype,
                self.remat,
                name=f"stage{i}",
            )
            branches = slice(2 * start, 2 * (start + depth))
            out, x = stage(x, None if scales is None else scales[branches])
            self.sow("intermediates", f"downsample{i}_out", x)
            maps.append(LayerNorm(dtype=self.dtype, name=f"out_norm{i}")(out))
            start += depth
        return tuple(maps)
