"""Loss of the interactive stream: prompts, their tokens and their targets.

Only tokens with an assigned target receive a loss, unless `score_all_tokens` trains the predicted
IoU of every token. The assignment of the last layer is used for all layers.

Source: docs/reference.md, section 9; class terms follow the paper (arXiv 2307.04767, section 3),
since the released code for them does not run.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from semsam_jax.core.errors import ShapeError
from semsam_jax.core.structs import Batch, Predictions
from semsam_jax.criterion.cells import at_cells, cell_ious
from semsam_jax.criterion.points import Sampled, mask_terms, mean_over, over_layers, sample
from semsam_jax.criterion.terms import CriterionConfig, box_terms, class_heads, class_term

# Cells of the mask features: a target below this area is no likelier to be meant.
_SMALLEST_AREA = 4.0
_NO_SHARE = 1e-9  # keeps prompts without targets finite


def interactive_losses(
    predictions: Predictions,
    mask_features: Float[Array, "b h w d"],
    rows: Batch,
    token_of_target: Int[Array, "b p t"] | None,
    points: Float[Array, "s b g j 2"],
    config: CriterionConfig,
    class_weights: Float[Array, " v"] | None = None,
) -> dict[str, Float[Array, " l"]]:
    """Unweighted loss terms of every layer.

    Each term is a mean over (prompt, target) pairs of the global batch: all pairs for boxes, those
    with masks for mask and IoU terms, those with an annotated label for class terms. An empty mean
    is 0.

    Args:
        predictions: all layers, leading axes [l, b, p, k].
        mask_features: of the pyramid, at stride 4.
        rows: the interactive rows.
        token_of_target: the assignment; None under the many-to-one rule.
        points: candidates, then fresh points (`PointPlan.draw`). s is 1 or l; g is 1 or
            the number of slots: p*t pairs, or p*k tokens under the many-to-one rule.
        config: settings.
        class_weights: how much a labelled pair counts in the mean of a class head, by its class;
            all alike by default.

    Raises:
        ShapeError: many-to-one with more than one target per prompt, or an assignment that is
            missing or unexpected.
    """
    _, b, p, k = predictions.pred_ious.shape
    if config.many_to_one != (token_of_target is None):
        raise ShapeError(
            f"interactive_losses: many_to_one is {config.many_to_one} and token_of_target is "
            f"{'missing' if token_of_target is None else 'given'}; it is for many-to-many only."
        )
    targets = rows.prompt_targets
    if config.score_all_tokens and config.many_to_one:
        raise ShapeError(
            "interactive_losses: score_all_tokens is for the many-to-many rule; set "
            "many_to_one=False."
        )
    if config.many_to_one:
        if targets.shape[-1] != 1:
            raise ShapeError(
                f"interactive_losses: many_to_one wants one target per prompt, got "
                f"{targets.shape[-1]}; set data.max_targets=1."
            )
        targets = jnp.broadcast_to(targets, (b, p, k))
        token = jnp.broadcast_to(jnp.arange(k), (b, p, k))
    else:
        token = token_of_target
    is_pair = (targets >= 0) & rows.prompt_valid[..., None]
    pairs = is_pair.astype(jnp.float32).reshape(b, -1)
    instance = jnp.maximum(targets, 0).reshape(b, -1)
    row_of_token = (jnp.arange(p)[None, :, None] * k + token).reshape(b, -1)

    cells = at_cells(rows, mask_features.shape[1:3]) if config.score_all_tokens else None

    def quality_of_all(one: Predictions) -> tuple[Array, Array]:
        """IoU term [b, p, k] of every token of a layer, and which of them count."""
        target = _iou_targets(one, mask_features, *cells, targets, is_pair, config)
        has_target = is_pair.any(-1) & rows.has_masks[:, None]
        counts = jnp.broadcast_to(has_target[..., None], target.shape).astype(jnp.float32)
        return jnp.square(one.pred_ious.astype(jnp.float32) - target), counts

    def terms_of(one: Predictions, sampled: Sampled) -> dict[str, Array]:
        flat = jax.tree.map(lambda x: x.reshape(b, p * k, *x.shape[3:]), one)
        own = jax.tree.map(lambda x: jax.vmap(lambda v, i: v[i])(x, row_of_token), flat)
        truth_boxes = jnp.take_along_axis(rows.boxes, instance[..., None], axis=1)
        terms = mask_terms(
            own.mask_embed, sampled, config.plan, own.mask_limits, precision=config.precision
        )
        terms |= box_terms(own.boxes, truth_boxes)
        quality = 1.0 - terms["dice"]
        if config.detach_iou_target:
            quality = jax.lax.stop_gradient(quality)
        terms["iou"] = jnp.square(own.pred_ious.astype(jnp.float32) - quality)

        weight = pairs
        if config.many_to_one:
            weight = pairs * _best_token(terms["mask_bce"] + terms["dice"], p, k)
        with_masks = weight * rows.has_masks[:, None]
        weights = {name: with_masks for name in ("mask_bce", "dice", "iou")}
        weights |= {name: weight for name in ("l1", "giou")}
        if config.score_all_tokens:
            terms["iou"], weights["iou"] = jnp.zeros((b, p, k)), jnp.zeros((b, p, k))
            if config.iou_every_layer:
                terms["iou"], weights["iou"] = quality_of_all(one)
        for head in class_heads(own, rows):
            label = jnp.take_along_axis(head.label, instance, axis=1)
            is_taught = jnp.take_along_axis(head.teaches, instance, axis=1)
            terms[head.name] = class_term(head, label, jnp.ones((1, 1), bool))
            weights[head.name] = weight * ((label >= 0) & is_taught)
            if class_weights is not None:
                weights[head.name] *= class_weights[head.first + jnp.maximum(label, 0)]
        return {name: mean_over(terms[name], weights[name]) for name in terms}

    terms = over_layers(
        terms_of, predictions, lambda at: sample(mask_features, rows, instance, at), points
    )
    if config.score_all_tokens and not config.iou_every_layer:
        last = mean_over(*quality_of_all(jax.tree.map(lambda x: x[-1], predictions)))
        terms["iou"] = terms["iou"].at[-1].set(last)
    return terms


def _iou_targets(
    predictions: Predictions,
    mask_features: Float[Array, "b h w d"],
    truth: Float[Array, "b i n"],
    in_image: Bool[Array, "b n"],
    targets: Int[Array, "b p t"],
    is_pair: Bool[Array, "b p t"],
    config: CriterionConfig,
) -> Float[Array, "b p k"]:
    """Training target of each token's predicted IoU (`CriterionConfig.iou_target`)."""
    iou = cell_ious(predictions, mask_features, truth, in_image, config.precision)
    index = jnp.maximum(targets, 0)
    own = jnp.take_along_axis(iou, index[:, :, None], axis=-1)
    if config.iou_target == "best":
        return jnp.where(is_pair[:, :, None], own, 0.0).max(-1)
    own_area = jnp.take_along_axis(truth.sum(-1)[:, None], index, axis=-1)
    share = is_pair / jnp.maximum(own_area, _SMALLEST_AREA)
    share /= jnp.maximum(share.sum(-1, keepdims=True), _NO_SHARE)
    return jnp.sum(own * share[:, :, None], axis=-1)


def _best_token(loss: Float[Array, "b m"], p: int, k: int) -> Float[Array, "b m"]:
    """One-hot mask of the token with the smallest loss of each prompt."""
    best = jnp.argmin(jax.lax.stop_gradient(loss).reshape(-1, p, k), axis=-1)
    return jax.nn.one_hot(best, k, dtype=jnp.float32).reshape(loss.shape)
