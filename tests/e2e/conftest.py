"""What all end-to-end tests share, also between parallel test workers."""

import fcntl
import os

import pytest

from tests.e2e import runs


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """One cache of compiled programs for all runs."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "e2e_cache"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def finished(cache):
    """A run that nothing disturbed: its workdir and what it said. Tests only read it."""
    workdir, said = cache / "straight", cache / "straight.txt"
    with (cache / "straight.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # The first worker runs it, the others wait.
        if not said.exists():
            done = runs.run(workdir, cache)
            assert done.returncode == 0, done.stderr[-3000:]
            said.write_text(done.stdout)
    return workdir, said.read_text()
