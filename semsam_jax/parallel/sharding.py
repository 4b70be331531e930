"""Sharding rule of parameters and optimiser state."""

import functools

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

MIN_SHARDED_SIZE = 2**16


def parameter_spec(shape: tuple[int, ...], fsdp: int) -> PartitionSpec:
    """Splits the largest divisible axis over `fsdp`; small arrays stay whole.

    Splitting an array below 64 Ki elements saves nothing and costs a collective. Ties go
    to the last axis, which is the contiguous one.
    """
    size = 1
    for length in shape:
        size *= length
    if fsdp == 1 or size < MIN_SHARDED_SIZE:
        return PartitionSpec()
    divisible = [axis for axis, length in enumerate(shape) if length % fsdp == 0]
    if not divisible:
        return PartitionSpec()
    chosen = max(divisible, key=lambda axis: (shape[axis], axis))
    return PartitionSpec(*("fsdp" if axis == chosen else None for axis in range(chosen + 1)))


def state_shardings(mesh: Mesh, tree: object) -> object:
    """Returns a NamedSharding for each leaf of a tree of arrays or shapes."""
    fsdp = mesh.shape["fsdp"]
    return jax.tree.map(
        lambda leaf: NamedSharding(mesh, parameter_spec(tuple(leaf.shape), fsdp)), tree
    )


def gathered(mesh: Mesh, tree: object) -> object:
    """Gathers parameters for their use, and shards their gradients again.

    Otherwise the compiler would propagate the sharding of the parameters: it would split features
    over `fsdp` instead of rows, and communicate activations.
    """
    if mesh.shape["fsdp"] == 1:
        return tree
    return jax.tree.map(functools.partial(_whole, mesh), tree)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _whole(mesh: Mesh, x: jax.Array) -> jax.Array:
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec()))


def _whole_forward(mesh: Mesh, x: jax.Array) -> tuple[jax.Array, None]:
    return _whole(mesh, x), None


def _whole_backward(mesh: Mesh, _: None, grad: jax.Array) -> tuple[jax.Array]:
    spec = parameter_spec(grad.shape, mesh.shape["fsdp"])
    return (jax.lax.with_sharding_constraint(grad, NamedSharding(mesh, spec)),)


_whole.defvjp(_whole_forward, _whole_backward)
