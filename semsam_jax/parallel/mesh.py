"""The only place that builds a mesh and says how arrays lie on it.

Two axes: `data` replicates parameters, `fsdp` splits them; the batch is split over both.
Axes are `Auto`: explicit axes (the default of `jax.make_mesh`) break ordinary gathers.
"""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from semsam_jax.core.errors import ConfigError

BATCH_AXES = ("data", "fsdp")


def build_mesh(fsdp: int = 1, devices: list | None = None) -> Mesh:
    """Builds a (data, fsdp) mesh over all devices.

    Args:
        fsdp: number of devices that share one copy of the parameters; -1 means all.
        devices: devices to use, default all of the run.

    Raises:
        ConfigError: when the number of devices is not a multiple of `fsdp`.
    """
    devices = list(jax.devices() if devices is None else devices)
    fsdp = len(devices) if fsdp == -1 else fsdp
    if fsdp < 1 or len(devices) % fsdp:
        raise ConfigError(
            f"mesh.fsdp: {fsdp} does not divide the {len(devices)} devices; use one of "
            f"{[n for n in range(1, len(devices) + 1) if len(devices) % n == 0]} or -1 for all."
        )
    grid = np.asarray(devices).reshape(len(devices) // fsdp, fsdp)
    return Mesh(grid, ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Axis 0 over every device; the other axes whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def num_batch_shards(mesh: Mesh) -> int:
    """Number of pieces that axis 0 of a batch is cut into."""
    return mesh.size
