"""Two-stage query selection: the best encoder tokens become the generic queries.

Source: arXiv 2206.02777 (Mask DINO), docs/reference.md, section 13.
"""

import typing
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from semsam_jax.models.layers import Dense, LayerNorm

_ANCHOR_SIZE = 0.05
_ANCHOR_MARGIN = 0.01


@typing.no_type_check
@struct.dataclass
class SelectedTokens:
    """The chosen encoder tokens, best first.

    Attributes:
        index: int32 [b,q] position in the memory.
        content: float32 [b,q,c] projected tokens, with gradient.
        anchors: float32 [b,q,4] their anchors in logit space (inf where not valid).
    """

    index: jax.Array
    content: jax.Array
    anchors: jax.Array


def anchor_logits(shapes: Sequence[tuple[int, int]]) -> np.ndarray:
    """Anchors of all tokens in logit space, float32 [n, 4] cxcywh.

    Centres are those of the cells; the size is 0.05 * 2^level on both axes, counted in
    the order given, which is from the lowest resolution in the decoder's memory.
    Anchors with a coordinate outside 0.01 .. 0.99 are infinite.

    Args:
        shapes: (height, width) of each level.
    """
    anchors = []
    for level, (h, w) in enumerate(shapes):
        y, x = np.meshgrid(np.arange(h) + 0.5, np.arange(w) + 0.5, indexing="ij")
        size = np.full((h, w), _ANCHOR_SIZE * 2.0**level)
        anchors.append(np.stack([x / w, y / h, size, size], axis=-1).reshape(-1, 4))
    anchors = np.concatenate(anchors).astype(np.float32)
    is_valid = np.all((anchors > _ANCHOR_MARGIN) & (anchors < 1 - _ANCHOR_MARGIN), axis=-1)
    safe = np.where(is_valid[:, None], anchors, np.float32(0.5))
    return np.where(is_valid[:, None], np.log(safe / (1 - safe)), np.float32(np.inf))


class QuerySelector(nn.Module):
    """Projects the memory, scores every token against the names and selects the best.

    Attributes:
        num_queries: tokens to take (all of them on a canvas with fewer tokens).
        dtype: compute dtype of the projection.
    """

    num_queries: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        memory: Float[Array, "b n c"],
        shapes: Sequence[tuple[int, int]],
        score: Callable[[Float[Array, "b n c"]], Float[Array, "b n"]],
    ) -> SelectedTokens:
        """Selects tokens.

        Args:
            memory: encoder tokens, levels from low to high resolution.
            shapes: (height, width) of each level, in the same order.
            score: value of each projected token; no gradient passes through it.
        """
        enc_output = Dense(memory.shape[-1], dtype=self.dtype, name="enc_output")
        norm = LayerNorm(name="norm")
        anchors = anchor_logits(shapes)
        is_valid = np.isfinite(anchors[:, :1])[None]
        scored = jnp.where(is_valid, jax.lax.stop_gradient(memory), jnp.zeros((), memory.dtype))
        scores = score(norm(enc_output(scored)))
        count = min(self.num_queries, memory.shape[1])
        _, index = jax.lax.top_k(jax.lax.stop_gradient(scores), count)
        # Selected tokens are projected again, so that the backward pass keeps nothing of the
        # thousands of others.
        chosen = jnp.take_along_axis(memory, index[..., None], axis=1)
        chosen *= jnp.asarray(is_valid[0])[index].astype(memory.dtype)
        return SelectedTokens(
            index=index,
            content=norm(enc_output(chosen)),
            anchors=jnp.asarray(anchors)[index],
        )
