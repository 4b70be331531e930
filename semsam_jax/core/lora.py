"""Low-rank updates of linear layers (LoRA, arXiv 2106.09685), stored with the parameters.

The subtree `lora` mirrors the tree of the updated kernels, with `a` [.., inputs, rank] and `b` [..,
rank, outputs] in place of each. A kernel is used as kernel + a @ b. Everything here works on NumPy
and on JAX arrays alike.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

GROUP = "lora"
UPDATED = ("backbone", "pixel_decoder", "decoder")


def add(
    params: Mapping[str, Any], rank: int, seed: int, empty: Callable[..., Any] | None = None
) -> dict[str, Any]:
    """Adds updates of rank `rank` to all stacked linear layers; they start at zero.

    Args:
        params: parameters, or their shapes.
        rank: columns of `a`.
        seed: of the initial `a` (`b` starts at zero).
        empty: makes an update of (shape, dtype) instead, such as `jax.ShapeDtypeStruct`.
    """
    rng = np.random.default_rng((seed, rank))
    updates = {top: _updates(params[top], rank, rng, empty) for top in UPDATED if top in params}
    return {**params, GROUP: {top: tree for top, tree in updates.items() if tree}}


def merged(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters with the updates merged into their kernels, without `lora`."""
    updates = params.get(GROUP, {})
    return {
        top: _with_updates(tree, updates[top]) if top in updates else tree
        for top, tree in params.items()
        if top != GROUP
    }


def _updates(
    tree: Mapping[str, Any], rank: int, rng: np.random.Generator, empty: Callable[..., Any] | None
) -> dict[str, Any]:
    found = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            if inner := _updates(value, rank, rng, empty):
                found[key] = inner
        elif key == "kernel" and value.ndim == 3:  # stacked linear layers; convolutions have 4
            layers, inputs, outputs = value.shape
            if empty is not None:
                sizes = {"a": (layers, inputs, rank), "b": (layers, rank, outputs)}
                found[key] = {name: empty(size, np.float32) for name, size in sizes.items()}
                continue
            a = rng.normal(size=(layers, inputs, rank)) / np.sqrt(inputs)
            b = np.zeros((layers, rank, outputs), np.float32)
            found[key] = {"a": a.astype(np.float32), "b": b}
    return found


def _with_updates(tree: Mapping[str, Any], updates: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(tree)
    for key, update in updates.items():
        if key == "kernel":
            out[key] = tree[key] + update["a"] @ update["b"]
        else:
            out[key] = _with_updates(tree[key], update)
    return out
