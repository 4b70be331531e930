"""Builds the mesh and the shardings of batches; the only place that does.

Two axes: `data` replicates parameters, `fsdp` splits them; the batch is split over both.
With several slices `data` has two tiers: the slices, and the devices of a slice.
Axes are `Auto`: explicit axes (the default of `jax.make_mesh`) break ordinary gathers.
"""

import contextlib

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from semsam_jax.core.errors import ConfigError

BATCH_AXES = ("data", "fsdp")


def build_mesh(fsdp: int = 1, devices: list | None = None, slices: int = 0) -> Mesh:
    """Builds a (data, fsdp) mesh over all devices.

    Slices are connected by the data-centre network, which is far slower than the links within a
    slice. So `fsdp` stays within a slice and slices are stacked along `data`: only the sum of
    gradients crosses the slow network.

    Args:
        fsdp: number of devices that share one copy of the parameters; -1 means all of a slice.
        devices: devices to use; all of the run by default.
        slices: number of slices; 0 takes the number that the devices report, or one if they report
            none.

    Raises:
        ConfigError: when `fsdp` or `slices` does not divide the devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    tiers = _slices(devices, slices)
    size = len(tiers[0])
    fsdp = size if fsdp == -1 else fsdp
    if fsdp < 1 or size % fsdp:
        of = f" of a slice ({len(tiers)} slices)" if len(tiers) > 1 else ""
        raise ConfigError(
            f"fsdp: {fsdp} does not divide the {size} devices{of}; use one of "
            f"{[n for n in range(1, size + 1) if size % n == 0]} or -1 for all."
        )
    grid = np.asarray(tiers).reshape(len(devices) // fsdp, fsdp)
    return Mesh(grid, ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))


def _slices(devices: list, wanted: int) -> list[list]:
    """The devices of each slice, in the order of `devices`."""
    found: dict[int, list] = {}
    for device in devices:
        found.setdefault(getattr(device, "slice_index", 0), []).append(device)
    if wanted and len(found) == 1 and len(devices) % wanted == 0:
        size = len(devices) // wanted  # Devices that report no slice, such as those of GPU nodes.
        return [devices[start : start + size] for start in range(0, len(devices), size)]
    if wanted not in (0, len(found)) or len({len(tier) for tier in found.values()}) > 1:
        sizes = ", ".join(f"slice {index}: {len(tier)}" for index, tier in sorted(found.items()))
        raise ConfigError(
            f"slices: {wanted} does not fit the {len(devices)} devices ({sizes}); slices "
            f"must have equal sizes; slices=0 uses those that the devices report."
        )
    return [found[index] for index in sorted(found)]


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Axis 0 over every device; the other axes whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def num_batch_shards(mesh: Mesh) -> int:
    """Number of pieces that axis 0 of a batch is cut into."""
    return mesh.size


def in_use(mesh: Mesh) -> contextlib.AbstractContextManager:
    """Sets the mesh for kernels, which no compiler splits by itself; one device needs none.

    A program for several TPUs is traced inside, or refused by JAX.
    """
    if mesh.size == 1:
        return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)
