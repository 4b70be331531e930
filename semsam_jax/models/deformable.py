"""The deformable attention module of the pixel decoder and of the decoder."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from semsam_jax.core.backend import target_backend
from semsam_jax.core.errors import ConfigError, ShapeError
from semsam_jax.models.layers import Dense, DenseParams, xavier_init
from semsam_jax.ops.deform_attention import deform_attention, inside_weight, touched_rows

# Cost of gathering one number, in multiply-adds of a matrix product.
_GATHER_PRICE = {"cpu": 8, "gpu": 32, "tpu": 128}


def direction_init(num_heads: int, num_levels: int, num_points: int) -> nn.initializers.Initializer:
    """Bias that sends head i in direction 2*pi*i/heads, point j by j + 1 pixels."""

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        del key
        angles = np.arange(num_heads) * (2 * math.pi / num_heads)
        directions = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
        directions /= np.abs(directions).max(-1, keepdims=True)
        steps = np.arange(1, num_points + 1)
        bias = directions[:, None, None, :] * steps[None, None, :, None]
        bias = np.broadcast_to(bias, (num_heads, num_levels, num_points, 2))
        return jnp.asarray(bias.reshape(shape), dtype)

    return init


def cheaper_projection(num_queries: int, num_pixels: int, dim: int, samples: int) -> str:
    """Returns when to apply the value projection: "before" or "after" sampling.

    Before: every pixel is projected, and each head reads dim/heads numbers a corner.
    After: each head reads all dim numbers of the raw memory; only queries are projected.

    Args:
        num_queries: queries per image.
        num_pixels: rows of the memory.
        dim: channels.
        samples: heads x levels x points.
    """
    price = _GATHER_PRICE.get(target_backend(), 32)
    extra_reads = num_queries * samples * 4 * dim * price
    saved_products = (num_pixels - num_queries) * dim * dim
    return "after" if extra_reads < saved_products else "before"


class DeformableAttention(nn.Module):
    """Each query samples a few learned locations of every level.

    Attributes:
        num_heads: heads; divides the channels.
        num_points: samples per head and level.
        project: when the value projection happens, see `cheaper_projection`; None takes
            the cheaper. Sampling is linear, so both give the same result.
        implementation: of `ops.deform_attention`, None for the backend's own.
        dtype: compute dtype; coordinates and softmax are float32.

    Source: Deformable DETR (arXiv 2010.04159) section 4.1; docs/reference.md, section 4.
    """

    num_heads: int = 8
    num_points: int = 4
    project: str | None = None
    implementation: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        query: Float[Array, "b q c"],
        reference: Float[Array, "#b q L r"],
        memory: Float[Array, "b s c"],
        spatial_shapes: tuple[tuple[int, int], ...],
    ) -> Float[Array, "b q c"]:
        """Samples the memory around the reference points.

        Args:
            query: content plus position.
            reference: per level, (x, y) points or (cx, cy, w, h) boxes in 0..1; around a
                point offsets count in pixels, around a box in half boxes / points.
            memory: all levels concatenated in the order of `spatial_shapes`.
            spatial_shapes: (H, W) of each level.

        Returns:
            The attended features after the output projection, without residual. How far the
            samples spread is in the collection "statistics" where that is mutable.

        Raises:
            ShapeError: references are neither points nor boxes.
            ConfigError: `project` is not one of None, "before", "after".
        """
        b, q, c = query.shape
        heads, levels, points = self.num_heads, len(spatial_shapes), self.num_points
        offsets = Dense(
            heads * levels * points * 2,
            kernel_init=nn.initializers.zeros,
            bias_init=direction_init(heads, levels, points),
            precision=jax.lax.Precision.HIGHEST,
            name="sampling_offsets",
        )(query.astype(jnp.float32))
        logits = Dense(
            heads * levels * points,
            dtype=self.dtype,
            kernel_init=nn.initializers.zeros,
            name="attention_weights",
        )(query)
        weights = jax.nn.softmax(logits.astype(jnp.float32).reshape(b, q, heads, -1), axis=-1)
        weights = weights.reshape(b, q, heads, levels, points)
        locations = _locations(
            reference, offsets.reshape(b, q, heads, levels, points, 2), spatial_shapes
        )
        if self.is_mutable_collection("statistics") and not self.is_initializing():
            places = jax.lax.stop_gradient(locations)
            self.sow("statistics", "touched_rows", touched_rows(spatial_shapes, places))
        kernel, bias = DenseParams(c, c, self.dtype, name="value_proj")()
        memory = memory.astype(self.dtype)
        order = self.project or cheaper_projection(q, memory.shape[1], c, heads * levels * points)
        if order == "before":
            value = memory @ kernel + bias[None, None]
            out = deform_attention(
                value.reshape(b, -1, heads, c // heads),
                spatial_shapes,
                locations,
                weights,
                implementation=self.implementation,
            )
        elif order == "after":
            out = self._sample_first(memory, spatial_shapes, locations, weights, kernel, bias)
        else:
            raise ConfigError(
                f"DeformableAttention: project is {order!r}; use None, 'before' or 'after'."
            )
        return Dense(c, dtype=self.dtype, kernel_init=xavier_init, name="output_proj")(out)

    def _sample_first(
        self,
        memory: Float[Array, "b s c"],
        spatial_shapes: tuple[tuple[int, int], ...],
        locations: Float[Array, "b q h L P 2"],
        weights: Float[Array, "b q h L P"],
        kernel: Float[Array, "c c"],
        bias: Float[Array, " c"],
    ) -> Float[Array, "b q c"]:
        """Every head samples the raw memory, then projects its sum."""
        b, q, heads = weights.shape[:3]
        c = memory.shape[-1]
        sums = deform_attention(
            memory[:, :, None],
            spatial_shapes,
            locations.reshape(b, q * heads, 1, *locations.shape[3:]),
            weights.reshape(b, q * heads, 1, *weights.shape[3:]),
            implementation=self.implementation,
        ).reshape(b, q, heads, c)
        out = jnp.einsum("bqhc,che->bqhe", sums, kernel.reshape(c, heads, -1))
        # Outside the levels the projected value is zero, so the bias applies inside only.
        inside = inside_weight(spatial_shapes, locations, weights).astype(out.dtype)
        out = out + inside[..., None] * bias.reshape(1, 1, heads, -1)
        return out.reshape(b, q, c)


def _locations(
    reference: Float[Array, "#b q L r"],
    offsets: Float[Array, "b q h L P 2"],
    spatial_shapes: tuple[tuple[int, int], ...],
) -> Float[Array, "b q h L P 2"]:
    reference = reference.astype(jnp.float32)[:, :, None, :, None]
    if reference.shape[-1] == 2:
        sizes = np.asarray([(width, height) for height, width in spatial_shapes], np.float32)
        return reference + offsets / sizes[None, None, None, :, None]
    if reference.shape[-1] == 4:
        return reference[..., :2] + offsets * reference[..., 2:] * (0.5 / offsets.shape[4])
    raise ShapeError(
        f"DeformableAttention: reference points have {reference.shape[-1]} numbers; "
        "give (x, y) points or (cx, cy, w, h) boxes."
    )
