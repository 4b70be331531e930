"""The total loss and its logged terms."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from semsam_jax.core.structs import Assignment, StreamBatch, StreamOutputs
from semsam_jax.criterion.generic import generic_losses
from semsam_jax.criterion.granularity_loss import RequestedGranularities, granularity_losses
from semsam_jax.criterion.interactive import interactive_losses
from semsam_jax.criterion.prompt_points import draw_points
from semsam_jax.criterion.terms import CriterionConfig, LossWeights

__all__ = ["CriterionConfig", "LossWeights", "total_loss", "weighted_sum"]


def total_loss(
    outputs: StreamOutputs,
    batch: StreamBatch,
    assignment: Assignment,
    key: PRNGKeyArray,
    config: CriterionConfig,
    class_weights: Float[Array, " v"] | None = None,
    requested: RequestedGranularities | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Weighted sum of all terms of both streams and all layers.

    Args:
        outputs: predictions and mask features of the streams.
        batch: the rows that the outputs belong to.
        assignment: of targets to tokens and of instances to queries.
        key: for the loss points.
        config: settings.
        class_weights: of the names of prompts, see `interactive_losses`.
        requested: the granularities that `outputs.requested` answers.

    Returns:
        (loss, metrics). Metrics are unweighted terms of the last layer
        (`interactive/mask_bce`, `generic/dice`, `denoising/l1`, `proposals/giou`, ...),
        the weighted sum of each stream (`interactive/total`), the number of pairs and
        instances behind them, and `loss`.
    """
    keys = jax.random.split(key)
    total = jnp.zeros((), jnp.float32)
    metrics: dict[str, Array] = {}
    if batch.interactive is not None:
        rows = batch.interactive
        plan, share = config.plan, config.prompt_point_ratio
        points = draw_points(keys[0], plan.num_candidates + plan.num_fresh, rows, share)
        terms = interactive_losses(
            outputs.prompts,
            outputs.prompt_features,
            rows,
            assignment.token_of_target,
            points[None, :, None],
            config,
            class_weights,
        )
        own = weighted_sum(terms, config.weights)
        total += config.interactive * own
        metrics |= _last_layer("interactive", terms) | {"interactive/total": own}
        is_pair = (rows.prompt_targets >= 0) & rows.prompt_valid[..., None]
        metrics["interactive/num_pairs"] = is_pair.sum().astype(jnp.float32)
        if outputs.requested is not None:
            terms = granularity_losses(
                outputs.requested,
                outputs.prompt_features,
                rows,
                requested,
                points[None, :, None],
                config,
            )
            own = weighted_sum(terms, config.weights)
            total += config.interactive * config.granularity * own
            metrics |= _last_layer("granularity", terms) | {"granularity/total": own}
            is_pseudo = (rows.pseudo_targets >= 0) & rows.prompt_valid[..., None]
            metrics["granularity/num_pseudo"] = is_pseudo.sum().astype(jnp.float32)
    if batch.generic is not None:
        rows = batch.generic
        points = config.plan.draw(keys[1], rows.boxes.shape[0])
        groups = generic_losses(
            outputs.queries,
            outputs.query_features,
            rows,
            assignment.query_of_instance,
            points,
            config,
        )
        own = jnp.zeros((), jnp.float32)
        for group, terms in groups.items():
            own += weighted_sum(terms, config.weights)
            metrics |= _last_layer("generic" if group == "layers" else group, terms)
        total += config.generic * own
        metrics["generic/total"] = own
        metrics["generic/num_instances"] = rows.instance_valid.sum().astype(jnp.float32)
    return total, metrics | {"loss": total}


def weighted_sum(terms: dict[str, Float[Array, " l"]], weights: LossWeights) -> Float[Array, ""]:
    """Weighted sum of all terms over all layers."""
    return sum(getattr(weights, name) * values.sum() for name, values in terms.items())


def _last_layer(group: str, terms: dict[str, Array]) -> dict[str, Array]:
    return {f"{group}/{name}": values[-1] for name, values in terms.items()}
