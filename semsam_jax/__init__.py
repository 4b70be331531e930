"""Semantic-SAM in JAX: segment and recognise anything at any granularity.

    from semsam_jax import load_model, Predictor, MaskGenerator

Importing this package imports no JAX; the names below load what they need on first use.
"""

import importlib

__version__ = "0.1.0"

_PUBLIC = {
    "load_model": "semsam_jax.inference.loading",
    "LoadedModel": "semsam_jax.inference.loading",
    "Predictor": "semsam_jax.inference.predictor",
    "Request": "semsam_jax.inference.requests",
    "MaskGenerator": "semsam_jax.inference.mask_generator",
    "SemSamError": "semsam_jax.core.errors",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> object:
    """Imports a public name when it is first asked for."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'semsam_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    """Lists the public names without importing them."""
    return sorted([*globals(), *_PUBLIC])
