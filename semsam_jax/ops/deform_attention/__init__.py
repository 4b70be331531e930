"""Multi-scale deformable attention: one interface, several implementations."""

from semsam_jax.ops.deform_attention.api import (
    IMPLEMENTATIONS,
    deform_attention,
    pick_implementation,
)
from semsam_jax.ops.deform_attention.geometry import inside_weight
from semsam_jax.ops.deform_attention.matmul import touched_rows

__all__ = [
    "IMPLEMENTATIONS",
    "deform_attention",
    "inside_weight",
    "pick_implementation",
    "touched_rows",
]
