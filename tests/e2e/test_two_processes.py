"""Two processes over loopback are one run.

Each compiles all of the network, so this is for the night; that costs and assignments find their
process is tested at each push (`tests/matching/test_transport.py`).
"""

import re
import signal
import time

import numpy as np
import pytest

from semsam_jax.parallel.distributed import RESTART_CODE
from tests.e2e import runs

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(3000)]
STEPS = runs.SMALL["steps"]
SETTINGS = {"eval_images": 0, "save_every": 3}


def test_they_follow_one_process(finished, cache, tmp_path):
    """The same global batch: each process feeds and matches its own rows."""
    workdir = tmp_path / "pair"
    first, second = runs.start_pair(workdir, cache, **SETTINGS)
    runs.read_until(first, step=7)  # the save of step 6 has written the figures until then
    second.kill()
    first.kill()
    first.communicate()
    _assert_the_second_is_quiet(second)
    _assert_same_losses(finished[0], workdir)


def test_one_is_lost_and_the_other_goes_on_alone(finished, cache, tmp_path):
    """The second is killed on the way: the first stops, and one process ends the run."""
    workdir = tmp_path / "pair"
    first, second = runs.start_pair(workdir, cache, **SETTINGS)
    runs.read_until(first, step=7)  # the save of step 6 has waited for that of step 3
    second.kill()
    killed = time.monotonic()
    said = first.communicate(timeout=runs.TIMEOUT_SEC)[0]
    # It sees the broken connection itself, or jax ends it after the silence.
    assert first.returncode in (RESTART_CODE, -signal.SIGABRT), said
    assert time.monotonic() - killed < 120
    assert first.returncode != RESTART_CODE or "lost another process" in said
    _assert_the_second_is_quiet(second)

    resumed = runs.run(workdir, cache, **SETTINGS)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    step = int(re.search(rf"resumed at step (\d+) of {STEPS}", resumed.stdout)[1])
    assert 1 <= step < STEPS
    assert f"step {STEPS}/{STEPS}" in resumed.stdout
    assert runs.losses(workdir).keys() == runs.losses(finished[0]).keys()
    _assert_same_losses(finished[0], workdir)


def _assert_the_second_is_quiet(second) -> None:
    """It names its share of the devices and leaves the progress to the first."""
    said = second.communicate()[0]
    assert " 1/2] 1 x cpu" in said
    assert "step" not in said


def _assert_same_losses(one_process, two_processes) -> None:
    one, two = runs.losses(one_process), runs.losses(two_processes)
    early = range(1, 5)
    np.testing.assert_allclose([two[s] for s in early], [one[s] for s in early], rtol=2e-3)
    np.testing.assert_allclose(two[1], one[1], rtol=1e-5)
