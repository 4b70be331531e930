"""AdamW with the reference's groups, schedule and clipping (docs/reference.md, section 9)."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from semsam_jax.config import OptimizerChoice
from semsam_jax.core.errors import ConfigError
from semsam_jax.models.presets import MAX_LOGIT_SCALE

NO_DECAY = re.compile(
    r"(^|/)(norm\d?|out_norm\d|ln_\w+)/(scale|bias)$|relative_position_bias_table$"
    r"|(label_embed|type_embed|mask_tokens|token_embedding|logit_scale|learned_names/rows"
    r"|granularity_token/token)$"
)
"""Parameters without weight decay: norms, embeddings, position-bias tables and the scale of the
class scores."""

_OPTIONAL = ("text_encoder", "decoder/mask_window", "granularity_token")
"""Parts that only some models have; recipes for any model name them."""


def build_optimizer(
    choice: OptimizerChoice, steps: int, frozen: tuple[str, ...] = ()
) -> optax.GradientTransformation:
    """Builds clip -> AdamW per group.

    Args:
        choice: rates, decay and schedule.
        steps: length of the run, for the schedule.
        frozen: parts of the parameters that never change, see `is_frozen`.

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
    return optax.chain(optax.clip_by_global_norm(choice.clip_norm), groups, clamp_logit_scale())


def clamp_logit_scale() -> optax.GradientTransformation:
    """Keeps the log scale of the class scores at or below `MAX_LOGIT_SCALE`.

    The parameter itself is clamped, so that its gradient never vanishes.
    """

    def update(updates: Any, state: optax.EmptyState, params: Any) -> tuple[Any, Any]:
        def clamped(path: tuple, change: Any, value: Any) -> Any:
            if _key(path[-1]) != "logit_scale":
                return change
            return jnp.minimum(change, MAX_LOGIT_SCALE - value)

        return jax.tree_util.tree_map_with_path(clamped, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def schedule(choice: OptimizerChoice, steps: int, factor: float = 1.0) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then "step" or "cosine" decay."""
    peak = choice.learning_rate * factor
    if choice.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(
            0.0, peak, choice.warmup_steps, max(steps, choice.warmup_steps + 1), 0.01 * peak
        )
    boundaries: dict[int, float] = {}
    for fraction in choice.decay_at:  # in a short run both may be the same step
        step = round(fraction * steps)
        boundaries[step] = 0.1 * boundaries.get(step, 1.0)
    decay = optax.piecewise_constant_schedule(peak, boundaries)
    warm = max(choice.warmup_steps, 1)
    return lambda step: decay(step) * optax.linear_schedule(1.0 / warm, 1.0, warm)(step)


def group_labels(params: dict, frozen: tuple[str, ...] = ()) -> dict:
    """Names the optimiser group of each parameter: backbone, text, frozen or default."""
    named = {"backbone": "backbone", "text_encoder": "text"}

    def label(path: tuple, _: object) -> str:
        name = _name(path)
        return "frozen" if is_frozen(name, frozen) else named.get(name.split("/")[0], "default")

    return jax.tree_util.tree_map_with_path(label, params)


def is_frozen(name: str, frozen: tuple[str, ...]) -> bool:
    """Whether a parameter ("decoder/layers/norm1/scale") is in one of the named parts."""
    return any(name == part or name.startswith(f"{part}/") for part in frozen)


def check_frozen(params: dict, frozen: tuple[str, ...]) -> None:
    """Raises ConfigError for a name that would freeze nothing, except those of `_OPTIONAL`."""
    names = [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for part in frozen:
        if part not in _OPTIONAL and not any(is_frozen(name, (part,)) for name in names):
            known = sorted({name.split("/")[0] for name in names})
            raise ConfigError(
                f"optimizer.frozen: {part!r} is not part of this model; use one of "
                f"{', '.join(known)}, or a path below it, such as decoder/layers."
            )


def stop_frozen(params: dict, frozen: tuple[str, ...]) -> dict:
    """Cuts the gradients of frozen parameters, so that nothing is computed for them."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: jax.lax.stop_gradient(x) if is_frozen(_name(path), frozen) else x, params
    )


def decay_mask(params: object) -> object:
    """True where weight decay applies."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not NO_DECAY.search(_name(path)), params
    )


def _name(path: tuple) -> str:
    return "/".join(_key(entry) for entry in path)


def _key(entry: object) -> str:
    return str(getattr(entry, "key", getattr(entry, "name", entry)))
