"""Training state; it holds no random key."""

import typing
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from semsam_jax.parallel.sharding import state_shardings


@typing.no_type_check
@struct.dataclass
class TrainState:
    """Parameters, optimiser state, step, and averaged parameters (or None)."""

    params: dict
    opt_state: optax.OptState
    step: jax.Array
    ema_params: dict | None = None

    def to_tree(self) -> dict:
        """Returns the checkpoint's `state` item."""
        tree = {"params": self.params, "opt_state": self.opt_state, "step": self.step}
        return tree if self.ema_params is None else {**tree, "ema_params": self.ema_params}

    @classmethod
    def from_tree(cls, tree: dict) -> "TrainState":
        """Inverse of `to_tree`."""
        return cls(tree["params"], tree["opt_state"], tree["step"], tree.get("ema_params"))


def new_state(params: dict, tx: optax.GradientTransformation, has_ema: bool) -> TrainState:
    """Starts a state from parameters; the average starts at the parameters."""
    ema = jax.tree.map(jnp.array, params) if has_ema else None
    return TrainState(params, tx.init(params), jnp.zeros((), jnp.int32), ema)


def abstract_state(
    shapes: Mapping, tx: optax.GradientTransformation, has_ema: bool, mesh: Mesh
) -> TrainState:
    """Returns a state as shapes with shardings, without arrays.

    Args:
        shapes: of the parameters.
        tx: optimiser of the run.
        has_ema: whether the run averages its parameters.
        mesh: its devices need not exist.
    """
    state = jax.eval_shape(lambda tree: new_state(tree, tx, has_ema), dict(shapes))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        state_shardings(mesh, state),
    )


def shard_state(
    params: Mapping, tx: optax.GradientTransformation, has_ema: bool, mesh: Mesh
) -> TrainState:
    """Creates optimiser state and average with the sharding of the parameters.

    Args:
        params: NumPy arrays, which are placed on the mesh, or arrays that lie there.
        tx: optimiser of the run.
        has_ema: whether the run averages its parameters.
        mesh: of the run.
    """
    make = lambda tree: new_state(tree, tx, has_ema)  # noqa: E731
    params = dict(params)
    shardings = state_shardings(mesh, jax.eval_shape(make, params))
    return jax.jit(make, out_shardings=shardings)(place(params, shardings.params))


def place(params: Mapping, shardings: Mapping) -> dict:
    """Puts host arrays on their devices, each process its own shards; device arrays are kept."""
    return jax.tree.map(
        lambda value, sharding: (
            value
            if isinstance(value, jax.Array)
            else jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])
        ),
        dict(params),
        dict(shardings),
    )


def by_name(params: Mapping) -> dict[str, typing.Any]:
    """Parameters by their path, such as "decoder/norm/scale"."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(dict(params))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
