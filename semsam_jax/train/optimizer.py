"""AdamW with the reference's groups, schedule and clipping (SPEC section viii)."""

import re

import jax
import optax

from semsam_jax.config import OptimizerChoice

NO_DECAY = re.compile(
    r"(^|/)(norm\d?|out_norm\d|ln_\w+)/(scale|bias)$|relative_position_bias_table$"
    r"|(label_embed|type_embed|mask_tokens|token_embedding)$"
)
"""Norms, embeddings and position-bias tables; biases and plain parameters do decay."""


def build_optimizer(
    choice: OptimizerChoice, steps: int, frozen: tuple[str, ...] = ()
) -> optax.GradientTransformation:
    """Builds clip -> AdamW per group.

    Args:
        choice: rates, decay and schedule.
        steps: length of the run, for the schedule.
        frozen: top-level parameter groups that never change.

    Returns:
        A transformation of the whole parameter tree.
    """
    factors = {
        "default": 1.0,
        "backbone": choice.backbone_factor,
        "text": choice.text_factor,
    }
    transforms = {
        name: optax.adamw(
            learning_rate=schedule(choice, steps, factor),
            weight_decay=choice.weight_decay,
            mask=decay_mask,
        )
        for name, factor in factors.items()
    }
    transforms["frozen"] = optax.set_to_zero()
    groups = optax.multi_transform(transforms, lambda params: group_labels(params, frozen))
    return optax.chain(optax.clip_by_global_norm(choice.clip_norm), groups)


def schedule(choice: OptimizerChoice, steps: int, factor: float = 1.0) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then "step" or "cosine" decay."""
    peak = choice.learning_rate * factor
    if choice.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(
            0.0, peak, choice.warmup_steps, max(steps, choice.warmup_steps + 1), 0.01 * peak
        )
    boundaries = {round(fraction * steps): 0.1 for fraction in choice.decay_at}
    decay = optax.piecewise_constant_schedule(peak, boundaries)
    warm = max(choice.warmup_steps, 1)
    return lambda step: decay(step) * optax.linear_schedule(1.0 / warm, 1.0, warm)(step)


def group_labels(params: dict, frozen: tuple[str, ...] = ()) -> dict:
    """Names the optimiser group of each parameter: backbone, text, frozen or default."""
    named = {"backbone": "backbone", "text_encoder": "text"}

    def label(top: str) -> str:
        return "frozen" if top in frozen else named.get(top, "default")

    return {top: jax.tree.map(lambda _, top=top: label(top), tree) for top, tree in params.items()}


def decay_mask(params: object) -> object:
    """True where weight decay applies."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not NO_DECAY.search("/".join(_key(entry) for entry in path)), params
    )


def _key(entry: object) -> str:
    return str(getattr(entry, "key", getattr(entry, "name", entry)))
