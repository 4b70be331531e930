"""Random parameters without running (and compiling) any initialiser."""

import jax
import jax.numpy as jnp
import numpy as np


def random_params(init, seed=0):
    """Fills the tree that `init(key)` would return; no leaf is left zero or constant.

    Kernels get the usual scale of their fan-in, scales lie around one.
    """
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        name = path[-1].key
        if leaf.ndim < 2 or name in ("bias", "scale"):
            values = (name == "scale") + 0.05 * rng.standard_normal(leaf.shape)
        else:
            values = rng.standard_normal(leaf.shape) / np.sqrt(leaf.shape[-2])
        return jnp.asarray(values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, jax.eval_shape(init, jax.random.key(0)))
