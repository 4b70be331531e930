"""Start-up of a run on several processes."""

import contextlib
import logging
import os
import re
import socket
import sys
import traceback
import zlib
from collections.abc import Iterator

import jax
import numpy as np
from absl import logging as absl_logging
from jax.experimental import multihost_utils

from semsam_jax.core.errors import ConfigError, SemSamError

RESTART_CODE = 75
"""Exit code after a saved stop, or when another process is gone (EX_TEMPFAIL); launchers start
the same command again.
"""

_HEARTBEAT_SEC = 45
"""Seconds of silence after which a process counts as lost; jax then aborts the others (SIGABRT)."""
_SHUTDOWN_SEC = 60
_LOST = re.compile(r"(UNKNOWN|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED|INTERNAL): ")
"""How the text of an XLA status begins when a connection broke."""
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
            shutdown_timeout_seconds=_SHUTDOWN_SEC,
        )
        _name_this_process()
        return
    if any(values):
        missing = ", ".join(name for name, value in zip(names, values, strict=True) if not value)
        raise ConfigError(f"distributed start-up: {missing} not set; set all three or none.")
    if any(_counts_more_than_one(os.environ.get(marker)) for marker in _CLUSTER_MARKERS):
        jax.distributed.initialize(
            heartbeat_timeout_seconds=_HEARTBEAT_SEC, shutdown_timeout_seconds=_SHUTDOWN_SEC
        )
        _name_this_process()


def processes_on_this_host() -> int:
    """How many processes of the run share this host's cores. All processes call it."""
    if jax.process_count() == 1:
        return 1
    name = np.uint32(zlib.crc32(socket.gethostname().encode()))
    return int((multihost_utils.process_allgather(name) == name).sum())


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Exits at once if this process of a multi-process run fails.

    An ordinary exit would wait for the other processes, which wait for this one. The exit code is
    `RESTART_CODE` if another process was lost. A single process raises as usual.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if jax.process_count() == 1:
            raise
        code = _explain(error)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def has_lost_process(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that another process of the run is gone.

    XLA's status is recognised by type and by text: on its way through other libraries it becomes
    a ValueError or RuntimeError. A full device is this process's own trouble.
    """
    if jax.process_count() == 1:
        return False
    while error is not None:
        is_status = isinstance(error, jax.errors.JaxRuntimeError) or _LOST.match(str(error))
        if is_status and "RESOURCE_EXHAUSTED" not in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _explain(error: BaseException) -> int:
    """Prints what ended this process; returns its exit code."""
    if isinstance(error, SemSamError):
        print(f"error: {error}", file=sys.stderr)
        return 2
    traceback.print_exception(error)
    if isinstance(error, KeyboardInterrupt):
        return 130
    if not has_lost_process(error):
        return 1
    print(
        f"error: process {jax.process_index()} of this run (on {socket.gethostname()}) lost "
        f"another process and stops with code {RESTART_CODE}; the same command resumes from the "
        f"newest checkpoint.",
        file=sys.stderr,
    )
    return RESTART_CODE


def _name_this_process() -> None:
    """Prefixes log lines with host and process number, and logs the devices."""
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
