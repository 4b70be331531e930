"""The seventh token: a mask at any granularity between the finest part and the whole.

    content = label + type of the prompt + learned vector + MLP(features(g))

The six tokens of a prompt do not see it, so that their answers are the same with and without it; it
sees the six and itself. Not in the paper, which names steering granularity as its next step.
"""

import math

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from semsam_jax.models.layers import MLP, parameter

NUM_FREQUENCIES = 6


def fourier_features(granularity: Float[Array, "*n"]) -> Float[Array, "*n f"]:
    """Sine and cosine of pi * 2^i * g, i = 0..5, float32."""
    factors = math.pi * 2.0 ** jnp.arange(NUM_FREQUENCIES)
    factors = factors.reshape((1,) * granularity.ndim + (-1,))
    phase = granularity.astype(jnp.float32)[..., None] * factors
    return jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=-1)


class GranularityToken(nn.Module):
    """What a granularity adds to the content of a prompt.

    Attributes:
        dim: channels.
    """

    dim: int

    @nn.compact
    def __call__(self, granularity: Float[Array, "*n"]) -> Float[Array, "*n c"]:
        """Embeds granularities, 0 (the finest part) to 1 (the whole)."""
        token = parameter(self, "token", nn.initializers.normal(1.0), (self.dim,))
        moved = MLP(self.dim, self.dim, 2, name="mlp")(fourier_features(granularity))
        return moved + token.reshape((1,) * granularity.ndim + (-1,))
