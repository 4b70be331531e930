"""Accelerators: memory and peak bfloat16 rate.

Manufacturers' figures: cloud.google.com/tpu/docs (system architecture) and the data sheets of the
cards, dense, without sparsity.
"""

import dataclasses

import jax


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device, in JAX's sense.

    Attributes:
        flops: peak bfloat16 operations per second.
        memory: bytes of its memory.
    """

    flops: float
    memory: int


_GIB = 2**30
CHIPS = {
    "TPU v4": Chip(275e12, 32 * _GIB),
    "TPU v5 lite": Chip(197e12, 16 * _GIB),
    "TPU v5": Chip(459e12, 95 * _GIB),
    "TPU v6 lite": Chip(918e12, 32 * _GIB),
    "NVIDIA A100-SXM4-40GB": Chip(312e12, 40 * _GIB),
    "NVIDIA A100-SXM4-80GB": Chip(312e12, 80 * _GIB),
    "NVIDIA H100 80GB HBM3": Chip(989e12, 80 * _GIB),
    "NVIDIA H200": Chip(989e12, 141 * _GIB),
    "NVIDIA L4": Chip(121e12, 24 * _GIB),
}
"""By `jax.Device.device_kind`; a v4 or v5p chip is one device of two cores."""


def chip(device: jax.Device) -> Chip | None:
    """The known figures of a device, or None."""
    return CHIPS.get(device.device_kind)


def memory_in_use() -> dict[str, float]:
    """Memory in use and its peak, in GiB, on the fullest device of this process.

    Empty if the backend does not report it (CPU).
    """
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    names = {"memory_gib": "bytes_in_use", "peak_memory_gib": "peak_bytes_in_use"}
    return {
        name: max(one[key] for one in stats) / _GIB
        for name, key in names.items()
        if all(key in one for one in stats)
    }
