"""Start-up of a run on several processes."""

import os

import jax

from semsam_jax.core.errors import ConfigError

_CLUSTER_MARKERS = (
    "TPU_WORKER_HOSTNAMES",
    "SLURM_NTASKS",
    "JOB_COMPLETION_INDEX",
    "MEGASCALE_NUM_SLICES",
)


def initialize() -> None:
    """Joins the other processes of a run, if there are any.

    On TPU pods, SLURM and GKE jax finds the others by itself. Elsewhere give all three of
    SEMSAM_COORDINATOR (host:port), SEMSAM_NUM_PROCESSES and SEMSAM_PROCESS_ID.

    Raises:
        ConfigError: when only some of the three variables are set.
    """
    names = ("SEMSAM_COORDINATOR", "SEMSAM_NUM_PROCESSES", "SEMSAM_PROCESS_ID")
    values = [os.environ.get(name) for name in names]
    if all(values):
        jax.distributed.initialize(values[0], int(values[1]), int(values[2]))
        return
    if any(values):
        missing = ", ".join(name for name, value in zip(names, values, strict=True) if not value)
        raise ConfigError(f"distributed start-up: {missing} not set; set all three or none.")
    if any(_counts_more_than_one(os.environ.get(marker)) for marker in _CLUSTER_MARKERS):
        jax.distributed.initialize()


def _counts_more_than_one(value: str | None) -> bool:
    if not value:
        return False
    if value.isdigit():
        return int(value) > 1
    return "," in value
