"""Semantic-SAM in JAX: segment and recognize anything at any granularity.

    from semsam_jax import load_model, Predictor, MaskGenerator

Importing this package imports no JAX; the names below load what they need on first use.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from semsam_jax.core.errors import SemSamError
    from semsam_jax.inference.loading import LoadedModel, load_model
    from semsam_jax.inference.mask_generator import MaskGenerator
    from semsam_jax.inference.predictor import Predictor
    from semsam_jax.inference.requests import Request
    from semsam_jax.inference.results import Records, ScoredName, Segments, SegmentsBatch

__version__ = "0.1.0"

_PUBLIC = {
    "LoadedModel": "semsam_jax.inference.loading",
    "MaskGenerator": "semsam_jax.inference.mask_generator",
    "ScoredName": "semsam_jax.inference.results",
    "Predictor": "semsam_jax.inference.predictor",
    "Request": "semsam_jax.inference.requests",
    "Records": "semsam_jax.inference.results",
    "Segments": "semsam_jax.inference.results",
    "SegmentsBatch": "semsam_jax.inference.results",
    "SemSamError": "semsam_jax.core.errors",
    "load_model": "semsam_jax.inference.loading",
}
__all__ = [
    "LoadedModel",
    "MaskGenerator",
    "Predictor",
    "Records",
    "Request",
    "ScoredName",
    "Segments",
    "SegmentsBatch",
    "SemSamError",
    "__version__",
    "load_model",
]


def __getattr__(name: str) -> object:
    """Imports a public name on first use."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'semsam_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    """Lists the public names without importing them."""
    return sorted(__all__)
