"""Matching costs, computed on the device.

Masks are compared at random points and never materialised. Costs are float32 and carry no gradient.
Padding is not masked here: the host skips it (`transport.assign`).

Source: docs/reference.md, section 8 for prompts, 13 for generic queries.
"""

import typing

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from semsam_jax.core.structs import Batch, GenericPredictions, Predictions
from semsam_jax.ops.bitmasks import sample_bits
from semsam_jax.ops.boxes import (
    OUTSIDE_LOGIT,
    cxcywh_to_xyxy,
    pairwise_generalized_iou,
    points_within,
)
from semsam_jax.ops.losses import focal_class_cost, pairwise_bce, pairwise_dice
from semsam_jax.ops.point_sample import sample_points


@typing.runtime_checkable
class CostWeights(typing.Protocol):
    """Weights of the cost terms; the criterion's `LossWeights` are the usual ones."""

    mask_bce: float
    dice: float
    l1: float
    giou: float
    object_class: float
    part_class: float
    owner_class: float


def prompt_costs(
    predictions: Predictions,
    mask_features: Float[Array, "b h w d"],
    rows: Batch,
    points: Float[Array, "b j 2"],
    weights: CostWeights,
    precision: jax.lax.Precision = jax.lax.Precision.HIGHEST,
) -> Float[Array, "b p k t"]:
    """Cost of assigning each target of a prompt to each of its tokens.

    Args:
        predictions: last layer, leading axes [b, p, k].
        mask_features: of the pyramid, at stride 4.
        rows: the interactive rows. Costs of padded targets are meaningless.
        points: uniform (x, y), fractions of the canvas, shared by all pairs of an image.
        weights: of the terms. Class terms apply to targets with a label that their dataset
            annotates, mask terms to rows with masks.
        precision: of the matrix products (`CriterionConfig.precision`).
    """
    predictions, mask_features = jax.lax.stop_gradient((predictions, mask_features))
    target = jnp.maximum(rows.prompt_targets, 0)
    features = sample_points(mask_features, points)
    truth = sample_bits(rows.mask_bits, points)
    logits = _logits(predictions.mask_embed, features, precision)
    if predictions.mask_limits is not None:
        # All tokens of a prompt share its limits.
        inside = points_within(points[:, None], predictions.mask_limits[:, :, 0])
        logits = jnp.where(inside[:, :, None], logits, OUTSIDE_LOGIT)
    return _pair_costs(
        predictions=predictions,
        logits=logits,
        truth=_of_instance(truth, target),
        boxes=_of_instance(rows.boxes, target),
        object_id=_of_instance(rows.object_id, target),
        part_id=_of_instance(rows.part_id, target),
        rows=rows,
        weights=weights,
        precision=precision,
    )


def query_costs(
    predictions: GenericPredictions,
    mask_features: Float[Array, "b h w d"],
    rows: Batch,
    points: Float[Array, "b j 2"],
    weights: CostWeights,
    precision: jax.lax.Precision = jax.lax.Precision.HIGHEST,
) -> Float[Array, "b l q n"]:
    """Cost of assigning each instance to each query, for all layers and then the proposals.

    Layers are processed one at a time to save memory. Arguments as in `prompt_costs`, for generic
    rows.
    """
    features = sample_points(jax.lax.stop_gradient(mask_features), points)
    truth = sample_bits(rows.mask_bits, points)
    every = jax.tree.map(
        lambda layers, last: jnp.concatenate([layers, last[None]]),
        predictions.layers,
        predictions.proposals,
    )
    costs = jax.lax.map(
        lambda one: _layer_costs(one, features, truth, rows, weights, precision), every
    )
    return jnp.moveaxis(costs, 0, 1)


def _layer_costs(
    predictions: Predictions,
    features: Float[Array, "b j d"],
    truth: Float[Array, "b n j"],
    rows: Batch,
    weights: CostWeights,
    precision: jax.lax.Precision,
) -> Float[Array, "b q n"]:
    predictions = jax.lax.stop_gradient(predictions)
    return _pair_costs(
        predictions=predictions,
        logits=_logits(predictions.mask_embed, features, precision),
        truth=truth,
        boxes=rows.boxes,
        object_id=rows.object_id,
        part_id=rows.part_id,
        rows=rows,
        weights=weights,
        precision=precision,
    )


def _pair_costs(
    *,
    predictions: Predictions,
    logits: Float[Array, "b *p k j"],
    truth: Float[Array, "b *p t j"],
    boxes: Float[Array, "b *p t 4"],
    object_id: Int[Array, "b *p t"],
    part_id: Int[Array, "b *p t"],
    rows: Batch,
    weights: CostWeights,
    precision: jax.lax.Precision,
) -> Float[Array, "b *p k t"]:
    """Costs of all pairs of predictions and targets."""
    own = predictions.boxes.astype(jnp.float32)
    distance = jnp.abs(own[..., :, None, :] - boxes[..., None, :, :]).sum(-1)
    overlap = pairwise_generalized_iou(cxcywh_to_xyxy(own), cxcywh_to_xyxy(boxes))
    cost = weights.l1 * distance - weights.giou * overlap
    mask_cost = weights.mask_bce * pairwise_bce(logits, truth, precision)
    mask_cost += weights.dice * pairwise_dice(logits, truth, precision)
    has_masks = rows.has_masks.reshape(-1, *[1] * (cost.ndim - 1))
    cost += jnp.where(has_masks, mask_cost, 0.0)
    counts = rows.vocab_valid | (rows.vocab_owned > 0)
    whole_id = object_id
    if predictions.owner_logits is not None:
        # The owner head predicts what a part belongs to; the object head ignores parts.
        whole_id = jnp.where(part_id >= 0, -1, object_id)
        owner_id = jnp.where(part_id >= 0, object_id, -1)
        valid = counts[:, : predictions.owner_logits.shape[-1]]
        cost += weights.owner_class * _class_costs(predictions.owner_logits, owner_id, valid)
    if predictions.object_logits is not None:
        valid = counts[:, : predictions.object_logits.shape[-1]]
        cost += weights.object_class * _class_costs(predictions.object_logits, whole_id, valid)
    if predictions.part_logits is not None:
        num_parts = predictions.part_logits.shape[-1]
        first = counts.shape[1] - num_parts
        valid = counts[:, first:]
        cost += weights.part_class * _class_costs(predictions.part_logits, part_id - first, valid)
    return cost


def _class_costs(
    logits: Float[Array, "b *p k v"], label: Int[Array, "b *p t"], valid: Array
) -> Float[Array, "b *p k t"]:
    """Focal cost of each target's class; zero if it has no label or its class is not annotated."""
    if not logits.shape[-1]:
        return jnp.zeros((*logits.shape[:-1], label.shape[-1]), jnp.float32)
    index = jnp.maximum(label, 0)
    cost = focal_class_cost(logits.astype(jnp.float32))
    chosen = jnp.broadcast_to(index[..., None, :], (*logits.shape[:-1], label.shape[-1]))
    cost = jnp.take_along_axis(cost, chosen, axis=-1)
    flat = index.reshape(index.shape[0], -1)
    is_valid = jnp.take_along_axis(valid, flat, axis=1).reshape(index.shape) & (label >= 0)
    return jnp.where(is_valid[..., None, :], cost, 0.0)


def _of_instance(values: Array, index: Int[Array, "b p t"]) -> Array:
    """Gathers values of instances [b, n, ...] for the targets of prompts: [b, p, t, ...]."""
    flat = index.reshape(index.shape[0], -1)
    picked = jax.vmap(lambda v, i: v[i])(values, flat)
    return picked.reshape(*index.shape, *values.shape[2:])


def _logits(
    mask_embed: Float[Array, "b *p k d"],
    features: Float[Array, "b j d"],
    precision: jax.lax.Precision,
) -> Float[Array, "b *p k j"]:
    return jnp.einsum(
        "b...d,bjd->b...j",
        mask_embed.astype(jnp.float32),
        features,
        precision=precision,
    )
