"""Prediction heads of a decoder token: mask, box, IoU and classes."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from semsam_jax.core.structs import Predictions, Pyramid, TextTable
from semsam_jax.models import mask_window
from semsam_jax.models.layers import MLP, Dense, LayerNorm, parameter
from semsam_jax.models.mask_pooling import pool_under_masks
from semsam_jax.models.presets import DecoderConfig
from semsam_jax.ops.boxes import OUTSIDE_LOGIT, cells_within, inverse_sigmoid

_COSINE_EPS = 1e-7


def mask_logits(
    mask_embed: Float[Array, "b *q d"],
    mask_features: Float[Array, "b h w d"],
    limits: Float[Array, "b *q 4"] | None = None,
    *,
    precision: jax.lax.Precision = jax.lax.Precision.HIGHEST,
) -> Float[Array, "b *q h w"]:
    """Mask logits at stride 4: the dot product of each embedding with each pixel.

    Always float32.

    Args:
        mask_embed: `Predictions.mask_embed`.
        mask_features: of the pyramid.
        limits: `Predictions.mask_limits`; outside them a logit is `OUTSIDE_LOGIT`.
        precision: of the product.
    """
    b, *queries, d = mask_embed.shape
    _, h, w, _ = mask_features.shape
    # One plain matrix product per image; with two pixel axes XLA's CPU product is slow.
    logits = jnp.einsum(
        "bqd,bnd->bqn",
        mask_embed.astype(jnp.float32).reshape(b, -1, d),
        mask_features.astype(jnp.float32).reshape(b, h * w, d),
        precision=precision,
    )
    logits = logits.reshape(b, *queries, h, w)
    if limits is None:
        return logits
    return jnp.where(cells_within(limits, h, w), logits, OUTSIDE_LOGIT)


def cosine_logits(
    content: Float[Array, "*q c"],
    projection: Float[Array, "c d"],
    names: Float[Array, "v d"],
    logit_scale: Float[Array, ""],
) -> Float[Array, "*q v"]:
    """exp(logit_scale) times the cosine between projected content and unit names.

    For many queries and a text space wider than their own, names are projected into the space of
    the queries instead: the product is the same. All products are true float32, on accelerators
    too.

    Source: docs/reference.md, section 6; 1e-7 is added to the norm of the content.
    """
    content = content.astype(jnp.float32)
    names = names.astype(jnp.float32)
    dot = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    x = dot(content, projection)
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    # The square root has no gradient at zero; a zero vector keeps logit zero.
    norm = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
    (dim, text_dim), num_queries = projection.shape, content.size // content.shape[-1]
    if num_queries * (text_dim - dim) > dim * text_dim:
        cosine = dot(content / (norm + _COSINE_EPS), dot(projection, names.T))
    else:
        cosine = dot(x / (norm + _COSINE_EPS), names.T)
    return jnp.exp(logit_scale) * cosine


class Heads(nn.Module):
    """Mask, box, quality and name heads, with the norm in front of them.

    The decoder shares its scope with this module, because box refinement uses the same
    box head and norm.

    Attributes:
        config: sizes.
        mask_dim: channels of the pixel decoder's mask features; with `config.mask_window`,
            embeddings have those of the window behind them.
        pooled_dim: channels that are averaged under masks for names, with
            `config.pooled_names`.
        dtype: compute dtype of the mask and quality heads; boxes, windows and names are
            float32.
    """

    config: DecoderConfig
    mask_dim: int
    pooled_dim: int = 0
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Declares the parameters of all heads."""
        dim, text_dim = self.config.dim, self.config.text_dim
        names_init = nn.initializers.truncated_normal(0.02)
        self.norm = LayerNorm()
        exact = jax.lax.Precision.HIGHEST
        self.bbox_embed = MLP(dim, 4, 3, zero_last=True, precision=exact)
        self.mask_embed = MLP(dim, self.mask_dim, 3, dtype=self.dtype)
        self.iou_head = MLP(dim, 1, 3, dtype=self.dtype)
        if self.config.mask_window:
            self.mask_window = Dense(
                mask_window.NUM_CHANNELS,
                kernel_init=nn.initializers.zeros,
                bias_init=mask_window.shape_bias,
            )
        self.object_embed = parameter(self, "object_embed", names_init, (dim, text_dim))
        self.part_embed = parameter(self, "part_embed", names_init, (dim, text_dim))
        if self.config.part_owner:
            self.owner_embed = parameter(self, "owner_embed", names_init, (dim, text_dim))
        if self.config.pooled_names:
            # At zero the names are those of the token alone.
            kinds = ("object", "part", "owner") if self.config.part_owner else ("object", "part")
            shape, zeros = (self.pooled_dim, text_dim), nn.initializers.zeros
            self.pooled_embeds = {
                kind: parameter(self, f"{kind}_pooled_embed", zeros, shape) for kind in kinds
            }
        scale_init = nn.initializers.constant(self.config.logit_scale)
        self.logit_scale = parameter(self, "logit_scale", scale_init, ())

    def refine_boxes(
        self, content: Float[Array, "*q c"], references: Float[Array, "*q 4"]
    ) -> Float[Array, "*q 4"]:
        """Moves reference boxes (cxcywh in 0..1) by the box head, in logit space."""
        return jax.nn.sigmoid(self.box_offsets(content) + inverse_sigmoid(references))

    def box_offsets(self, content: Float[Array, "*q c"]) -> Float[Array, "*q 4"]:
        """Box corrections in logit space, float32."""
        return self.bbox_embed(content.astype(jnp.float32))

    def name_logits(
        self, features: Float[Array, "*q f"], text: TextTable
    ) -> tuple[Float[Array, "*q v1"], Float[Array, "*q v2"]]:
        """Object and part logits.

        Args:
            features: already normalised decoder tokens, alone or with what lies under their masks
                (`pool`) behind them; `predict` sows them as "name_features".
            text: names to compare with.
        """
        return (
            self._cosines("object", self.object_embed, features, text.objects),
            self._cosines("part", self.part_embed, features, text.parts),
        )

    def owner_logits(
        self, features: Float[Array, "*q f"], text: TextTable
    ) -> Float[Array, "*q v1"] | None:
        """Owner logits of the same features; None without the projection."""
        if not self.config.part_owner:
            return None
        return self._cosines("owner", self.owner_embed, features, text.objects)

    def _cosines(
        self,
        kind: str,
        projection: Float[Array, "c t"],
        features: Float[Array, "*q f"],
        names: Float[Array, "v t"],
    ) -> Float[Array, "*q v"]:
        if features.shape[-1] > projection.shape[0]:
            projection = jnp.concatenate([projection, self.pooled_embeds[kind]])
        return cosine_logits(features, projection, names, self.logit_scale)

    def pool(
        self,
        mask_embed: Float[Array, "*q m"],
        pyramid: Pyramid | None,
        limits: Float[Array, "b q 4"] | None,
    ) -> Float[Array, "*q d"] | None:
        """Backbone features under the masks of tokens; None for a model that reads none.

        Args:
            mask_embed: [b, q, m], or [l, b, q, m] of several layers.
            pyramid: the encoded images; not needed by such a model.
            limits: of the masks, see `Predictions.mask_limits`.
        """
        if not self.config.pooled_names:
            return None

        def of_layer(embed: Float[Array, "b q m"]) -> Float[Array, "b q d"]:
            logits = mask_logits(embed, pyramid.mask_features, limits)
            return pool_under_masks(logits, pyramid.name_maps)

        if mask_embed.ndim == 3:
            return of_layer(mask_embed)
        # One layer after the other: the masks of all at once would be large.
        return jax.lax.map(of_layer, mask_embed)

    def predict(
        self,
        content: Float[Array, "*q c"],
        boxes: Float[Array, "*q 4"],
        text: TextTable | None,
        pyramid: Pyramid | None = None,
        limits: Float[Array, "b q 4"] | None = None,
        *,
        has_ious: bool,
    ) -> Predictions:
        """All heads but the box head, on already normalised content.

        Args:
            content: decoder tokens after the norm (which the caller applies as often as
                the place demands, see `Decoder`).
            boxes: predicted boxes, passed through.
            text: names to compare with, or None for no logits.
            pyramid: the encoded images; read only where names look under masks.
            limits: outside which the masks are empty, (x0, y0, x1, y1) in fractions of the canvas,
                or None; passed through for every layer.
            has_ious: whether to predict mask quality (prompt tokens only).

        Returns:
            Predictions with the leading axes of `content`, float32.
        """
        mask_embed = self.mask_embed(content).astype(jnp.float32)
        if self.config.mask_window:
            shape = self.mask_window(content.astype(jnp.float32))
            mask_embed = jnp.concatenate([mask_embed, mask_window.window_embed(shape, boxes)], -1)
        object_logits = part_logits = owner_logits = None
        if text is not None:
            features, pooled = content, self.pool(mask_embed, pyramid, limits)
            if pooled is not None:
                features = jnp.concatenate([content.astype(jnp.float32), pooled], axis=-1)
            self.sow("intermediates", "name_features", features)
            object_logits, part_logits = self.name_logits(features, text)
            owner_logits = self.owner_logits(features, text)
        return Predictions(
            mask_embed=mask_embed,
            boxes=boxes,
            pred_ious=self.iou_head(content)[..., 0].astype(jnp.float32) if has_ious else None,
            object_logits=object_logits,
            part_logits=part_logits,
            owner_logits=owner_logits,
            mask_limits=(
                None if limits is None else jnp.broadcast_to(limits, (*mask_embed.shape[:-1], 4))
            ),
        )
