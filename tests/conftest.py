"""Test-wide switches: exact arithmetic, no silent broadcasting, 8 CPU devices, quick compiling."""

import os

# Before jax looks for accelerators: tests compare numbers of one kind of machine.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_numpy_rank_promotion", "raise")

AS_SHIPPED = bool(os.environ.get("SEMSAM_JAX_TEST_AS_SHIPPED"))
"""Whether everything is compiled as users have it."""
QUICK_FLAGS = "--xla_cpu_use_fusion_emitters=false"
"""With LLVM's optimisations off, they halve what compiling takes."""


def _compile_quickly() -> None:
    """Small models compile for seconds and run for milliseconds: their code need not be fast.

    XLA reads its flags once, when the backend starts: processes that tests start do not get them.
    """
    before = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{before} {QUICK_FLAGS}"
    jax.config.update("jax_disable_most_optimizations", True)
    jax.jit(lambda x: x + 1)(1)
    os.environ["XLA_FLAGS"] = before


if not AS_SHIPPED:
    _compile_quickly()
