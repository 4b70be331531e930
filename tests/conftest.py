"""Test-wide switches: exact arithmetic, no silent broadcasting, 8 CPU devices."""

import os

# Before jax looks for accelerators: tests compare numbers of one kind of machine.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_numpy_rank_promotion", "raise")
