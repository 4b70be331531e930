"""Converts a parameter tree to a state dict that the original loads."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from semsam_jax.convert.rows import Rule
from semsam_jax.convert.rules import rules_for
from semsam_jax.convert.tree import flatten
from semsam_jax.core.errors import ConversionError
from semsam_jax.models.presets import ModelConfig
from semsam_jax.ops.windows import relative_position_index


@dataclass(frozen=True)
class TorchState:
    """Tensors under their first original name, and the names that repeat them.

    Attributes:
        tensors: names (with the prefix `model.`) to arrays.
        aliases: further names to names in `tensors`.
    """

    tensors: dict[str, np.ndarray]
    aliases: dict[str, str]


def to_torch(params: Mapping, config: ModelConfig, *, where: str = "params") -> TorchState:
    """Converts parameters into the original's names and layouts, bit for bit.

    Writes the aliases and the `relative_position_index` buffers that the original saves.

    Raises:
        ConversionError: parameters are missing, misshaped or left over; lists all of them.
    """
    leaves = {path: np.asarray(leaf) for path, leaf in flatten(params).items()}
    rules = rules_for(config)
    problems = [f"{path}: unexpected" for path in sorted(set(leaves) - {r.path for r in rules})]
    tensors: dict[str, np.ndarray] = {}
    aliases: dict[str, str] = {}
    for rule in rules:
        array = leaves.get(rule.path)
        if array is None:
            if rule.is_required:
                problems.append(f"{rule.path}: missing")
        elif array.shape != rule.our_shape:
            problems.append(f"{rule.path}: got {array.shape}, expected {rule.our_shape}")
        elif not _is_left_out(rule, array, config):
            _take_apart(rule, array, tensors, aliases)
    if problems:
        raise ConversionError(
            f"{where}: do not fit the model: {len(problems)} problems:\n  " + "\n  ".join(problems)
        )
    index = relative_position_index(config.backbone.window_size).astype(np.int64)
    for stage, depth in enumerate(config.backbone.depths):
        for block in range(depth):
            name = f"model.backbone.layers.{stage}.blocks.{block}.attn.relative_position_index"
            tensors[name] = index
    return TorchState(tensors, aliases)


def _is_left_out(rule: Rule, array: np.ndarray, config: ModelConfig) -> bool:
    # Released files without a text tower have no logit_scale; its initial value is not written.
    if rule.initial is None or config.text is not None or config.has_generic:
        return False
    return bool(array == rule.initial)


def _take_apart(
    rule: Rule, array: np.ndarray, tensors: dict[str, np.ndarray], aliases: dict[str, str]
) -> None:
    pieces = array if rule.is_stacked else (array,)
    for number, (key, piece) in enumerate(zip(rule.keys, pieces, strict=True)):
        tensors[f"model.{key}"] = rule.layout.to_reference(piece)
        for alias in rule.aliases[number] if rule.aliases else ():
            aliases[f"model.{alias}"] = f"model.{key}"
