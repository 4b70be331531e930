"""Checks whether a parameter tree fits a model, without building the model."""

from collections.abc import Mapping

import numpy as np

from semsam_jax.convert.rules import backbone_rules, rules_without_backbone
from semsam_jax.core.errors import CheckpointError
from semsam_jax.models.presets import ModelConfig, SwinConfig

_MAX_PROBLEMS = 3


def check_tree(params: Mapping, config: ModelConfig, where: str) -> None:
    """Compares parameters with those of a model of these sizes.

    Backbones that the original does not have are not compared.

    Raises:
        CheckpointError: parameters are missing, misshaped or unexpected; one line.
    """
    is_swin = isinstance(config.backbone, SwinConfig)
    rules = backbone_rules(config.backbone, prefix="backbone.") if is_swin else []
    rules += rules_without_backbone(config)
    wanted = {rule.path: rule for rule in rules}
    shapes = {path: rule.our_shape for path, rule in wanted.items()}
    if config.learned_names:  # Ours alone, and no file of the original can hold them.
        shapes["learned_names/rows"] = (config.learned_names, config.decoder.text_dim)
    compared = {path.split("/", 1)[0] for path in shapes} | {"learned_names"}
    found = {
        path: np.shape(leaf)
        for path, leaf in flatten(params).items()
        if path.split("/", 1)[0] in compared
    }
    problems = [
        f"{path} is {found[path]}, expected {shape}"
        for path, shape in shapes.items()
        if path in found and found[path] != shape
    ]
    optional = {path for path, rule in wanted.items() if not rule.is_required}
    problems += [f"no {path}" for path in shapes if path not in found and path not in optional]
    problems += [f"unknown {path}" for path in found if path not in shapes]
    if problems:
        more = len(problems) - _MAX_PROBLEMS
        raise CheckpointError(
            f"{where}: its parameters do not fit its own model_config: "
            f"{'; '.join(problems[:_MAX_PROBLEMS])}{f'; and {more} more' if more > 0 else ''}. "
            f"Convert it with the right --model-config, or train it again with this release."
        )


def flatten(params: Mapping, prefix: str = "") -> dict[str, object]:
    """Nested dicts as one dict; keys are paths joined by "/"."""
    leaves: dict[str, object] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            leaves |= flatten(value, f"{prefix}{name}/")
        else:
            leaves[f"{prefix}{name}"] = value
    return leaves
