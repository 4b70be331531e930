"""What a run does when it is killed, when its numbers explode, and when the disk is full."""

import re

import jax
import numpy as np
import pytest

from benchmarks.kill_and_resume import kill_and_resume
from semsam_jax.core import checkpoint_io
from tests.e2e import runs

pytestmark = pytest.mark.timeout(3000)


def test_three_kills_and_the_end_is_that_of_a_straight_run(cache, tmp_path):
    flags = [word for word in runs.command(tmp_path)[3:] if not word.startswith("--workdir")]
    flags += ["--config.save_every=2", "--config.eval_photos=0"]
    outcome = kill_and_resume(flags, tmp_path, 3, seed=1, environment=runs.environment(cache))
    assert len(outcome.kills) == 3
    assert outcome.ends >= 1


def test_numbers_that_explode_stop_with_step_stream_and_examples(cache, tmp_path):
    """A learning rate that leaves no finite activation after the first update."""
    done = runs.run(
        tmp_path / "run", cache, optimizer__learning_rate=1e30, save_every=1, eval_photos=0
    )
    assert done.returncode == 2, done.stderr[-3000:]
    last = done.stderr.strip().splitlines()[-1]
    found = re.match(r"error: step (\d+)(, | stream: |:)", last)
    assert found, last
    assert re.search(r"(interactive|generic) rows: \w+/", last), last
    assert "the parameters are those of the step before" in last
    params, meta = checkpoint_io.read_model(tmp_path / "run")
    assert meta["step"] <= int(found[1])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_a_full_disk_is_one_line(cache, tmp_path):
    """The file of the metrics is the device that is always full."""
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "metrics.jsonl").symlink_to("/dev/full")
    done = runs.run(workdir, cache, eval_photos=0)
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "No space left on device" in last
    assert "resumes from the newest checkpoint" in last
    assert "Traceback" not in done.stderr
