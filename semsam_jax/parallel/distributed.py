"""Start-up of a run on several processes."""

import logging
import os
import socket
import sys

import jax
from absl import logging as absl_logging

from semsam_jax.core.errors import ConfigError

# jax's own watch over the other processes; `peers.PeerWatch` is quicker and clearer.
_HEARTBEAT_SEC = 45
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
        jax.distributed.initialize(
            values[0],
            int(values[1]),
            int(values[2]),
            heartbeat_timeout_seconds=_HEARTBEAT_SEC,
        )
        _name_this_process()
        return
    if any(values):
        missing = ", ".join(name for name, value in zip(names, values, strict=True) if not value)
        raise ConfigError(f"distributed start-up: {missing} not set; set all three or none.")
    if any(_counts_more_than_one(os.environ.get(marker)) for marker in _CLUSTER_MARKERS):
        jax.distributed.initialize(heartbeat_timeout_seconds=_HEARTBEAT_SEC)
        _name_this_process()


def _name_this_process() -> None:
    """Puts host and process number before every line of the log, and says who is here."""
    name = f"{socket.gethostname()} {jax.process_index()}/{jax.process_count()}"
    handler = absl_logging.get_absl_handler()
    handler.setFormatter(logging.Formatter(f"[{name}] %(levelname)s %(message)s"))
    devices = jax.local_devices()
    print(f"[{name}] {len(devices)} x {devices[0].device_kind}", file=sys.stderr, flush=True)


def _counts_more_than_one(value: str | None) -> bool:
    if not value:
        return False
    if value.isdigit():
        return int(value) > 1
    return "," in value
