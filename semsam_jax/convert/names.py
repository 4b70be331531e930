"""Names in a state dict, without prefixes and infixes of training tools."""

from collections.abc import Mapping
from typing import TypeVar

from semsam_jax.core.errors import ConversionError

T = TypeVar("T")

_WRAPPERS = ("model", "state_dict")
# Data-parallel training and torch.compile put these between the names of modules.
_BETWEEN = ("module", "_orig_mod")
_OWN_PREFIX = "model."
# A tensor that every model of the original has, by its name without a prefix.
_ANCHOR = "backbone.patch_embed.proj.weight"


def unwrap(state: Mapping[str, T], where: str = "checkpoint", prefix: str = "") -> dict[str, T]:
    """Removes the wrapper `model` and other prefixes from the original's names.

    `module.` and `_orig_mod.` are removed anywhere. If any key starts with `model.`, keys without
    it are dropped, as in the original's loader (docs/reference.md, section 16). Any other prefix
    (`ema_model.`, `student.`) is removed if exactly one complete model has it. `model.criterion...`
    is kept and ignored by a rule.

    Args:
        state: names to tensors.
        where: name of the file in messages.
        prefix: which of several models in the file to take, such as `ema_model`.

    Raises:
        ConversionError: two names become one, several models are in the file, or no name has
            the prefix.
    """
    for name in _WRAPPERS:
        if isinstance(state.get(name), Mapping):
            state = state[name]
    found: dict[str, T] = {}
    for key, value in state.items():
        plain = ".".join(part for part in key.split(".") if part not in _BETWEEN)
        if plain in found:
            raise ConversionError(f"{where}: two tensors would be called {plain}.")
        found[plain] = value
    if prefix:
        found = _without(found, f"{prefix.rstrip('.')}.")
        if not found:
            raise ConversionError(f"{where}: no name starts with {prefix!r}.")
    while any(key.startswith(_OWN_PREFIX) for key in found):
        found = _without(found, _OWN_PREFIX)
    prefixes = {k.removesuffix(_ANCHOR) for k in found if k.endswith(f".{_ANCHOR}")}
    if _ANCHOR in found or not prefixes:
        return found
    if len(prefixes) > 1:
        names = ", ".join(sorted(one.rstrip(".") for one in prefixes))
        raise ConversionError(f"{where}: holds several models: {names}; choose one with --entry.")
    return _without(found, prefixes.pop())


def _without(state: Mapping[str, T], prefix: str) -> dict[str, T]:
    """The names that start with a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
