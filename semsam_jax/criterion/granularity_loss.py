"""Granularities requested in training, and the loss of the masks predicted for them.

The masks under a prompt form its chain. A mask of area A has in it the granularity

    g = (sqrt(A) - sqrt(A_min)) / (sqrt(A_max) - sqrt(A_min))

as in UnSAMv2 (arXiv 2511.13714). The only mask under a click has no granularity: it may be a whole,
or a part whose whole is not annotated. For such clicks two random granularities are requested, and
their predictions are only compared with each other: with g1 < g2, the mask for g1 must lie inside
that for g2,

    nesting = sum of max(0, p1 - p2) / sum of p1   over points, p1 and p2 the probabilities

A box determines its mask, so the target is the same for any granularity.

Pseudo targets (`Batch.pseudo_targets`) complete the chain of a single mask: the mask becomes the
whole, g = 1, and its pseudo parts are requested like annotated masks.
"""

import typing

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, PRNGKeyArray

from semsam_jax.core.structs import Batch, Predictions
from semsam_jax.criterion.cells import at_cells, cell_ious
from semsam_jax.criterion.points import Sampled, mask_terms, mean_over, over_layers, sample
from semsam_jax.criterion.terms import CriterionConfig, box_terms
from semsam_jax.ops.bitmasks import mask_areas

NUM_REQUESTED = 2
"""Granularities of a prompt in a step."""

JITTER = 0.05
"""Standard deviation of the noise added to the granularity of a mask."""


@typing.no_type_check
@struct.dataclass
class RequestedGranularities:
    """Granularities requested for the prompts of a batch, and their targets.

    Attributes:
        granularity: float32 [b,p,m] in 0..1.
        instance: int32 [b,p,m] the target mask, -1 for none.
    """

    granularity: jax.Array
    instance: jax.Array


def chain_places(rows: Batch) -> Float[Array, "b p t"]:
    """Granularity of each target of each prompt; nan in a chain of one size, and without target."""
    size = jnp.sqrt(mask_areas(rows.mask_bits).astype(jnp.float32))
    is_target = rows.prompt_targets >= 0
    own = jnp.take_along_axis(size[:, None], jnp.maximum(rows.prompt_targets, 0), axis=-1)
    low = jnp.where(is_target, own, jnp.inf).min(-1, keepdims=True)
    span = jnp.where(is_target, own, -jnp.inf).max(-1, keepdims=True) - low
    place = (own - low) / jnp.where(span > 0, span, 1.0)
    return jnp.where(is_target & (span > 0), place, jnp.nan)


def request_granularities(rows: Batch, key: PRNGKeyArray) -> RequestedGranularities:
    """Draws up to `NUM_REQUESTED` different targets of each prompt, and requests roughly their
    granularities.

    Pseudo targets are targets only here. Without a granularity, a random one is requested, which
    has no target unless the prompt is a box.

    Args:
        rows: the interactive rows.
        key: random key.
    """
    keys = jax.random.split(key, 3)
    targets = jnp.maximum(rows.prompt_targets, rows.pseudo_targets)
    missing = max(0, NUM_REQUESTED - targets.shape[-1])  # with data.max_targets=1
    targets = jnp.pad(targets, ((0, 0), (0, 0), (0, missing)), constant_values=-1)
    rows = rows.replace(prompt_targets=targets)
    is_target = (targets >= 0) & rows.prompt_valid[..., None] & rows.has_masks[:, None, None]
    lot = jnp.where(is_target, jax.random.uniform(keys[0], targets.shape), 2.0)
    order = jnp.argsort(lot, axis=-1)[..., :NUM_REQUESTED]
    place = jnp.take_along_axis(chain_places(rows), order, axis=-1)
    place += JITTER * jax.random.normal(keys[1], place.shape)
    is_box = rows.prompt_is_box[..., None]
    is_placed = ~jnp.isnan(place) & ~is_box
    anywhere = jax.random.uniform(keys[2], place.shape)
    granularity = jnp.where(is_placed, jnp.clip(place, 0.0, 1.0), anywhere)
    is_meant = jnp.take_along_axis(is_target, order, axis=-1) & (is_placed | is_box)
    instance = jnp.where(is_meant, jnp.take_along_axis(targets, order, axis=-1), -1)
    return RequestedGranularities(granularity=granularity.astype(jnp.float32), instance=instance)


def granularity_losses(
    predictions: Predictions,
    mask_features: Float[Array, "b h w d"],
    rows: Batch,
    requested: RequestedGranularities,
    points: Float[Array, "s b g j 2"],
    config: CriterionConfig,
) -> dict[str, Float[Array, " l"]]:
    """Unweighted loss terms of every layer, means over the requests with a target.

    The nesting term is a mean over all clicks. The predicted IoU is trained in the last layer only,
    with the IoU over all cells of the image.

    Args:
        predictions: for the requested granularities, all layers, leading axes [l, b, p, m].
        mask_features: of the pyramid, at stride 4.
        rows: the interactive rows.
        requested: the requested granularities and their targets.
        points: see `interactive_losses`.
        config: settings.
    """
    b = rows.size_hw.shape[0]
    instance = jnp.maximum(requested.instance, 0).reshape(b, -1)
    counts = (requested.instance >= 0).astype(jnp.float32).reshape(b, -1)
    is_click = rows.prompt_valid & ~rows.prompt_is_box & rows.has_masks[:, None]
    truth_boxes = jnp.take_along_axis(rows.boxes, instance[..., None], axis=1)

    def terms_of(one: Predictions, sampled: Sampled) -> dict[str, Array]:
        own = jax.tree.map(lambda x: x.reshape(b, -1, *x.shape[3:]), one)
        terms = mask_terms(
            own.mask_embed, sampled, config.plan, own.mask_limits, precision=config.precision
        )
        terms |= box_terms(own.boxes, truth_boxes)
        means = {name: mean_over(values, counts) for name, values in terms.items()}
        crossing = _crossing(one, sampled, requested, config)
        return means | {"nesting": mean_over(crossing, is_click.astype(jnp.float32))}

    terms = over_layers(
        terms_of, predictions, lambda at: sample(mask_features, rows, instance, at), points
    )
    last = jax.tree.map(lambda x: x[-1], predictions)
    truth, in_image = at_cells(rows, mask_features.shape[1:3])
    ious = cell_ious(last, mask_features, truth, in_image, config.precision)
    own = jnp.take_along_axis(ious.reshape(b, -1, ious.shape[-1]), instance[..., None], axis=-1)
    said = last.pred_ious.astype(jnp.float32).reshape(b, -1)
    quality = mean_over(jnp.square(said - own[..., 0]), counts)
    terms["iou"] = jnp.zeros_like(terms["dice"]).at[-1].set(quality)
    return terms


def _crossing(
    predictions: Predictions,
    sampled: Sampled,
    requested: RequestedGranularities,
    config: CriterionConfig,
) -> Float[Array, "b p"]:
    """Share of the answer to the smaller of two granularities that lies outside the other."""
    logits = jnp.einsum(
        "bpmd,bjd->bpmj",
        predictions.mask_embed.astype(jnp.float32),
        sampled.features[:, 0],
        precision=config.precision,
    )
    first, second = jnp.moveaxis(jax.nn.sigmoid(logits), 2, 0)
    is_swapped = (requested.granularity[..., 1] < requested.granularity[..., 0])[..., None]
    small = jnp.where(is_swapped, second, first)
    large = jnp.where(is_swapped, first, second)
    outside = jnp.maximum(small - large, 0.0).sum(-1)
    return outside / jnp.maximum(small.sum(-1), 1.0)
