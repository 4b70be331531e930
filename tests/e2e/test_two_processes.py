"""Two processes over loopback are one run: they follow it, stop together, and resume together."""

import signal
import time

import numpy as np
import pytest

from benchmarks import kill_and_resume
from semsam_jax.core import checkpoint_io
from semsam_jax.train.hooks import RESTART_CODE
from tests.e2e import runs

pytestmark = pytest.mark.timeout(3000)
STEPS = runs.SMALL["steps"]
SETTINGS = {"eval_photos": 0, "save_every": 1}


@pytest.fixture(scope="module")
def pair(tmp_path_factory, cache):
    """Workdir of a run by two processes, and what they said."""
    workdir = tmp_path_factory.mktemp("run") / "pair"
    return workdir, _finish(runs.start_pair(workdir, cache, **SETTINGS))


def _finish(processes) -> list[str]:
    outputs = [process.communicate(timeout=runs.TIMEOUT_SEC)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)[-5000:]
    return outputs


def test_they_follow_one_process(pair, cache, tmp_path):
    """The same global batch: each process feeds and matches its own rows."""
    workdir, outputs = pair
    assert f"step {STEPS}/{STEPS}" in outputs[0]
    assert "step" not in outputs[1]
    for index, output in enumerate(outputs):
        assert f" {index}/2] 1 x cpu" in output
    done = runs.run(tmp_path / "one", cache, **SETTINGS)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = runs.losses(tmp_path / "one"), runs.losses(workdir)
    first = range(1, 5)
    np.testing.assert_allclose([two[s] for s in first], [one[s] for s in first], rtol=2e-3)
    np.testing.assert_allclose(two[1], one[1], rtol=1e-5)


@pytest.mark.parametrize("dies", [0, 1])
def test_a_dead_process_stops_the_other_and_the_restart_resumes(dies, pair, cache, tmp_path):
    workdir = tmp_path / "run"
    processes = runs.start_pair(workdir, cache, **SETTINGS)
    runs.read_until(processes[0], step=2)
    processes[dies].send_signal(signal.SIGKILL)
    begin = time.monotonic()
    said, _ = processes[1 - dies].communicate(timeout=runs.TIMEOUT_SEC)
    assert time.monotonic() - begin < 60
    assert processes[1 - dies].returncode == RESTART_CODE, said[-3000:]
    assert f"process {dies}" in said
    assert "is gone" in said
    assert f"stops with code {RESTART_CODE}; the same command resumes" in said
    saved = checkpoint_io.read_meta(workdir)["step"]
    assert 1 <= saved < STEPS
    outputs = _finish(runs.start_pair(workdir, cache, **SETTINGS))
    assert f"resumed at step {saved} of {STEPS}" in outputs[0]
    kill_and_resume.compare(pair[0], workdir)


def test_sigterm_to_one_of_them_saves_one_step_of_both(cache, tmp_path):
    workdir = tmp_path / "preempted"
    processes = runs.start_pair(workdir, cache, eval_photos=0)
    runs.read_until(processes[0], step=1)
    processes[1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=runs.TIMEOUT_SEC)[0] for process in processes]
    assert [p.returncode for p in processes] == [RESTART_CODE] * 2, "\n".join(outputs)[-5000:]
    assert "saved; the same command resumes" in outputs[0]
    assert checkpoint_io.read_meta(workdir)["step"] >= 1
