"""Backbone features averaged under predicted masks, which class heads see in addition to the token.

A token learns where its mask ends; what lies there, a backbone that was trained on a million
labelled images knows better. As in FC-CLIP (arXiv 2308.02487) its maps are averaged under the
mask. Not in the paper; preset `lite` has it.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from semsam_jax.core.errors import ShapeError

_NO_AREA = 1e-6
_NO_VARIANCE = 1e-5


def pool_under_masks(
    logits: Float[Array, "b *q h w"], maps: Sequence[Float[Array, "b _h _w _c"]]
) -> Float[Array, "b *q d"]:
    """Means of feature maps, weighted with the probabilities of masks, and normalised.

    The mean over the mask's own pixels of what each map says there (nearest cell), so no mask is
    too small to have one. Masks get no gradient from here.

    Args:
        logits: of masks, at a resolution that is a multiple of each map's.
        maps: any number.

    Returns:
        float32; the channels of one map behind those of the other, those of each map normalised to
        mean 0 and variance 1.

    Raises:
        ShapeError: the size of a map does not divide that of the masks.
    """
    weights = jax.nn.sigmoid(jax.lax.stop_gradient(logits.astype(jnp.float32)))
    b, *queries, h, w = weights.shape
    weights = weights.reshape(b, -1, h, w)
    pooled = []
    for features in maps:
        rows, columns, channels = features.shape[1:]
        if h % rows or w % columns:
            raise ShapeError(
                f"pool_under_masks: masks of {h} x {w} do not divide into the {rows} x {columns} "
                f"cells of a map; expected multiples."
            )
        cells = weights.reshape(b, -1, rows, h // rows, columns, w // columns).sum((3, 5))
        cells = cells.reshape(b, -1, rows * columns)
        flat = features.astype(jnp.float32).reshape(b, rows * columns, channels)
        total = jnp.einsum("bqn,bnc->bqc", cells, flat, precision=jax.lax.Precision.HIGHEST)
        mean = total / jnp.maximum(cells.sum(-1, keepdims=True), _NO_AREA)
        pooled.append(_normalised(mean))
    return jnp.concatenate(pooled, axis=-1).reshape(b, *queries, -1)


def _normalised(x: Float[Array, "*q c"]) -> Float[Array, "*q c"]:
    """Mean 0 and variance 1 over the channels."""
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + _NO_VARIANCE)
