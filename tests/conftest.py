"""Test-wide switches: exact arithmetic, no silent broadcasting, 8 CPU devices."""

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_numpy_rank_promotion", "raise")
