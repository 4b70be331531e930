"""Loss of the interactive stream: prompts, their tokens and their targets.

Only tokens that got a target learn; the others get no loss of any kind, unless
`score_all_tokens` lets every token learn how well its mask fits the best target. The assignment of
the last layer serves all layers.

Source: SPEC (viii); class terms as the paper means them (arXiv 2307.04767, section 3),
since the released code of those cannot run.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from semsam_jax.core.errors import ShapeError
from semsam_jax.core.structs import Batch, Predictions
from semsam_jax.criterion.near_points import area_weights
from semsam_jax.criterion.points import Sampled, mask_terms, mean_over, over_layers, sample
from semsam_jax.criterion.terms import CriterionConfig, box_terms, class_heads, class_term


def interactive_losses(
    predictions: Predictions,
    mask_features: Float[Array, "b h w d"],
    rows: Batch,
    token_of_target: Int[Array, "b p t"] | None,
    points: Float[Array, "s b g j 2"],
    config: CriterionConfig,
) -> dict[str, Float[Array, " l"]]:
    """Loss terms of every layer, unweighted.

    Each term is a mean over the (prompt, target) pairs of the global batch that define it:
    all for boxes, those with masks for masks and quality, those with a label that their
    data set annotates for a class head. The mean of no pair is 0.

    Args:
        predictions: all layers, leading axes [l, b, p, k].
        mask_features: the pyramid's, stride 4.
        rows: the interactive rows.
        token_of_target: the assignment; None under the many-to-one rule.
        points: candidates, then fresh points (`PointPlan.draw`). s is 1 or l; g is 1 or
            the number of slots: p*t pairs, or p*k tokens under the many-to-one rule.
        config: settings.

    Raises:
        ShapeError: many-to-one with more than one target per prompt, or an assignment
            that is missing or not wanted.
    """
    _, b, p, k = predictions.pred_ious.shape
    if config.many_to_one != (token_of_target is None):
        raise ShapeError(
            f"interactive_losses: many_to_one is {config.many_to_one} and token_of_target is "
            f"{'missing' if token_of_target is None else 'given'}; it is for many-to-many only."
        )
    targets = rows.prompt_targets
    if config.score_all_tokens and (config.many_to_one or points.shape[2] != 1):
        raise ShapeError(
            "interactive_losses: score_all_tokens wants points shared by all pairs of an image "
            "and the many-to-many rule; set many_to_one=False."
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

    area = None
    if config.score_all_tokens and config.near_prompts:
        area = area_weights(points[0, :, 0], rows, config.near_prompts)

    def terms_of(one: Predictions, sampled: Sampled) -> dict[str, Array]:
        flat = jax.tree.map(lambda x: x.reshape(b, p * k, *x.shape[3:]), one)
        own = jax.tree.map(lambda x: jax.vmap(lambda v, i: v[i])(x, row_of_token), flat)
        truth_boxes = jnp.take_along_axis(rows.boxes, instance[..., None], axis=1)
        terms = mask_terms(own.mask_embed, sampled, config.plan) | box_terms(own.boxes, truth_boxes)
        quality = 1.0 - terms["dice"]
        if config.detach_iou_target:
            quality = jax.lax.stop_gradient(quality)
        terms["iou"] = jnp.square(own.pred_ious.astype(jnp.float32) - quality)

        every_token = None
        if config.score_all_tokens:
            best = _best_iou(flat.mask_embed.reshape(b, p, k, -1), sampled, is_pair, area)
            terms["iou"] = jnp.square(flat.pred_ious.astype(jnp.float32) - best.reshape(b, p * k))
            has_target = is_pair.any(-1) & rows.has_masks[:, None]
            every_token = jnp.repeat(has_target.astype(jnp.float32), k, axis=1)

        weight = pairs
        if config.many_to_one:
            weight = pairs * _best_token(terms["mask_bce"] + terms["dice"], p, k)
        with_masks = weight * rows.has_masks[:, None]
        weights = {name: with_masks for name in ("mask_bce", "dice", "iou")}
        weights |= {name: weight for name in ("l1", "giou")}
        if every_token is not None:
            weights["iou"] = every_token
        for head in class_heads(own, rows):
            label = jnp.take_along_axis(head.label, instance, axis=1)
            terms[head.name] = class_term(head.logits, label, head.vocab_valid)
            weights[head.name] = weight * (label >= 0)
        return {name: mean_over(terms[name], weights[name]) for name in terms}

    return over_layers(
        terms_of, predictions, lambda at: sample(mask_features, rows, instance, at), points
    )


def _best_iou(
    mask_embed: Float[Array, "b p k d"],
    sampled: Sampled,
    is_pair: Bool[Array, "b p t"],
    area: Float[Array, "b j"] | None,
) -> Float[Array, "b p k"]:
    """IoU of each token's mask with the target that it fits best.

    Taken at the points, each of which stands for `area`; None for the same of all.
    """
    b, p, t = is_pair.shape
    embed = jax.lax.stop_gradient(mask_embed.astype(jnp.float32))
    logits = jnp.einsum("bpkd,bjd->bpkj", embed, jax.lax.stop_gradient(sampled.features[:, 0]))
    mask = (logits > 0).astype(jnp.float32)
    truth = sampled.truth.reshape(b, p, t, -1)
    weighted = mask if area is None else mask * area[:, None, None]
    truth_area = truth.sum(-1) if area is None else jnp.einsum("bptj,bj->bpt", truth, area)
    inter = jnp.einsum("bpkj,bptj->bpkt", weighted, truth)
    union = weighted.sum(-1)[..., :, None] + truth_area[..., None, :] - inter
    iou = inter / jnp.maximum(union, 1e-6)
    return jnp.where(is_pair[:, :, None, :], iou, 0.0).max(-1)


def _best_token(loss: Float[Array, "b m"], p: int, k: int) -> Float[Array, "b m"]:
    """1 at the token with the smallest loss of each prompt, 0 at the others."""
    best = jnp.argmin(jax.lax.stop_gradient(loss).reshape(-1, p, k), axis=-1)
    return jax.nn.one_hot(best, k, dtype=jnp.float32).reshape(loss.shape)
