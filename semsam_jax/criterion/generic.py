"""Loss of the generic stream: queries, proposals and denoising slots.

Matching is repeated in every layer. Class losses cover the classes for which the image is
annotated; an unmatched query is a negative for all of them. A query matched to a part trains the
part and owner heads but not the object head; one whose instance has no label trains no class head
(`terms.class_heads`).

An image may have more instances than there are queries. Those left over get no query and no loss,
but still count in the means, as in the original.

Source: docs/reference.md, section 13; arXiv 2203.03605 for denoising and proposals.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from semsam_jax.core.structs import Batch, GenericPredictions, Predictions
from semsam_jax.criterion.points import Sampled, mask_terms, mean_over, over_layers, sample
from semsam_jax.criterion.terms import CriterionConfig, box_terms, class_heads, class_term


def generic_losses(
    predictions: GenericPredictions,
    mask_features: Float[Array, "b h w d"],
    rows: Batch,
    query_of_instance: Int[Array, "b l n"],
    points: Float[Array, "s b g j 2"],
    config: CriterionConfig,
) -> dict[str, dict[str, Float[Array, "..."]]]:
    """Unweighted loss terms in the groups "layers", "denoising" and "proposals".

    Box and mask terms are means over the instances (or denoising slots) of the global
    batch, mask terms over those with masks. A class term is the focal loss summed over queries and
    classes, divided by the number of instances that train that head.

    Args:
        predictions: all layers [l+1], proposals and, in training, denoising.
        mask_features: of the pyramid, at stride 4.
        rows: the generic rows.
        query_of_instance: the assignment for every layer, then for the proposals; negative for an
            instance without a query.
        points: candidates, then fresh points (`PointPlan.draw`). s is 1 or l + 2 (layers,
            then proposals); g is 1 or n + slots (instances, then denoising slots).
        config: settings.

    Returns:
        Group -> term -> [l + 1], or [1] for the proposals. "denoising" is absent without
        denoising predictions.
    """
    b, n = rows.instance_valid.shape
    layers, denoising = predictions.layers, predictions.denoising
    num_layers = layers.boxes.shape[0]
    of_layer = jnp.moveaxis(query_of_instance, 1, 0)
    instance = jnp.broadcast_to(jnp.arange(n), (b, n))
    is_instance = rows.instance_valid
    valid, everyone = [is_instance], [instance]
    if denoising is not None:
        valid.append(predictions.denoising_queries.valid)
        everyone.append(predictions.denoising_queries.instance)
    everyone, valid = jnp.concatenate(everyone, axis=1), jnp.concatenate(valid, axis=1)

    def terms_of(one: tuple, sampled: Sampled) -> dict[str, dict[str, Array]]:
        queries, assigned, slots = one
        own = [
            jax.vmap(lambda v, i: v[i])(x, assigned) for x in (queries.mask_embed, queries.boxes)
        ]
        if slots is not None:
            extra = (slots.mask_embed, slots.boxes)
            own = [jnp.concatenate(two, axis=1) for two in zip(own, extra, strict=True)]
        count = own[0].shape[1]
        terms = mask_terms(own[0], sampled, config.plan, precision=config.precision)
        terms |= box_terms(own[1], jax.vmap(lambda v, i: v[i])(rows.boxes, everyone[:, :count]))
        if n > queries.boxes.shape[1]:
            has_query = jnp.pad(assigned >= 0, ((0, 0), (0, count - n)), constant_values=True)
            terms = {name: jnp.where(has_query, value, 0.0) for name, value in terms.items()}
        weight = valid[:, :count].astype(jnp.float32)
        with_masks = weight * rows.has_masks[:, None]
        groups = {"layers": slice(0, n), "denoising": slice(n, count)}
        out: dict[str, dict[str, Array]] = {}
        for group, part in groups.items() if slots is not None else [("layers", slice(0, n))]:
            out[group] = {
                name: mean_over(
                    value[:, part],
                    (with_masks if name in ("mask_bce", "dice") else weight)[:, part],
                )
                for name, value in terms.items()
            }
        out["layers"] |= _query_classes(queries, rows, assigned, is_instance)
        if slots is not None:
            out["denoising"] |= _slot_classes(
                slots, rows, everyone[:, n:], valid[:, n:], config.denoising_by_slots
            )
        return out

    def sample_at(count: int, at: Float[Array, "b g j 2"]) -> Sampled:
        own = at if at.shape[1] == 1 else at[:, :count]
        return sample(mask_features, rows, everyone[:, :count], own)

    every = everyone.shape[1]
    out = over_layers(
        terms_of,
        (layers, of_layer[:num_layers], denoising),
        lambda at: sample_at(every, at),
        points if points.shape[0] == 1 else points[:num_layers],
    )
    last = (predictions.proposals, of_layer[num_layers], None)
    proposals = over_layers(
        terms_of,
        jax.tree.map(lambda x: x[None], last),
        lambda at: sample_at(n, at),
        points[-1:],
    )
    return out | {"proposals": proposals["layers"]}


def _query_classes(
    queries: Predictions,
    rows: Batch,
    assigned: Int[Array, "b n"],
    is_instance: Bool[Array, "b n"],
) -> dict[str, Float[Array, ""]]:
    """Class terms over all queries except those whose instance does not train the head."""
    num_queries = queries.boxes.shape[1]
    is_own = (assigned[:, None, :] == jnp.arange(num_queries)[None, :, None]) & is_instance[:, None]
    is_owned = is_own.any(-1)
    out = {}
    for head in class_heads(queries, rows):
        # At most one instance owns a query, so the largest label is the label.
        label = jnp.max(jnp.where(is_own, head.label[:, None, :], -1), axis=-1)
        is_taught = jnp.any(is_own & head.teaches[:, None], axis=-1)
        if head.learns_unowned:
            is_taught = is_taught | ~is_owned
        focal = class_term(head, label, is_owned)
        has_head = jnp.any(head.owned, axis=1, keepdims=True) | (head.label >= 0)
        count = jnp.sum((is_instance & head.teaches & has_head).astype(jnp.float32))
        out[head.name] = jnp.sum(focal * is_taught) / jnp.maximum(count, 1.0)
    return out


def _slot_classes(
    slots: Predictions,
    rows: Batch,
    instance: Int[Array, "b g"],
    valid: Bool[Array, "b g"],
    by_slots: bool,
) -> dict[str, Float[Array, ""]]:
    """Class terms of the denoising slots."""
    out = {}
    for head in class_heads(slots, rows):
        label = jnp.take_along_axis(head.label, instance, axis=1)
        is_taught = jnp.take_along_axis(head.teaches, instance, axis=1)
        focal = class_term(head, label, jnp.ones((1, 1), bool))
        num_classes = head.owned.sum(axis=1, keepdims=True)
        weight = (valid & is_taught & ((num_classes > 0) | (label >= 0))).astype(jnp.float32)
        if by_slots:
            out[head.name] = mean_over(focal, weight)
        else:
            by_row = jnp.sum(focal * weight / jnp.maximum(num_classes, 1), axis=1)
            out[head.name] = jnp.mean(by_row)
    return out
