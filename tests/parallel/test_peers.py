"""Processes of one run notice that another one is gone."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.e2e import runs

pytestmark = pytest.mark.timeout(300)
LOST_CODE = 75
PROCESS = f"""
import sys, time
from semsam_jax.parallel.distributed import initialize
from semsam_jax.parallel.peers import PeerWatch
initialize()
with PeerWatch({LOST_CODE}):
    print("watching", flush=True)
    order = sys.stdin.readline().strip()
    if order == "fail":
        raise ValueError("the data is broken")
    time.sleep(0 if order == "end" else 120)
"""


@pytest.fixture
def three():
    """Three processes that watch each other until they are told otherwise."""
    address = f"127.0.0.1:{runs.free_port()}"
    env = os.environ | {"SEMSAM_COORDINATOR": address, "SEMSAM_NUM_PROCESSES": "3"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS],
            env=env | {"SEMSAM_PROCESS_ID": str(index)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(3)
    ]
    is_watching = ["watching\n" in iter(process.stdout.readline, "") for process in processes]
    yield processes
    for process in processes:
        process.kill()
    said = [process.communicate()[1] for process in processes]
    assert all(is_watching), said


def tell(process, order):
    process.stdin.write(f"{order}\n")
    process.stdin.flush()


@pytest.mark.parametrize("victim", [0, 2])
def test_killed_process_stops_the_others_within_a_minute(three, victim):
    others = [process for process in three if process is not three[victim]]
    for process in others:
        tell(process, "work")
    three[victim].send_signal(signal.SIGKILL)
    start = time.monotonic()
    for process in others:
        _, said = process.communicate(timeout=60)
        assert process.returncode == LOST_CODE, said
        assert f"process {victim}" in said
        assert "is gone" in said
        assert "the same command resumes from the newest checkpoint" in said
    assert time.monotonic() - start < 60


def test_failure_of_one_is_the_failure_of_all(three):
    for process, order in zip(three, ("work", "fail", "work"), strict=True):
        tell(process, order)
    for index in (0, 2):
        _, said = three[index].communicate(timeout=60)
        assert three[index].returncode == 2, said
        assert "the data is broken" in said


def test_processes_that_end_are_not_missed(three):
    for process in reversed(three):
        tell(process, "end")
    for process in three:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
        assert "error" not in said
