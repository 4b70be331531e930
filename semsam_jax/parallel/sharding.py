"""How parameters and optimiser state lie on the mesh: one short rule."""

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
