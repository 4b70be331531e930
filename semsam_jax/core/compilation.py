"""Persistent compilation cache, so that later starts do not compile again."""

import jax

from semsam_jax.core import checkpoint_io


def use_compilation_cache() -> None:
    """Keeps compiled programs in the user's cache folder.

    `JAX_COMPILATION_CACHE_DIR` chooses another folder, `JAX_ENABLE_COMPILATION_CACHE=0`
    switches it off.
    """
    if jax.config.jax_compilation_cache_dir is None:
        folder = checkpoint_io.cache_dir() / "xla"
        jax.config.update("jax_compilation_cache_dir", str(folder))
        # Cache small programs too: a first mask needs several, each of which compiles for a tenth
        # of a second.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
