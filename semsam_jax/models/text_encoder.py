"""CLIP-like causal text tower: tokenised names in, unit vectors out.

Source: docs/reference.md, section 6; arXiv 2103.00020 (CLIP), 2204.03610 (UniCL).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from semsam_jax.core.errors import ShapeError
from semsam_jax.models.layers import (
    Dense,
    LayerNorm,
    MultiHeadAttention,
    parameter,
    scan_layers,
    stacked_params,
)
from semsam_jax.models.presets import TextConfig

_EPS = 1e-12  # of every norm in the tower
_embedding_init = nn.initializers.truncated_normal(0.02)


class TextEncoder(nn.Module):
    """Token and position embeddings, causal layers, projection into the text space.

    Attributes:
        config: sizes.
        text_dim: dimensions of the text space.
        dtype: compute dtype of the layers; parameters and the result are float32.
        remat: key of `layers.REMAT_POLICIES`, for each layer.
    """

    config: TextConfig
    text_dim: int
    dtype: Any = jnp.float32
    remat: str = "none"

    def setup(self) -> None:
        """Declares the embeddings, the stacked layers and the projection."""
        config, width = self.config, self.config.width
        self.token_embedding = parameter(
            self, "token_embedding", _embedding_init, (config.vocab_size, width)
        )
        self.positional_embedding = parameter(
            self, "positional_embedding", _embedding_init, (config.context_length, width)
        )
        tokens = jax.ShapeDtypeStruct((1, 2, width), self.dtype)
        self.layers = stacked_params(self, "layers", self._layer(), config.num_layers, tokens)
        self.ln_final = LayerNorm(eps=_EPS, dtype=self.dtype)
        self.lang_proj = parameter(self, "lang_proj", _embedding_init, (width, self.text_dim))

    def __call__(self, token_ids: Int[Array, "n t"]) -> Float[Array, "n d"]:
        """Embeds names.

        Args:
            token_ids: rows of `text.tokenizer.Tokenizer`; the first largest id of a row is
                the end of its text, and its feature stands for the whole.

        Returns:
            float32 rows of length one.

        Raises:
            ShapeError: rows longer than the context.
        """
        hidden = self.hidden(token_ids)
        end = jnp.argmax(token_ids, axis=-1)
        feature = jnp.take_along_axis(hidden, end[:, None, None], axis=1)[:, 0]
        projected = feature.astype(jnp.float32) @ self.lang_proj
        return projected / (jnp.linalg.norm(projected, axis=-1, keepdims=True) + _EPS)

    def hidden(self, token_ids: Int[Array, "n t"]) -> Float[Array, "n t c"]:
        """Features of every token after the final norm, in `dtype`."""
        num_tokens = token_ids.shape[1]
        if num_tokens > self.config.context_length:
            raise ShapeError(
                f"TextEncoder: rows of {num_tokens} ids, expected at most "
                f"{self.config.context_length}; tokenise with that context length."
            )
        x = self.token_embedding[token_ids] + self.positional_embedding[None, :num_tokens]
        layer = self._layer()

        def body(params: Any, x: Array, _: None) -> tuple[Array, None]:
            return layer.apply({"params": params}, x), None

        x, _ = scan_layers(body, self.layers, x.astype(self.dtype), remat=self.remat)
        return self.ln_final(x)

    def _layer(self) -> "TextLayer":
        return TextLayer(self.config.num_heads, dtype=self.dtype, parent=None)


class TextLayer(nn.Module):
    """Pre-norm causal self-attention and feed-forward."""

    num_heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n t c"]) -> Float[Array, "n t c"]:
        """A token attends to itself and earlier tokens."""
        later = jnp.triu(jnp.ones((x.shape[1], x.shape[1]), bool), k=1)[None]
        attention = MultiHeadAttention(self.num_heads, dtype=self.dtype, name="attn")
        x = x + attention(self._norm("ln_1")(x), None, later)
        return x + TextMLP(dtype=self.dtype, name="mlp")(self._norm("ln_2")(x))

    def _norm(self, name: str) -> LayerNorm:
        return LayerNorm(eps=_EPS, dtype=self.dtype, name=name)


class TextMLP(nn.Module):
    """Two linear layers with QuickGELU, x * sigmoid(1.702 x), between them."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n t c"]) -> Float[Array, "n t c"]:
        """Applies the layers to each token."""
        width = x.shape[-1]
        x = Dense(4 * width, dtype=self.dtype, name="c_fc")(x)
        x = x * jax.nn.sigmoid(1.702 * x)
        return Dense(width, dtype=self.dtype, name="c_proj")(x)
