"""What a run of several processes says: where a line comes from, and that another one is gone."""

import contextlib
import logging
import os
import socket
import subprocess
import sys
import time

import jax
import pytest
from absl import logging as absl_logging

from semsam_jax.parallel import distributed


def test_every_line_names_its_host_and_process(capsys):
    handler = absl_logging.get_absl_handler()
    before = handler.formatter
    try:
        distributed._name_this_process()
        record = logging.LogRecord("absl", logging.WARNING, __file__, 1, "a word", None, None)
        line = handler.format(record)
    finally:
        handler.setFormatter(before)
    name = f"[{socket.gethostname()} 0/1]"
    assert line == f"{name} WARNING a word"
    assert capsys.readouterr().err.startswith(name)


@pytest.mark.parametrize(
    ("error", "processes", "is_lost"),
    [
        (jax.errors.JaxRuntimeError("UNKNOWN: Gloo AllGather failed"), 2, True),
        (ValueError("UNKNOWN: Gloo AllGather failed: Connection reset by peer"), 2, True),
        (jax.errors.JaxRuntimeError("UNKNOWN: Gloo AllGather failed"), 1, False),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"), 2, False),
        (OSError(28, "No space left on device"), 2, False),
    ],
)
def test_a_lost_process_is_known_by_type_or_text(monkeypatch, error, processes, is_lost):
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    assert distributed.has_lost_process(error) == is_lost
    wrapped = RuntimeError("save failed")
    wrapped.__cause__ = error
    assert distributed.has_lost_process(wrapped) == is_lost


_PROCESS = """
import time
from semsam_jax.parallel import distributed
distributed.initialize()
from jax.experimental import multihost_utils
for number in range(4):
    time.sleep(1)
    multihost_utils.sync_global_devices(str(number))
"""


@pytest.mark.nightly
def test_stray_connections_do_not_end_a_run():
    """Scanners and health checks connect to the first process, say nothing, nonsense, or leave."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = probe.getsockname()
    env = {**os.environ, "SEMSAM_NUM_PROCESSES": "2", "JAX_NUM_CPU_DEVICES": "1"}
    env["SEMSAM_COORDINATOR"] = f"{address[0]}:{address[1]}"
    processes = [
        subprocess.Popen([sys.executable, "-c", _PROCESS], env={**env, "SEMSAM_PROCESS_ID": number})
        for number in ("0", "1")
    ]
    words, strays = (b"", b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0"), []
    while any(process.poll() is None for process in processes):
        with contextlib.suppress(OSError):
            strays.append(socket.create_connection(address, timeout=2))
            strays[-1].sendall(words[len(strays) % 3])
            if len(strays) % 2:
                strays[-1].close()
        time.sleep(0.2)
    for stray in strays:
        stray.close()
    assert [process.returncode for process in processes] == [0, 0]
    assert len(strays) > 5
