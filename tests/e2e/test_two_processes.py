"""Two processes over loopback are one run."""

import re
import time

import numpy as np
import pytest

from semsam_jax.train.hooks import RESTART_CODE
from tests.e2e import runs

pytestmark = pytest.mark.timeout(3000)
STEPS = runs.SMALL["steps"]
SETTINGS = {"eval_photos": 0, "save_every": 1}


def _finish(processes) -> list[str]:
    outputs = [process.communicate(timeout=runs.TIMEOUT_SEC)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)[-5000:]
    return outputs


def _lose_one(workdir, cache) -> str:
    """Starts both, kills the second after two steps; what the first said when it stopped."""
    first, second = runs.start_pair(workdir, cache, **SETTINGS)
    runs.read_until(first, step=2)
    second.kill()
    killed = time.monotonic()
    said = first.communicate(timeout=runs.TIMEOUT_SEC)[0]
    assert first.returncode == RESTART_CODE, said
    assert time.monotonic() - killed < 60
    second.communicate()
    return said


def test_they_follow_one_process_also_after_one_was_killed(cache, tmp_path):
    """The same global batch: each process feeds and matches its own rows.

    One test, because parallel workers would each make the two runs for their own.
    """
    workdir = tmp_path / "pair"
    said = _lose_one(workdir, cache)
    assert "process 1" in said
    assert "is gone; process 0 of this run" in said
    assert f"stops with code {RESTART_CODE}" in said
    outputs = _finish(runs.start_pair(workdir, cache, **SETTINGS))
    step = int(re.search(rf"resumed at step (\d+) of {STEPS}", outputs[0])[1])
    assert 1 <= step < STEPS
    assert f"step {STEPS}/{STEPS}" in outputs[0]
    assert "step" not in outputs[1]
    for index, output in enumerate(outputs):
        assert f" {index}/2] 1 x cpu" in output

    done = runs.run(tmp_path / "one", cache, **SETTINGS)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = runs.losses(tmp_path / "one"), runs.losses(workdir)
    assert two.keys() == one.keys()
    first = range(1, 5)
    np.testing.assert_allclose([two[s] for s in first], [one[s] for s in first], rtol=2e-3)
    np.testing.assert_allclose(two[1], one[1], rtol=1e-5)
