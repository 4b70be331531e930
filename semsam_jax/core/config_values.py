"""Converts nested mappings to frozen dataclasses; errors name the key and the fix."""

import dataclasses
import difflib
import math
import typing
from collections.abc import Mapping

from semsam_jax.core.errors import ConfigError


def one_of(where: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raises ConfigError for a value that is not among the allowed ones."""
    if value not in allowed:
        raise ConfigError(f"{where}: {value!r}; use one of {', '.join(allowed)}.")


def build_dataclass(kind: type, values: object, where: str) -> object:
    """Builds a `kind` from a (possibly partial) nested mapping.

    Args:
        kind: dataclass whose fields are dataclasses, tuples, mappings of floats or plain values.
        values: the mapping.
        where: name of the group in messages.

    Raises:
        ConfigError: unknown key or wrong type.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: got {values!r}, expected a group of keys.")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    made = {}
    for key, value in values.items():
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; keys: {', '.join(fields)}."
            raise ConfigError(f"{where}.{key}: no such key{hint}")
        made[key] = _convert(hints[key], value, f"{where}.{key}")
    return kind(**made)


def _convert(hint: object, value: object, where: str) -> object:
    if dataclasses.is_dataclass(hint):
        return build_dataclass(hint, value, where)
    origin = typing.get_origin(hint)
    if origin is tuple:
        kinds = typing.get_args(hint)
        is_open = kinds[-1] is Ellipsis
        if not isinstance(value, list | tuple) or not (is_open or len(value) == len(kinds)):
            count = "" if is_open else f" {len(kinds)}"
            raise ConfigError(f"{where}: got {value!r}, expected{count} values: (..., ...).")
        return tuple(_convert(kinds[0], item, where) for item in value)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: got {value!r}, expected a group of keys.")
        return {str(k): _convert(float, v, f"{where}.{k}") for k, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{where}: got {value!r}, expected {hint.__name__}.")
    if hint is float and not math.isfinite(value):
        raise ConfigError(f"{where}: got {value}, expected a finite number.")
    return value
