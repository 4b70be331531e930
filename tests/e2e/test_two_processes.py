"""Two processes over loopback are one run."""

import numpy as np
import pytest

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
