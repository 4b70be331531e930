"""The decoder: nine layers of self-attention and deformable attention with box refinement.

Source: docs/reference.md, section 4; arXiv 2206.02777 (Mask DINO), 2203.03605 (DINO box
refinement).
"""

import typing
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from semsam_jax.core.structs import Predictions, Pyramid, TextTable
from semsam_jax.models.deformable import DeformableAttention
from semsam_jax.models.heads import Heads
from semsam_jax.models.layers import (
    MLP,
    Dense,
    LayerNorm,
    MultiHeadAttention,
    linear_init,
    relu,
    scan_layers,
    stacked_params,
)
from semsam_jax.models.presets import DecoderConfig
from semsam_jax.ops.boxes import inverse_sigmoid
from semsam_jax.ops.positional import sine_boxes

LevelShapes = tuple[tuple[int, int], ...]


@typing.no_type_check
@struct.dataclass
class DecoderMemory:
    """The pyramid as one list of tokens, from low to high resolution.

    Attributes:
        tokens: [b,n,c], levels of strides 64, 32, 16, 8, each row by row.
        shapes: static (height, width) of each level in this order.
    """

    tokens: jax.Array
    shapes: LevelShapes = struct.field(pytree_node=False)


@typing.no_type_check
@struct.dataclass
class DecoderStates:
    """Outputs of the layers for the heads.

    Attributes:
        outputs: [l,b,q,c] layer outputs, before any final norm; tokens that answer a granularity
            stand behind the others.
        references: float32 [l+1,b,q,4] boxes in 0..1; entry i goes into layer i with its
            gradient cut, entry i+1 comes out with its gradient.
    """

    outputs: jax.Array
    references: jax.Array


def make_memory(levels: Sequence[Float[Array, "b _h _w c"]]) -> DecoderMemory:
    """Concatenates pyramid levels, given from high to low resolution, low to high."""
    reverse = levels[::-1]
    b, _, _, c = reverse[0].shape
    return DecoderMemory(
        tokens=jnp.concatenate([level.reshape(b, -1, c) for level in reverse], axis=1),
        shapes=tuple(level.shape[1:3] for level in reverse),
    )


class MemoryProjection(nn.Module):
    """Projects every level to the decoder's width if it differs from the pixel decoder's."""

    dim: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, levels: Sequence[Float[Array, "b _h _w c"]]
    ) -> tuple[Float[Array, "b _h _w d"], ...]:
        """One linear layer for each level, given from high to low resolution."""
        return tuple(
            Dense(self.dim, dtype=self.dtype, kernel_init=linear_init, name=f"level{i}")(x)
            for i, x in enumerate(levels)
        )


class DecoderLayer(nn.Module):
    """Self-attention, deformable attention to the memory, feed-forward; post-norm.

    Attributes:
        config: sizes.
        shapes: (height, width) of the memory's levels.
        group: tokens of one self-attention group (those of a prompt), None for all.
        dtype: compute dtype.
    """

    config: DecoderConfig
    shapes: LevelShapes
    group: int | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        content: Float[Array, "b q c"],
        pos: Float[Array, "b q c"],
        references: Float[Array, "b q 4"],
        memory: Float[Array, "b n c"],
        blocked: Bool[Array, "_r _g _m"] | None,
        others: tuple[Float[Array, "g k c"], Float[Array, "g k c"]] | None = None,
    ) -> tuple[Float[Array, "b q c"], dict[str, Array]]:
        """Returns the new content and the two attention outputs (for inspection).

        `others` are content and positions of tokens that each group attends to as well.
        """
        config, shape = self.config, content.shape
        # Groups do not attend to each other: they become rows of the batch, which avoids a q x q
        # mask.
        folded = shape if self.group is None else (-1, self.group, shape[-1])
        attention = MultiHeadAttention(config.num_heads, dtype=self.dtype, name="self_attn")
        self_out = attention(content.reshape(folded), pos.reshape(folded), blocked, others)
        self_out = self_out.reshape(shape)
        # Norms carry the original's numbers: 2, 1, 3 in the order of use.
        content = LayerNorm(dtype=self.dtype, name="norm2")(content + self_out)
        cross_out = DeformableAttention(
            config.num_heads, config.num_points, dtype=self.dtype, name="cross_attn"
        )(
            content + pos,
            jnp.repeat(references[:, :, None], len(self.shapes), axis=2),
            memory,
            self.shapes,
        )
        content = LayerNorm(dtype=self.dtype, name="norm1")(content + cross_out)
        hidden = relu(self._dense(config.feedforward_dim, "linear1")(content))
        content = LayerNorm(dtype=self.dtype, name="norm3")(
            content + self._dense(config.dim, "linear2")(hidden)
        )
        return content, {"self_attn_out": self_out, "cross_attn_out": cross_out}

    def _dense(self, features: int, name: str) -> Dense:
        return Dense(features, dtype=self.dtype, kernel_init=linear_init, name=name)


class Decoder(nn.Module):
    """Scanned layers with shared box refinement, and the heads.

    Attributes:
        config: sizes.
        mask_dim: channels of the mask features.
        num_levels: levels of the memory.
        pooled_dim: see `Heads`.
        dtype: compute dtype of layers; boxes are refined in float32.
        remat: key of `layers.REMAT_POLICIES`, for each layer.
    """

    config: DecoderConfig
    mask_dim: int
    num_levels: int = 4
    pooled_dim: int = 0
    dtype: Any = jnp.float32
    remat: str = "none"

    def setup(self) -> None:
        """Declares the stacked layers and everything that all layers share."""
        config, num_levels = self.config, self.num_levels
        self.heads = Heads(config, self.mask_dim, self.pooled_dim, dtype=self.dtype)
        nn.share_scope(self, self.heads)
        self.ref_point_head = MLP(config.dim, config.dim, 2, dtype=self.dtype)
        tokens = jax.ShapeDtypeStruct((1, 2, config.dim), self.dtype)
        boxes = jax.ShapeDtypeStruct((1, 2, 4), jnp.float32)
        memory = jax.ShapeDtypeStruct((1, num_levels, config.dim), self.dtype)
        layer = self._layer(((1, 1),) * num_levels, None)
        self.layers = stacked_params(
            self, "layers", layer, config.num_layers, tokens, tokens, boxes, memory, None
        )

    def __call__(
        self,
        content: Float[Array, "b q c"],
        references: Float[Array, "b q 4"],
        memory: DecoderMemory,
        *,
        group: int | None = None,
        blocked: Bool[Array, "#b q q"] | None = None,
        granularity_tokens: Float[Array, "b p m c"] | None = None,
    ) -> DecoderStates:
        """Runs all layers.

        Args:
            content: tokens.
            references: their boxes in logit space, cxcywh.
            memory: tokens to attend to.
            group: number of consecutive tokens that attend to each other, None for all.
            blocked: [.., query, key] True where self-attention is masked; not with `group`.
            granularity_tokens: tokens of each prompt that answer a granularity. They start at its
                boxes and attend to its other tokens, each as it was before the layer, and to
                themselves; nothing attends to them.

        Returns:
            The states of the tokens, then of the granularity tokens.
        """
        layer = self._layer(memory.shapes, group)
        tokens = memory.tokens.astype(self.dtype)
        first_reference = jax.nn.sigmoid(references.astype(jnp.float32))
        if self.is_initializing():
            self.ref_point_head(sine_boxes(first_reference, 2 * self.config.dim))
            self.heads.box_offsets(content)
        # A scan body must be pure: it sees the shared modules as functions of arrays.
        position, offsets = _pure(self.ref_point_head), _pure(self.heads.bbox_embed)
        has_internals = self.is_mutable_collection("intermediates")

        def refine(content: Array, reference: Array) -> Array:
            return jax.nn.sigmoid(offsets(content.astype(jnp.float32)) + inverse_sigmoid(reference))

        def positions(reference: Array) -> tuple[Array, Array]:
            sine = sine_boxes(reference, 2 * self.config.dim)
            return sine, position(sine.astype(self.dtype))

        def body(params: Any, carry: Any, _: None) -> tuple[Any, Any]:
            (content, reference), extra = carry
            sine, pos = positions(reference)
            if extra is not None:
                extra, extra_reference = extra
                of_prompts = tuple(
                    x.reshape(b * num_prompts, -1, x.shape[-1]) for x in (content, pos)
                )
                extra, _ = granularity_layer.apply(
                    {"params": params},
                    extra,
                    positions(extra_reference)[1],
                    extra_reference,
                    tokens,
                    not_itself,
                    of_prompts,
                )
                extra = (extra, refine(extra, extra_reference))
            content, internals = layer.apply(
                {"params": params}, content, pos, reference, tokens, blocked
            )
            # The next layer starts from a cut reference, the heads from the whole one:
            # the box loss of a layer also trains the refinement before it.
            refined = refine(content, reference)
            internals = internals | {"query_sine": sine, "query_pos": pos}
            kept = ((content, refined), extra, internals if has_internals else None)
            carry = [
                None if one is None else (one[0], jax.lax.stop_gradient(one[1]))
                for one in ((content, refined), extra)
            ]
            return tuple(carry), kept

        first, extra = (content.astype(self.dtype), first_reference), None
        if granularity_tokens is not None:
            b, num_prompts, m, c = granularity_tokens.shape
            granularity_layer = self._layer(memory.shapes, m)
            own = first_reference.reshape(b, num_prompts, -1, 4)[:, :, :1]
            own = jnp.broadcast_to(own, (b, num_prompts, m, 4)).reshape(b, -1, 4)
            extra = (granularity_tokens.astype(self.dtype).reshape(b, -1, c), own)
            num_others = content.shape[1] // num_prompts
            not_itself = jnp.arange(num_others + m)[None] - num_others
            not_itself = ((not_itself >= 0) & (not_itself != jnp.arange(m)[:, None]))[None]
        _, (kept, extra_kept, internals) = scan_layers(
            body, self.layers, (first, extra), remat=self.remat
        )
        states = _states(kept, first_reference)
        if extra_kept is not None:
            states = jax.tree.map(
                lambda *x: jnp.concatenate(x, axis=2), states, _states(extra_kept, extra[1])
            )
        if has_internals:
            self.sow("intermediates", "layers", internals)
            self.sow("intermediates", "states", states)
        return states

    def predict(
        self,
        states: DecoderStates,
        text: TextTable | None,
        pyramid: Pyramid | None = None,
        limits: Float[Array, "b q 4"] | None = None,
        *,
        is_generic: bool,
    ) -> Predictions:
        """Heads of all layers at once; the leading axis of `states` stays.

        Outputs are normed twice with the same weights, as the released weights expect;
        only the boxes of generic queries come from outputs normed once, as in Mask DINO.
        Boxes start from the references that went into the layer.

        Args:
            states: outputs of the layers.
            text: names to score, or None.
            pyramid: the encoded images; read only where names look under masks.
            limits: of the masks of all layers, see `Heads.predict`.
            is_generic: generic queries; they have no predicted IoU.
        """
        once = self.heads.norm(states.outputs)
        twice = self.heads.norm(once)
        boxes = self.heads.refine_boxes(once if is_generic else twice, states.references[:-1])
        return self.heads.predict(twice, boxes, text, pyramid, limits, has_ious=not is_generic)

    def predict_first(
        self,
        content: Float[Array, "b q c"],
        references: Float[Array, "b q 4"],
        text: TextTable,
        pyramid: Pyramid,
    ) -> Predictions:
        """Heads on tokens that no layer has touched: normed once, boxes as they are.

        Args:
            content: tokens.
            references: their boxes in logit space.
            text: names to compare with.
            pyramid: the encoded images.
        """
        boxes = jax.nn.sigmoid(references)
        return self.heads.predict(self.heads.norm(content), boxes, text, pyramid, has_ious=False)

    def refine_anchors(
        self, content: Float[Array, "b q c"], anchors: Float[Array, "b q 4"]
    ) -> Float[Array, "b q 4"]:
        """Anchors of selected tokens moved by the box head; all in logit space."""
        return self.heads.box_offsets(content) + anchors

    def score(
        self,
        content: Float[Array, "b n c"],
        text: TextTable,
        vocab_valid: Bool[Array, "b v"] | None,
    ) -> Float[Array, "b n"]:
        """Largest object or part logit of each token over the valid vocabulary."""
        logits = jnp.concatenate(self.heads.name_logits(content, text), axis=-1)
        if vocab_valid is not None:
            logits = jnp.where(vocab_valid[:, None], logits, -jnp.inf)
        return logits.max(-1)

    def _layer(self, shapes: LevelShapes, group: int | None) -> DecoderLayer:
        return DecoderLayer(self.config, shapes, group, dtype=self.dtype, parent=None)


def _states(kept: tuple[Array, Array], first_reference: Array) -> DecoderStates:
    outputs, refined = kept
    return DecoderStates(
        outputs=outputs, references=jnp.concatenate([first_reference[None], refined])
    )


def _pure(module: nn.Module) -> Any:
    unbound, variables = module.unbind()
    return lambda x: unbound.apply(variables, x)
