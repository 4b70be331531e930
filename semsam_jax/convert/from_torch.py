"""Turns a state dict of the original into our parameter tree, and says what it did."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from semsam_jax.convert.report import Report
from semsam_jax.convert.rules import PARTS, Rule, ignored_reason, rules_for
from semsam_jax.core.errors import ConversionError
from semsam_jax.models.presets import ModelConfig


@dataclass(frozen=True)
class Conversion:
    """Parameters as nested dicts of float32 arrays, and the report about them."""

    params: dict
    report: Report


def from_torch(
    state: Mapping[str, np.ndarray],
    config: ModelConfig,
    *,
    parts: Sequence[str] | None = None,
    allow_unexpected: bool = False,
    where: str = "checkpoint",
) -> Conversion:
    """Converts a state dict (see `torch_reader.unwrap`) into the parameters of `config`.

    Args:
        state: reference names without `model.` to arrays.
        config: sizes of the model; decides which names are wanted and their shapes.
        parts: top-level parts of our tree to convert; all by default. Names of other
            parts are then ignored, and the result holds only these parts.
        allow_unexpected: accept names that no rule knows; they are reported.
        where: how messages call the file.

    Raises:
        ConversionError: the result would not be complete; lists every problem at once.
    """
    rules = _select(rules_for(config), parts)
    report = examine(state, config, parts=parts)
    report.check(where, allow_unexpected=allow_unexpected)
    params: dict = {}
    for rule in rules:
        if rule.path in report.mapped:
            put(params, rule.path, assemble(rule, state, report.mapped[rule.path]))
        elif rule.path in report.defaulted:
            put(params, rule.path, np.asarray(report.defaulted[rule.path], np.float32))
    return Conversion(params, report)


def examine(
    state: Mapping[str, np.ndarray],
    config: ModelConfig,
    *,
    parts: Sequence[str] | None = None,
) -> Report:
    """Compares a state dict with a model without converting; never raises on mismatch."""
    rules = rules_for(config)
    wanted = set(_select(rules, parts))
    report = Report()
    known: set[str] = set()
    for rule in rules:
        if rule in wanted:
            _examine_rule(rule, state, report)
        for key in _names(rule):
            known.add(key)
            if rule not in wanted and key in state:
                report.ignored[key] = f"belongs to {rule.part}, which was not asked for"
    window = config.backbone.window_size
    for key, array in state.items():
        reason = ignored_reason(key)
        if reason is not None:
            report.ignored[key] = reason
            if key.endswith(".relative_position_index") and not np.array_equal(
                array, relative_position_index(window)
            ):
                report.conflicting[key] = f"is not the index table of window size {window}"
        elif key not in known:
            report.unexpected.append(key)
    return report


def assemble(rule: Rule, state: Mapping[str, np.ndarray], keys: Sequence[str]) -> np.ndarray:
    """Builds our leaf of `rule` from the tensors named by `keys`, as float32."""
    arrays = [rule.layout.to_ours(np.asarray(state[key], np.float32)) for key in keys]
    return (
        np.stack(arrays)
        if rule.is_stacked
        else np.ascontiguousarray(arrays[0]).reshape(rule.our_shape)
    )


def put(tree: dict, path: str, value: np.ndarray) -> None:
    """Stores `value` in nested dicts under a path such as "decoder/norm/scale"."""
    *parents, name = path.split("/")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[name] = value


def relative_position_index(window: int) -> np.ndarray:
    """Row of the bias table for every pair of positions, int64 [w*w, w*w] (SPEC section i)."""
    y, x = (axis.ravel() for axis in np.mgrid[:window, :window].astype(np.int64))
    dy = y[:, None] - y[None, :] + window - 1
    dx = x[:, None] - x[None, :] + window - 1
    return dy * (2 * window - 1) + dx


def _select(rules: Sequence[Rule], parts: Sequence[str] | None) -> tuple[Rule, ...]:
    if parts is None:
        return tuple(rules)
    unknown = sorted(set(parts) - set(PARTS))
    if unknown:
        raise ConversionError(f"parts: got {unknown}, wanted some of {', '.join(PARTS)}.")
    return tuple(rule for rule in rules if rule.part in parts)


def _names(rule: Rule) -> list[str]:
    return [*rule.keys, *(alias for aliases in rule.aliases for alias in aliases)]


def _examine_rule(rule: Rule, state: Mapping[str, np.ndarray], report: Report) -> None:
    sources = []
    for number, key in enumerate(rule.keys):
        aliases = rule.aliases[number] if rule.aliases else ()
        present = [name for name in (key, *aliases) if name in state]
        for name in present:
            if tuple(state[name].shape) != rule.shape:
                report.misshaped[name] = (tuple(state[name].shape), rule.shape)
        for alias in present[1:]:
            report.aliased[alias] = present[0]
            # Bitwise: a tied tensor is one tensor, and NaN must not hide a difference.
            if alias not in report.misshaped and not _is_same(state[alias], state[present[0]]):
                report.conflicting[alias] = f"should be the same tensor as {present[0]}"
        if present:
            sources.append(present[0])
        elif rule.is_required:
            report.missing.append(key)
    if len(sources) == len(rule.keys):
        report.mapped[rule.path] = tuple(sources)
    elif not rule.is_required and rule.initial is not None:
        report.defaulted[rule.path] = rule.initial


def _is_same(a: np.ndarray, b: np.ndarray) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.__array_interface__["data"] == b.__array_interface__["data"] and a.strides == b.strides:
        return True
    return np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()
