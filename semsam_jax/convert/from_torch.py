"""Converts a state dict of the original to a parameter tree, with a report."""

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from semsam_jax.convert import layouts
from semsam_jax.convert.report import ConversionReport
from semsam_jax.convert.rows import Rule
from semsam_jax.convert.rules import (
    PARTS,
    backbone_rules,
    ignored_reason,
    rules_for,
    text_rules,
)
from semsam_jax.core.errors import ConversionError
from semsam_jax.models.presets import MAX_LOGIT_SCALE, ModelConfig, SwinConfig
from semsam_jax.ops.windows import relative_position_index

_NOT_IN_BACKBONE = (
    (r"(norm|head(\.fc)?)\.(weight|bias)", "belongs to the ImageNet classifier"),
    (r"embeddings\.mask_token|mask_token", "belongs to masked pretraining"),
    (r"layers\.\d+\.blocks\.\d+\.attn_mask", "follows from the map size"),
    (r"layers\.\d+\.blocks\.\d+\.attn\.relative_position_index", "follows from the window size"),
)
_NOT_IN_TEXT_TOWER = (
    (r"(visual|image_encoder|image_projection|image_proj)(\..*)?", "belongs to an image encoder"),
    (r"logit_(scale|bias)", "belongs to the class heads"),
    (r"embeddings\.position_ids|position_ids", "counts positions"),
    (r"(lang_encoder\.)?attn_mask", "follows from the context length"),
    (r"input_resolution|context_length|vocab_size", "states a size"),
)


@dataclass(frozen=True)
class Conversion:
    """Parameters as nested dicts of float32 arrays, and the report about them."""

    params: dict
    report: ConversionReport


def from_torch(
    state: Mapping[str, np.ndarray],
    config: ModelConfig,
    *,
    parts: Sequence[str] | None = None,
    allow_unexpected: bool = False,
    allow_nonfinite: bool = False,
    where: str = "checkpoint",
) -> Conversion:
    """Converts a state dict (see `names.unwrap`) into the parameters of `config`.

    Args:
        state: original names without `model.` to arrays.
        config: sizes of the model; decides which names are wanted and their shapes.
        parts: top-level parts of our tree to convert; all by default. Names of other
            parts are then ignored, and the result holds only these parts.
        allow_unexpected: accept names that no rule knows; they are reported.
        allow_nonfinite: accept NaN and infinity in the weights.
        where: name of the file in messages.

    Raises:
        ConversionError: the result would not be complete; lists every problem at once.
    """
    rules = _select(rules_for(config), parts)
    report = examine(state, config, parts=parts)
    report.check(where, allow_unexpected=allow_unexpected, allow_nonfinite=allow_nonfinite)
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
) -> ConversionReport:
    """Compares a state dict with a model without converting it; never raises on a mismatch."""
    rules = rules_for(config)
    wanted = set(_select(rules, parts))
    report = ConversionReport()
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
    """Builds the leaf of `rule` from the tensors named by `keys`, as float32."""
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


def _select(rules: Sequence[Rule], parts: Sequence[str] | None) -> tuple[Rule, ...]:
    if parts is None:
        return tuple(rules)
    unknown = sorted(set(parts) - set(PARTS))
    if unknown:
        raise ConversionError(f"parts: got {unknown}, expected some of {', '.join(PARTS)}.")
    return tuple(rule for rule in rules if rule.part in parts)


def _names(rule: Rule) -> list[str]:
    return [*rule.keys, *(alias for aliases in rule.aliases for alias in aliases)]


def _examine_rule(rule: Rule, state: Mapping[str, np.ndarray], report: ConversionReport) -> None:
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
            count = _count_nonfinite(state[present[0]])
            if count:
                report.nonfinite[present[0]] = count
        elif rule.is_required:
            report.missing.append(key)
    if len(sources) == len(rule.keys):
        report.mapped[rule.path] = tuple(sources)
    elif not rule.is_required and rule.initial is not None:
        report.defaulted[rule.path] = rule.initial


def _count_nonfinite(array: np.ndarray) -> int:
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return 0
    return int((~np.isfinite(array)).sum())


def _is_same(a: np.ndarray, b: np.ndarray) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.__array_interface__["data"] == b.__array_interface__["data"] and a.strides == b.strides:
        return True
    return np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()


def load_backbone(path: str | os.PathLike, config: ModelConfig, own: Mapping) -> dict:
    """Loads an ImageNet Swin (or the backbone of a whole model) for a warm start.

    The classifier is dropped. Bias tables of another window size are resized bicubically.
    Norms that an ImageNet file lacks (one per pyramid level) keep the values in `own`.

    Args:
        path: `.pth` or `.safetensors` of the Swin authors, of timm or of Hugging Face
            (`layouts.swin_names`).
        config: of the new model; its backbone must be a Swin.
        own: the initial parameters of the backbone.

    Raises:
        ConversionError: unreadable, or not this Swin; lists every problem at once.
    """
    where = f"backbone {path}"
    state = layouts.swin_names(layouts.read_weights(path))
    swin = config.backbone
    if not isinstance(swin, SwinConfig):
        raise ConversionError(f"{where}: the model's backbone is not a Swin; choose a Swin preset.")
    has_norms = "norm0.weight" in state
    report = ConversionReport()
    params = _copied(own)
    for rule in backbone_rules(swin, prefix="", has_out_norms=has_norms):
        if rule.path.endswith("/relative_position_bias_table"):
            for key in rule.keys:
                if key in state:
                    state[key] = resize_bias_table(state[key], rule.shape[0])
        _examine_rule(rule, state, report)
        if rule.path in report.mapped and not report.misshaped:
            put(params, rule.path.removeprefix("backbone/"), assemble(rule, state, rule.keys))
    _examine_rest(state, report, _NOT_IN_BACKBONE)
    report.check(where)
    return params


def read_text_tower(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads a text tower file and renames its tensors as in the original.

    Supported layouts: that of the original (`lang_encoder.resblocks...`, `lang_proj`), alone or
    inside a whole model, that of OpenAI's CLIP and open_clip (`transformer.resblocks...`,
    `text_projection`), and that of Hugging Face (`text_model.encoder.layers...`), in PyTorch or
    `.safetensors` files. Image encoders are dropped; `logit_scale` is kept if the file has one.

    Raises:
        ConversionError: unreadable.
    """
    return layouts.text_names(layouts.read_weights(path))


def text_logit_scale(state: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Log of the logit scale that a tower was trained with, at most log(100)."""
    if "logit_scale" not in state:
        return None
    scale = np.minimum(np.float32(state["logit_scale"].reshape(())), MAX_LOGIT_SCALE)
    return np.asarray(scale, np.float32)


def convert_text_tower(state: Mapping[str, np.ndarray], config: ModelConfig, where: str) -> dict:
    """Converts the result of `read_text_tower` to `params["text_encoder"]`.

    A longer context is truncated.

    Raises:
        ConversionError: another tower; lists every problem at once.
    """
    if config.text is None:
        raise ConversionError(f"{where}: the model has no text tower (model.text is None).")
    state, report, params = dict(state), ConversionReport(), {}
    position = "lang_encoder.positional_embedding"
    if position in state and state[position].ndim == 2:
        state[position] = state[position][: config.text.context_length]
    for rule in text_rules(config.text, config.decoder.text_dim, prefix=""):
        _examine_rule(rule, state, report)
        if rule.path in report.mapped and not report.misshaped:
            put(params, rule.path.removeprefix("text_encoder/"), assemble(rule, state, rule.keys))
    _examine_rest(state, report, _NOT_IN_TEXT_TOWER)
    report.check(where)
    return params


def resize_bias_table(table: np.ndarray, num_offsets: int) -> np.ndarray:
    """Resizes a relative position bias table [n, heads] to [num_offsets, heads].

    Bicubic with the kernel parameter -0.75 and half-pixel centres, as the original's
    framework does it (docs/reference.md, section 2). Non-square tables are returned unchanged.
    """
    size, wanted = math.isqrt(table.shape[0]), math.isqrt(num_offsets)
    if table.ndim != 2 or size == wanted or size * size != table.shape[0]:
        return table
    weights = _bicubic_weights(size, wanted)
    grid = np.asarray(table, np.float64).reshape(size, size, -1)
    grid = np.einsum("yi,xj,ijh->yxh", weights, weights, grid)
    return grid.reshape(num_offsets, -1).astype(np.float32)


def _bicubic_weights(size: int, wanted: int) -> np.ndarray:
    """Matrix [wanted, size]; positions beyond the border take the border's value."""
    centre = (np.arange(wanted) + 0.5) * size / wanted - 0.5
    first = np.floor(centre).astype(int) - 1
    weights = np.zeros((wanted, size))
    for tap in range(4):
        distance = np.abs(centre - (first + tap))
        near = 1.25 * distance**3 - 2.25 * distance**2 + 1
        far = -0.75 * (distance**3 - 5 * distance**2 + 8 * distance - 4)
        column = np.clip(first + tap, 0, size - 1)
        np.add.at(weights, (np.arange(wanted), column), np.where(distance <= 1, near, far))
    return weights


def _examine_rest(
    state: Mapping[str, np.ndarray], report: ConversionReport, ignored: Sequence[tuple[str, str]]
) -> None:
    used = {key for keys in report.mapped.values() for key in keys} | set(report.misshaped)
    for key in state:
        reason = next((why for pattern, why in ignored if re.fullmatch(pattern, key)), None)
        if reason is not None:
            report.ignored[key] = reason
        elif key not in used:
            report.unexpected.append(key)


def _copied(tree: Mapping) -> dict:
    return {k: _copied(v) if isinstance(v, Mapping) else v for k, v in tree.items()}
