"""Renamed keys and values of stored models and runs."""

import sys
from collections.abc import Mapping
from typing import Any

KEYS = {
    "eval_photos": "eval_images",
    "streams_apart": "accumulate_per_stream",
    "model.start": "init",
    "data.own": "custom",
    "data.own_images": "custom_images",
    "data.own_boxes_only": "custom_boxes_only",
    "data.datasets.own": "custom",
    "data.generic_datasets.own": "custom",
    "loss.near_prompts": "prompt_point_ratio",
}
"""Path of a key in a stored run configuration -> its current name."""

VALUES = {
    "prompt_preset": {"own": "default"},
    "config.eval_dataset": {"own": "custom"},
    "config.model.init": {"aligned": "similarity"},
}
"""Path of a value (current names) -> stored value -> current value."""


def upgrade_meta(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the metadata of a model under current names; the input is not modified.

    The run configuration is in `config`, parts of it in `must_match`.
    """
    upgraded = dict(meta)
    for group in ("config", "must_match"):
        if isinstance(meta.get(group), Mapping):
            upgraded[group] = _renamed(meta[group], "")
    return _revalued(upgraded, "")


def upgrade_option(word: str) -> str:
    """Translates a renamed option (`--config.data.own=DIR`) to its current name.

    Args:
        word: a command-line argument; anything but a renamed option is returned unchanged.
    """
    name, equals, value = word.partition("=")
    path = name.removeprefix("--config.")
    if path == name or path not in KEYS:
        return word
    above = path.rpartition(".")[0]
    today = f"{above}.{KEYS[path]}" if above else KEYS[path]
    known = VALUES.get(f"config.{today}", {})
    print(f"note: config.{path} is called config.{today} now", file=sys.stderr)
    return f"--config.{today}{equals}{known.get(value, value)}"


def _renamed(values: Mapping[str, Any], above: str) -> dict[str, Any]:
    new = {}
    for key, value in values.items():
        path = f"{above}{key}"
        inner = _renamed(value, f"{path}.") if isinstance(value, Mapping) else value
        new[KEYS.get(path, key)] = inner
    return new


def _revalued(values: Mapping[str, Any], above: str) -> dict[str, Any]:
    new = {}
    for key, value in values.items():
        path = f"{above}{key}"
        if isinstance(value, Mapping):
            new[key] = _revalued(value, f"{path}.")
        else:
            known = VALUES.get(path, {})
            new[key] = known.get(value, value) if isinstance(value, str) else value
    return new
