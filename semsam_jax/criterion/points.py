"""Points of the mask losses: random, three quarters of them where the mask is uncertain.

Points are drawn once per image and shared by all its pairs and layers; each pair selects its own
uncertain ones. Mask features are thus gathered once per step, and the logits of all pairs are one
matrix product.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from semsam_jax.core.structs import Batch
from semsam_jax.ops.bitmasks import sample_bits
from semsam_jax.ops.boxes import OUTSIDE_LOGIT, points_within
from semsam_jax.ops.losses import (
    KTH_SMALLEST,
    bce_with_logits,
    dice_loss,
    smallest_k_weights,
)
from semsam_jax.ops.point_sample import sample_points


@dataclasses.dataclass(frozen=True)
class PointPlan:
    """Numbers of points: candidates first, then random ones that always count.

    Attributes:
        num_candidates: uniform points from which the most uncertain are chosen.
        num_chosen: candidates that count.
        num_fresh: uniform points that always count.

    Source: docs/reference.md, section 9, PointRend (arXiv 1912.08193).
    """

    num_candidates: int
    num_chosen: int
    num_fresh: int

    @classmethod
    def of(cls, num_points: int, oversample_ratio: float, importance_ratio: float) -> "PointPlan":
        """Splits `num_points` the way the original does."""
        chosen = math.floor(importance_ratio * num_points)
        return cls(math.floor(num_points * oversample_ratio), chosen, num_points - chosen)

    def draw(self, key: PRNGKeyArray, num_images: int) -> Float[Array, "1 b 1 j 2"]:
        """One set of points per image, shared by its layers and pairs."""
        shape = (1, num_images, 1, self.num_candidates + self.num_fresh, 2)
        return jax.random.uniform(key, shape)


@dataclasses.dataclass(frozen=True)
class Sampled:
    """Mask features and ground-truth masks at the points of one layer.

    Attributes:
        points: (x, y) float32 [b, 1|m, j, 2], fractions of the canvas.
        features: float32 [b, 1|m, j, d].
        truth: float32 [b, m, j].
    """

    points: Array
    features: Array
    truth: Array


def sample(
    mask_features: Float[Array, "b h w d"],
    rows: Batch,
    instance: Int[Array, "b m"],
    points: Float[Array, "b g j 2"],
) -> Sampled:
    """Samples mask features and ground-truth masks at the points.

    Args:
        mask_features: of the pyramid, at stride 4.
        rows: hold the ground-truth masks.
        instance: of each of the m pairs.
        points: (x, y), fractions of the canvas; g is 1 (shared by all pairs) or m.
    """
    b, g, j, _ = points.shape
    if g == 1:
        truth = _rows_at(sample_bits(rows.mask_bits, points[:, 0]), instance)
    else:
        own = _rows_at(rows.mask_bits, instance)
        own = own.reshape(b * g, 1, *own.shape[2:])
        truth = sample_bits(own, points.reshape(b * g, j, 2)).reshape(b, g, j)
    return Sampled(points, sample_points(mask_features, points), truth)


def mask_terms(
    mask_embed: Float[Array, "b m d"],
    sampled: Sampled,
    plan: PointPlan,
    limits: Float[Array, "b m 4"] | None = None,
    *,
    precision: jax.lax.Precision = jax.lax.Precision.HIGHEST,
) -> dict[str, Float[Array, "b m"]]:
    """Binary cross entropy and dice loss of each pair, over its uncertain and fresh points.

    Points that are not chosen have weight 0; no gradient flows through the selection.

    Args:
        mask_embed: of each pair.
        sampled: features and ground truth at the points.
        plan: how many points are chosen.
        limits: `Predictions.mask_limits` of each pair; masks are empty outside.
        precision: of the product of embeddings and features. Unless it is `HIGHEST`, uncertainty
            is compared in bfloat16.
    """
    b, m, d = mask_embed.shape
    g = sampled.features.shape[1]
    logits = jnp.einsum(
        "bgid,bgjd->bgij",
        mask_embed.astype(jnp.float32).reshape(b, g, m // g, d),
        sampled.features,
        precision=precision,
    ).reshape(b, m, -1)
    if limits is not None:
        logits = jnp.where(points_within(sampled.points, limits), logits, OUTSIDE_LOGIT)
    candidates = jnp.abs(jax.lax.stop_gradient(logits[..., : plan.num_candidates]))
    if precision != jax.lax.Precision.HIGHEST:
        candidates = candidates.astype(jnp.bfloat16)
    chosen = smallest_k_weights(candidates, plan.num_chosen)
    fresh = jnp.ones((b, m, plan.num_fresh), jnp.float32)
    weights = jnp.concatenate([chosen, fresh], axis=-1)
    bce = jnp.sum(weights * bce_with_logits(logits, sampled.truth), axis=-1)
    return {
        "mask_bce": bce / (plan.num_chosen + plan.num_fresh),
        "dice": dice_loss(logits, sampled.truth, weights),
    }


def over_layers(
    terms_of: Callable[[Any, Sampled], Any],
    layers: Any,
    sample_at: Callable[[Array], Sampled],
    points: Float[Array, "s b g j 2"],
) -> Any:
    """Evaluates a loss layer by layer, keeping one layer in memory.

    Args:
        terms_of: (slice of `layers`, sampled) -> pytree of scalars.
        layers: pytree with a leading layer axis l.
        sample_at: reads maps at points [b, g, j, 2].
        points: s is 1 (the maps are read once for all layers) or l.

    Returns:
        The same pytree with a leading axis l. The backward pass recomputes each layer except the
        thresholds of the point selection.
    """
    policy = jax.checkpoint_policies.save_only_these_names(KTH_SMALLEST)
    if points.shape[0] == 1:
        shared = sample_at(points[0])

        def body(carry, one):
            return carry, terms_of(one, shared)

        over = layers
    else:

        def body(carry, one_and_points):
            one, own_points = one_and_points
            return carry, terms_of(one, sample_at(own_points))

        over = (layers, points)
    _, terms = jax.lax.scan(jax.checkpoint(body, policy=policy, prevent_cse=False), None, over)
    return terms


def mean_over(values: Float[Array, "..."], weights: Float[Array, "..."]) -> Float[Array, ""]:
    """Weighted sum divided by the total weight of the global batch, which counts as at least 1."""
    return jnp.sum(values * weights) / jnp.maximum(jnp.sum(weights), 1.0)


def _rows_at(values: Array, index: Int[Array, "b m"]) -> Array:
    return jax.vmap(lambda v, i: v[i])(values, index)
