"""Defaults shared by every configuration: those of `semsam_jax.config.RunConfig`."""

from ml_collections import ConfigDict

from semsam_jax.config import RunConfig


def base() -> ConfigDict:
    """Returns every key of a run at its default; `RunConfig` says what each key means."""
    return ConfigDict(RunConfig().to_dict())
