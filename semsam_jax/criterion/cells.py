"""IoU of predicted masks and truth over all cells of the mask features.

Too few loss points fall into a small target to estimate its IoU.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from semsam_jax.core.structs import Batch, Predictions
from semsam_jax.models.heads import mask_logits
from semsam_jax.ops.bitmasks import sample_bits


def at_cells(rows: Batch, hw: tuple[int, int]) -> tuple[Float[Array, "b i n"], Bool[Array, "b n"]]:
    """Ground-truth masks (0 or 1) at the cell centres of a map, and which cells lie in the
    image.
    """
    b, n = rows.size_hw.shape[0], hw[0] * hw[1]
    y, x = ((jnp.arange(side) + 0.5) / side for side in hw)
    centers = jnp.stack(jnp.meshgrid(x, y), axis=-1).reshape(1, n, 2)
    centers = jnp.broadcast_to(centers, (b, n, 2))
    canvas_hw, valid_hw = rows.image.shape[1:3], rows.size_hw
    is_row = (y * canvas_hw[0])[None] < valid_hw[:, :1]
    is_column = (x * canvas_hw[1])[None] < valid_hw[:, 1:]
    in_image = (is_row[:, :, None] & is_column[:, None]).reshape(b, n)
    truth = (sample_bits(rows.mask_bits, centers) >= 0.5) & in_image[:, None]
    return truth.astype(jnp.float32), in_image


def cell_ious(
    predictions: Predictions,
    mask_features: Float[Array, "b h w d"],
    truth: Float[Array, "b i n"],
    in_image: Bool[Array, "b n"],
    precision: jax.lax.Precision,
) -> Float[Array, "b p k i"]:
    """IoU of every mask of every prompt with every instance; without gradient.

    Args:
        predictions: one layer, leading axes [b, p, k].
        mask_features: of the pyramid, at stride 4.
        truth: of `at_cells`.
        in_image: of `at_cells`.
        precision: of the product of embeddings and features.
    """
    embed, features = jax.lax.stop_gradient((predictions.mask_embed, mask_features))
    logits = mask_logits(embed, features, predictions.mask_limits, precision=precision)
    logits = logits.reshape(*embed.shape[:3], -1)
    mask = ((logits > 0) & in_image[:, None, None]).astype(jnp.float32)
    inter = jnp.einsum("bpkn,bin->bpki", mask, truth)
    union = mask.sum(-1)[..., None] + truth.sum(-1)[:, None, None] - inter
    return inter / jnp.maximum(union, 1.0)
