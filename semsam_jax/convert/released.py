"""Reads a complete model of the original: parameters and metadata from one or several files."""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from semsam_jax.convert import openseed
from semsam_jax.convert.detect import detect_config, load_model_config
from semsam_jax.convert.from_torch import examine, from_torch
from semsam_jax.convert.names import unwrap
from semsam_jax.convert.torch_reader import read_state_dict
from semsam_jax.core.errors import ConversionError
from semsam_jax.models import presets

# Token index of level 1..6 in the released weights (docs/design.md, "Levels").
RELEASED_LEVEL_ORDER = (3, 2, 0, 4, 1, 5)
_GENERIC = "sem_seg_head.predictor.enc_output.weight"
_POSITIONS = "sem_seg_head.predictor.lang_encoder.lang_encoder.positional_embedding"


@dataclasses.dataclass(frozen=True)
class Released:
    """What a file of the original holds.

    Attributes:
        params: parameter tree, float32.
        config: sizes of the model.
        meta: as `core.checkpoint_io` stores it.
    """

    params: dict
    config: presets.ModelConfig
    meta: dict


def read_released(
    files: Sequence[str | os.PathLike],
    model_config: str | os.PathLike | None = None,
    *,
    allow_unexpected: bool = False,
    allow_nonfinite: bool = False,
    entry: str | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> Released:
    """Reads and converts a model.

    Args:
        files: `.pth` files that hold parts of one model; the last that has a tensor counts.
        model_config: JSON file of the sizes (`detect.load_model_config`); None takes the preset
            that has the shapes of the tensors.
        allow_unexpected: accept tensors that the model does not know.
        allow_nonfinite: accept NaN and infinity in the weights.
        entry: the entry or prefix of the files to take, such as `model_ema`.
        tell: called with the report, also if the model is incomplete.

    Raises:
        ConversionError: unreadable, no preset, or not complete.
        ConfigError: an unreadable model config.
    """
    name = " + ".join(str(file) for file in files)
    where, state = f"checkpoint {name}", {}
    for file in files:
        state |= _read(file, entry)
    if model_config is None:
        preset, config = detect_config(state, where)
    else:
        preset, config = "custom", load_model_config(model_config)
        has_generic = config.has_generic or _GENERIC in state
        config = dataclasses.replace(config, has_generic=has_generic)
    state, untrained = _cut_context(state, config), {}
    if openseed.is_openseed(state):
        openseed.check(state, where)
        state, drawn = openseed.complete(state, config)
        untrained = openseed.UNTRAINED
        tell(
            f"{name}: a model of OpenSeeD, trained without prompts and parts; at random: "
            f"{', '.join(drawn)}"
        )
    tell(f"{name}: preset {preset}, {_branches(config)}\n{examine(state, config).table()}")
    params = from_torch(
        state,
        config,
        allow_unexpected=allow_unexpected,
        allow_nonfinite=allow_nonfinite,
        where=where,
    ).params
    num_tokens = config.decoder.num_tokens
    is_released = num_tokens == len(RELEASED_LEVEL_ORDER)
    meta = make_meta(preset, config, " + ".join(Path(file).name for file in files))
    meta |= {
        "level_order": list(RELEASED_LEVEL_ORDER if is_released else range(num_tokens)),
        "prompt_preset": "released_v1",
        # The original trains them only together with its own text tower.
        "class_heads_trained": "text_encoder" in params or config.has_generic,
        **untrained,
    }
    return Released(dict(params), config, meta)


def _cut_context(state: Mapping[str, np.ndarray], config: presets.ModelConfig) -> dict:
    """Of a text tower with a longer context than the model's the first positions are taken."""
    if config.text is None or _POSITIONS not in state:
        return dict(state)
    return {**state, _POSITIONS: state[_POSITIONS][: config.text.context_length]}


def _read(file: str | os.PathLike, entry: str | None) -> dict[str, np.ndarray]:
    """Tensors of a file by the original's names; `entry` may be a dict or a prefix."""
    where = f"checkpoint {file}"
    if entry is None:
        return unwrap(read_state_dict(file), where)
    try:
        return unwrap(read_state_dict(file, entry), where)
    except ConversionError as error:
        state = read_state_dict(file)
        if not any(key.startswith(f"{entry.rstrip('.')}.") for key in state):
            raise error from None
        return unwrap(state, where, entry)


def make_meta(preset: str, config: presets.ModelConfig, source: str) -> dict:
    """The metadata that follows from the sizes."""
    text: dict = {"source": "none", "table": None}
    if config.text is not None:
        text = {"source": "encoder", "table": None, "context_length": config.text.context_length}
    return {
        "preset": preset,
        "model_config": json.loads(presets.to_json(config)),
        "source": source,
        "text": text,
        "vocabulary": {"objects": [], "parts": []},
    }


def _branches(config: presets.ModelConfig) -> str:
    text = "a text tower" if config.text is not None else "no text tower"
    return f"{text}, {'a' if config.has_generic else 'no'} generic branch"
