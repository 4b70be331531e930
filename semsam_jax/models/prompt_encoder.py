"""Prompts to decoder tokens: six granularity tokens for each click or box."""

import typing

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from semsam_jax.core.errors import PromptError
from semsam_jax.core.structs import Prompts
from semsam_jax.models.layers import parameter
from semsam_jax.ops.boxes import add_box_noise, inverse_sigmoid

BOX_TYPE = 1
"""Type index of a box prompt; clicks have 0. Released weights take 0 for both."""


@typing.no_type_check
@struct.dataclass
class PromptTokens:
    """Decoder input of prompts.

    Attributes:
        content: [b,p,k,c].
        references: float32 [b,p,4] prompt boxes in logit space, one for all tokens of a prompt.
        granularity_tokens: [b,p,m,c] tokens that answer a granularity, or None.
    """

    content: jax.Array
    references: jax.Array
    granularity_tokens: jax.Array | None = None


class PromptEncoder(nn.Module):
    """Content = label + type embedding of the prompt + embedding of the token.

    Attributes:
        dim: channels.
        num_tokens: tokens per prompt.
        noise_scale: training noise relative to the box.
        point_noise_factor: extra factor on the noise of clicks.
    """

    dim: int
    num_tokens: int
    noise_scale: float
    point_noise_factor: float

    @nn.compact
    def __call__(
        self,
        prompts: Prompts,
        *,
        noise: Float[Array, "b p 4"] | None = None,
        is_box: Bool[Array, "b p"] | None = None,
        granularity: Float[Array, "b p m c"] | None = None,
    ) -> PromptTokens:
        """Embeds prompts.

        Args:
            prompts: clicks and boxes, cxcywh in fractions of the padded canvas.
            granularity: of `GranularityToken`, for tokens in addition to the `num_tokens`.
            noise: uniform[0,1) in training, None otherwise.
            is_box: which prompts are boxes; needed with `noise`, because the type index
                does not tell (released weights use one index for both).

        Raises:
            PromptError: noise without `is_box`.
        """
        init = nn.initializers.normal(1.0)
        label_embed = parameter(self, "label_embed", init, (2, self.dim))
        type_embed = parameter(self, "type_embed", init, (2, self.dim))
        mask_tokens = parameter(self, "mask_tokens", init, (self.num_tokens, self.dim))
        # label_embed[1] exists in the weights but is never used.
        prompt_content = label_embed[0][None, None] + type_embed[prompts.type_index]
        content = prompt_content[:, :, None] + mask_tokens[None, None]
        boxes = prompts.boxes.astype(jnp.float32)
        if noise is not None:
            if is_box is None:
                raise PromptError(
                    "PromptEncoder: got noise without is_box, expected both, because clicks "
                    "get less noise than boxes; pass is_box [b, p]."
                )
            factor = jnp.where(is_box, 1.0, self.point_noise_factor)[..., None]
            boxes = add_box_noise(boxes, noise, self.noise_scale * factor)
        tokens = None if granularity is None else prompt_content[:, :, None] + granularity
        return PromptTokens(
            content=content, references=inverse_sigmoid(boxes), granularity_tokens=tokens
        )
