"""Granularities to ask for in training, and the loss of the answers.

The masks under a prompt are its chain. A mask of area A lies in it at

    g = (sqrt(A) - sqrt(A_min)) / (sqrt(A_max) - sqrt(A_min)),   1 in a chain of one size

as UnSAMv2 (arXiv 2511.13714) places the masks of an object. A box says itself what is meant, so
that its mask is the answer to any granularity.
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

NUM_ASKED = 2
"""Granularities of a prompt in a step."""

JITTER = 0.05
"""Standard deviation of a granularity that is asked for around that of the mask."""


@typing.no_type_check
@struct.dataclass
class Asked:
    """What the prompts of a batch are asked for.

    Attributes:
        granularity: float32 [b,p,m] in 0..1.
        instance: int32 [b,p,m] the mask that is meant, -1 for none.
    """

    granularity: jax.Array
    instance: jax.Array


def chain_places(rows: Batch) -> Float[Array, "b p t"]:
    """Granularity of each target of each prompt; meaningless where there is none."""
    size = jnp.sqrt(mask_areas(rows.mask_bits).astype(jnp.float32))
    is_target = rows.prompt_targets >= 0
    own = jnp.take_along_axis(size[:, None], jnp.maximum(rows.prompt_targets, 0), axis=-1)
    low = jnp.where(is_target, own, jnp.inf).min(-1, keepdims=True)
    span = jnp.where(is_target, own, -jnp.inf).max(-1, keepdims=True) - low
    return jnp.where(span > 0, (own - low) / jnp.where(span > 0, span, 1.0), 1.0)


def ask(rows: Batch, key: PRNGKeyArray) -> Asked:
    """Draws up to `NUM_ASKED` different targets of each prompt, and asks for about their places.

    Args:
        rows: the interactive rows.
        key: random key.
    """
    keys = jax.random.split(key, 3)
    targets = rows.prompt_targets
    is_target = (targets >= 0) & rows.prompt_valid[..., None] & rows.has_masks[:, None, None]
    lot = jnp.where(is_target, jax.random.uniform(keys[0], targets.shape), 2.0)
    order = jnp.argsort(lot, axis=-1)[..., :NUM_ASKED]
    place = jnp.take_along_axis(chain_places(rows), order, axis=-1)
    place += JITTER * jax.random.normal(keys[1], place.shape)
    anywhere = jax.random.uniform(keys[2], place.shape)
    granularity = jnp.where(rows.prompt_is_box[..., None], anywhere, jnp.clip(place, 0.0, 1.0))
    is_drawn = jnp.take_along_axis(is_target, order, axis=-1)
    instance = jnp.where(is_drawn, jnp.take_along_axis(targets, order, axis=-1), -1)
    return Asked(granularity=granularity.astype(jnp.float32), instance=instance)


def asked_losses(
    predictions: Predictions,
    mask_features: Float[Array, "b h w d"],
    rows: Batch,
    asked: Asked,
    points: Float[Array, "s b g j 2"],
    config: CriterionConfig,
) -> dict[str, Float[Array, " l"]]:
    """Unweighted loss terms of every layer, means over the answers with a mask that is meant.

    The predicted IoU learns that of the mask that is meant, over all cells of the image, in the
    last layer alone.

    Args:
        predictions: of the answers, all layers, leading axes [l, b, p, m].
        mask_features: of the pyramid, at stride 4.
        rows: the interactive rows.
        asked: what they answer.
        points: see `interactive_losses`.
        config: settings.
    """
    b = rows.size_hw.shape[0]
    instance = jnp.maximum(asked.instance, 0).reshape(b, -1)
    counts = (asked.instance >= 0).astype(jnp.float32).reshape(b, -1)
    truth_boxes = jnp.take_along_axis(rows.boxes, instance[..., None], axis=1)

    def terms_of(one: Predictions, sampled: Sampled) -> dict[str, Array]:
        own = jax.tree.map(lambda x: x.reshape(b, -1, *x.shape[3:]), one)
        terms = mask_terms(
            own.mask_embed, sampled, config.plan, own.mask_limits, precision=config.precision
        )
        terms |= box_terms(own.boxes, truth_boxes)
        return {name: mean_over(values, counts) for name, values in terms.items()}

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
