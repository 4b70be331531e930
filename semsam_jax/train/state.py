"""Training state; it holds no random key."""

import typing

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


def shard_state(
    params: dict, tx: optax.GradientTransformation, has_ema: bool, mesh: Mesh
) -> TrainState:
    """Places host parameters on the mesh and starts optimiser state where they lie."""
    make = lambda tree: new_state(tree, tx, has_ema)  # noqa: E731
    shardings = state_shardings(mesh, jax.eval_shape(make, params))
    placed = jax.tree.map(
        lambda value, sharding: jax.make_array_from_callback(
            value.shape, sharding, lambda index, value=value: value[index]
        ),
        params,
        shardings.params,
    )
    return jax.jit(make, out_shardings=shardings)(placed)
