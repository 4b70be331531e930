"""Recognises the model of a state dict by its shapes, or reads its sizes from a file."""

import dataclasses
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from semsam_jax.core.errors import ConfigError, ConversionError
from semsam_jax.models.presets import (
    PRESETS,
    DecoderConfig,
    ModelConfig,
    PixelDecoderConfig,
    SwinConfig,
    TextConfig,
)

_PIXEL_DECODER = "sem_seg_head.pixel_decoder"
_PREDICTOR = "sem_seg_head.predictor"
_TOWER = f"{_PREDICTOR}.lang_encoder.lang_encoder"

# Properties of the architecture that a model config may state but not change.
_FIXED = {
    ("backbone", "type"): "swin",
    ("backbone", "patch_size"): 4,
    ("backbone", "qkv_bias"): True,
    ("backbone", "qk_scale"): None,
    ("backbone", "ape"): False,
    ("backbone", "patch_norm"): True,
    ("backbone", "out_features"): ["res2", "res3", "res4", "res5"],
    ("pixel_decoder", "norm"): "GN(32 groups)",
    ("pixel_decoder", "in_features"): ["res2", "res3", "res4", "res5"],
    ("pixel_decoder", "num_fpn_levels"): 1,
    ("pixel_decoder", "common_stride"): 4,
    ("text", "name"): "transformer",
    ("text", "autoregressive_causal_mask"): True,
    ("preprocess", "channel_order"): "RGB",
    ("preprocess", "size_divisibility"): 32,
    ("preprocess", "pad_value_after_normalisation"): 0.0,
    ("preprocess", "pad_side"): "right and bottom",
}
# Backbone maps that enter the deformable encoder -> how many of the last ones they are.
_NUM_INPUTS = {("res3", "res4", "res5"): 3, ("res2", "res3", "res4", "res5"): 4}


def detect_config(
    state: Mapping[str, np.ndarray], where: str = "checkpoint"
) -> tuple[str, ModelConfig]:
    """Recognises a preset from the shapes in a state dict (names without `model.`).

    Names tell whether the model has a text tower and a generic branch.

    Returns:
        The preset's name, and its sizes with `text` and `has_generic` as in the file.

    Raises:
        ConversionError: no Swin model, or one that no preset describes.
    """
    found = measure(state, where)
    for name, preset in PRESETS.items():
        if isinstance(preset.backbone, SwinConfig) and _measures(preset) == found:
            return name, with_branches_of(state, preset)
    sizes = ", ".join(f"{key} {value}" for key, value in found.items())
    known = [n for n, preset in PRESETS.items() if isinstance(preset.backbone, SwinConfig)]
    raise ConversionError(
        f"{where}: no preset has these sizes: {sizes}; known: {', '.join(known)}. "
        f"Describe the model with --model-config FILE.json."
    )


def with_branches_of(state: Mapping[str, np.ndarray], config: ModelConfig) -> ModelConfig:
    """Returns `config` with what only the file determines: text tower, generic branch, tokens."""
    has_text = any(key.startswith(f"{_TOWER}.") for key in state)
    text = config.text
    if has_text and text is None:
        prefix = f"{_PREDICTOR}.lang_encoder."
        text = text_config_of({k.removeprefix(prefix): v for k, v in state.items()})
    decoder, tokens = config.decoder, state.get(f"{_PREDICTOR}.mask_tokens.weight")
    if tokens is not None and tokens.ndim == 2:
        decoder = dataclasses.replace(decoder, num_tokens=tokens.shape[0])
    has_owner = f"{_PREDICTOR}.class_embed_owner" in state
    has_pooled = f"{_PREDICTOR}.class_object_pooled_embed" in state
    decoder = dataclasses.replace(decoder, part_owner=has_owner, pooled_names=has_pooled)
    return dataclasses.replace(
        config,
        decoder=decoder,
        text=text if has_text else None,
        has_generic=f"{_PREDICTOR}.enc_output.weight" in state,
    )


def text_config_of(state: Mapping[str, np.ndarray], where: str = "text tower") -> TextConfig:
    """Sizes of a text tower (names as `from_torch.read_text_tower` gives them).

    Heads are 64 wide, as in every CLIP; a context longer than the original's is cut to it.

    Raises:
        ConversionError: the file holds no such tower.
    """
    tokens = state.get("lang_encoder.token_embedding.weight")
    positions = state.get("lang_encoder.positional_embedding")
    if tokens is None or positions is None or tokens.ndim != 2:
        raise ConversionError(
            f"{where}: no CLIP-like text tower (no token_embedding.weight or no "
            f"positional_embedding among {len(state)} tensors)."
        )
    vocab_size, width = tokens.shape
    return TextConfig(
        context_length=min(positions.shape[0], TextConfig.context_length),
        width=width,
        num_heads=max(1, width // 64),
        num_layers=_count(state, r"lang_encoder\.resblocks\.(\d+)\."),
        vocab_size=vocab_size,
    )


def measure(state: Mapping[str, np.ndarray], where: str = "checkpoint") -> dict[str, object]:
    """Infers the sizes of a model from the shapes of its tensors."""
    block = "backbone.layers.{}.blocks.0"
    try:
        stages = _count(state, r"backbone\.layers\.(\d+)\.")
        tables = [
            state[f"{block.format(i)}.attn.relative_position_bias_table"].shape
            for i in range(stages)
        ]
        return {
            "embed_dim": state["backbone.patch_embed.proj.weight"].shape[0],
            "depths": tuple(
                _count(state, rf"backbone\.layers\.{i}\.blocks\.(\d+)\.") for i in range(stages)
            ),
            "num_heads": tuple(table[1] for table in tables),
            "window_size": (math.isqrt(tables[0][0]) + 1) // 2,
            "pixel_decoder_dim": state[f"{_PIXEL_DECODER}.mask_features.weight"].shape[1],
            "mask_dim": state[f"{_PIXEL_DECODER}.mask_features.weight"].shape[0],
            "levels": state[f"{_PIXEL_DECODER}.transformer.level_embed"].shape[0],
            "encoder_layers": _count(
                state, rf"{re.escape(_PIXEL_DECODER)}\.transformer\.encoder\.layers\.(\d+)\."
            ),
            "decoder_dim": state[f"{_PREDICTOR}.class_embed"].shape[0],
            "text_dim": state[f"{_PREDICTOR}.class_embed"].shape[1],
            "decoder_layers": _count(state, rf"{re.escape(_PREDICTOR)}\.decoder\.layers\.(\d+)\."),
            "feedforward_dim": state[f"{_PREDICTOR}.decoder.layers.0.linear1.weight"].shape[0],
        }
    except (KeyError, IndexError) as error:
        raise ConversionError(
            f"{where}: not a Semantic-SAM model with a Swin backbone ({error} not found "
            f"among {len(state)} tensors, first: {', '.join(list(state)[:3])}). ImageNet "
            f"backbones and text towers are given with --backbone and --text."
        ) from error


def load_model_config(path: str | os.PathLike) -> ModelConfig:
    """Reads sizes from a JSON file with the sections backbone, pixel_decoder, decoder, text.

    The sections use the original's own names (embed_dim, conv_dim, dim_feedforward, ...).
    `text` may be absent or null. `decoder.two_stage` says whether there is a generic branch; its
    number of queries is `decoder.num_object_queries`, or that of a section `generic` (or
    `generic_...`). `preprocess` may give pixel_mean and pixel_std.

    Raises:
        ConfigError: unreadable, or a number is missing or of another type.
    """
    file = Path(path)
    try:
        tree = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"model config {file}: cannot be read as JSON ({error}).") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"model config {file}: got a {type(tree).__name__}, expected an object.")
    for (section, key), wanted in _FIXED.items():
        values = tree.get(section) or {}
        if key == "norm" and isinstance(values, dict) and values.get(key) == "GN":
            continue  # the original's own spelling
        if isinstance(values, dict) and values.get(key, wanted) != wanted:
            raise ConfigError(
                f"model config {file}: {section}.{key}: got {values[key]!r}, only {wanted!r} is "
                f"supported."
            )
    backbone = _Section(file, tree, "backbone")
    pixel = _Section(file, tree, "pixel_decoder")
    decoder = _Section(file, tree, "decoder")
    has_generic = bool(decoder.values.get("two_stage", False))
    defaults = DecoderConfig()
    num_levels = pixel.integer("total_num_feature_levels", PixelDecoderConfig.num_levels)
    if decoder.integer("num_feature_levels", num_levels) != num_levels:
        raise ConfigError(
            f"model config {file}: decoder.num_feature_levels: got "
            f"{decoder.values['num_feature_levels']}, expected {num_levels} as in "
            f"pixel_decoder.total_num_feature_levels."
        )
    num_inputs = _num_inputs(file, pixel.values)
    if num_levels not in (num_inputs, num_inputs + 1):
        raise ConfigError(
            f"model config {file}: pixel_decoder.total_num_feature_levels: got {num_levels}, "
            f"expected {num_inputs} or {num_inputs + 1} with {num_inputs} deform_in_features."
        )
    return ModelConfig(
        backbone=SwinConfig(
            embed_dim=backbone.integer("embed_dim"),
            depths=backbone.integers("depths"),
            num_heads=backbone.integers("num_heads"),
            window_size=backbone.integer("window_size"),
            mlp_ratio=backbone.number("mlp_ratio", SwinConfig.mlp_ratio),
            drop_path_rate=backbone.number("drop_path_rate", SwinConfig.drop_path_rate),
            pretrain_image_size=backbone.integer(
                "pretrain_img_size", SwinConfig.pretrain_image_size
            ),
        ),
        pixel_decoder=PixelDecoderConfig(
            num_inputs=num_inputs,
            num_levels=num_levels,
            dim=pixel.integer("conv_dim"),
            mask_dim=pixel.integer("mask_dim"),
            num_layers=pixel.integer("enc_layers"),
            num_heads=pixel.integer("nheads"),
            num_points=pixel.integer("n_points"),
            feedforward_dim=pixel.integer("dim_feedforward"),
        ),
        decoder=DecoderConfig(
            dim=decoder.integer("hidden_dim"),
            num_layers=decoder.integer("dec_layers"),
            num_heads=decoder.integer("nheads_self_attn_and_deform"),
            num_points=decoder.integer("n_points"),
            feedforward_dim=decoder.integer("dim_feedforward"),
            num_tokens=decoder.integer("num_mask_tokens"),
            text_dim=decoder.integer("dim_proj"),
            num_queries=_num_queries(file, tree) or defaults.num_queries,
            noise_scale=decoder.number("dn_noise_scale", defaults.noise_scale),
            point_noise_factor=decoder.number(
                "point_noise_extra_factor", defaults.point_noise_factor
            ),
        ),
        text=_text_config(file, tree),
        has_generic=has_generic,
        **_pixel_statistics(file, tree),
    )


def _num_inputs(file: Path, pixel_decoder: Mapping) -> int:
    names = pixel_decoder.get("deform_in_features", ["res3", "res4", "res5"])
    key = tuple(names) if isinstance(names, list) else names
    if not isinstance(key, tuple) or key not in _NUM_INPUTS:
        known = " or ".join(str(list(names)) for names in _NUM_INPUTS)
        raise ConfigError(
            f"model config {file}: pixel_decoder.deform_in_features: got {names!r}, "
            f"expected {known}."
        )
    return _NUM_INPUTS[key]


def _num_queries(file: Path, tree: Mapping) -> int:
    generic = [name for name, values in tree.items() if re.fullmatch("generic(_.*)?", name)]
    sections = [_Section(file, tree, name) for name in ("decoder", *generic)]
    return max(section.integer("num_object_queries", 0) for section in sections)


def _pixel_statistics(file: Path, tree: Mapping) -> dict[str, tuple[float, ...]]:
    if tree.get("preprocess") is None:
        return {}
    section = _Section(file, tree, "preprocess")
    found = {}
    for key in ("pixel_mean", "pixel_std"):
        values = section.values.get(key)
        if values is None:
            continue
        is_triple = isinstance(values, list) and len(values) == 3
        if not is_triple or not all(type(v) in (int, float) for v in values):
            raise ConfigError(
                f"model config {file}: preprocess.{key}: got {values!r}, expected three numbers."
            )
        found[key] = tuple(float(v) for v in values)
    return found


def _text_config(file: Path, tree: Mapping) -> TextConfig | None:
    if tree.get("text") is None or tree["text"] == {} or _arch(tree) == "noencoder":
        return None
    text = _Section(file, tree, "text")
    return TextConfig(
        context_length=text.integer("context_length"),
        width=text.integer("width"),
        num_heads=text.integer("heads"),
        num_layers=text.integer("layers"),
        vocab_size=text.integer("vocab_size", TextConfig.vocab_size),
    )


def _arch(tree: Mapping) -> object:
    return tree["text"].get("arch") if isinstance(tree["text"], dict) else None


class _Section:
    def __init__(self, file: Path, tree: Mapping, name: str):
        self._where = f"model config {file}: {name}"
        if not isinstance(tree.get(name), dict):
            raise ConfigError(f"{self._where}: section missing; expected an object with its sizes.")
        self.values: dict = tree[name]

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._get(key, default)
        if type(value) is not int or value < 0:
            raise ConfigError(f"{self._where}.{key}: got {value!r}, expected a whole number.")
        return value

    def number(self, key: str, default: float) -> float:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{self._where}.{key}: got {value!r}, expected a number.")
        return float(value)

    def integers(self, key: str) -> tuple[int, ...]:
        value = self._get(key, None)
        if not isinstance(value, list) or len(value) != 4 or not _are_positive(value):
            raise ConfigError(f"{self._where}.{key}: got {value!r}, expected four whole numbers.")
        return tuple(value)

    def _get(self, key: str, default: object) -> object:
        value = self.values.get(key, default)
        if value is None:
            raise ConfigError(f"{self._where}.{key}: missing; expected a number.")
        return value


def _are_positive(values: Iterable) -> bool:
    return all(type(value) is int and value > 0 for value in values)


def _measures(config: ModelConfig) -> dict[str, object]:
    swin = config.backbone
    return {
        "embed_dim": swin.embed_dim,
        "depths": swin.depths,
        "num_heads": swin.num_heads,
        "window_size": swin.window_size,
        "pixel_decoder_dim": config.pixel_decoder.dim,
        "mask_dim": config.pixel_decoder.mask_dim,
        "levels": config.pixel_decoder.num_levels,
        "encoder_layers": config.pixel_decoder.num_layers,
        "decoder_dim": config.decoder.dim,
        "text_dim": config.decoder.text_dim,
        "decoder_layers": config.decoder.num_layers,
        "feedforward_dim": config.decoder.feedforward_dim,
    }


def _count(state: Mapping[str, np.ndarray], pattern: str) -> int:
    """One more than the largest index that `pattern` captures among the names."""
    matches = (re.match(pattern, key) for key in state)
    return max((int(match[1]) for match in matches if match), default=-1) + 1
