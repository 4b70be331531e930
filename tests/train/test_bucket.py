"""A workdir in a bucket: fsspec's file system in memory stands in for `s3://`.

What Orbax itself writes there (the arrays of a step) goes through its own driver and is not
seen here.
"""

import json
from typing import ClassVar

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from semsam_jax.core import checkpoint_io
from semsam_jax.core.errors import CheckpointError, ConfigError
from semsam_jax.core.model_files import save_model
from semsam_jax.core.paths import as_path
from semsam_jax.train import figures, report
from semsam_jax.train.best import BestCheckpoint
from semsam_jax.train.checkpoints import Checkpoints
from semsam_jax.train.hooks import Profile
from semsam_jax.train.writers import MetricWriter

PARAMS = {"a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}}
META = {"preset": "tiny", "level_order": [1, 0], "step": 4}


class Bucket(MemoryFileSystem):
    """Objects in memory under the names that a bucket gives them."""

    protocol = "s3"
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("s3://").strip("/")


@pytest.fixture
def workdir():
    """An empty folder of a bucket."""
    fsspec.register_implementation("s3", Bucket, clobber=True)
    Bucket.store.clear()
    Bucket.pseudo_dirs[:] = [""]
    return as_path("s3://bucket/runs/first")


def test_a_model_is_written_read_replaced_and_reordered(workdir):
    save_model(workdir / "model", PARAMS, META)
    with pytest.raises(CheckpointError, match="s3://bucket/runs/first/model: already holds"):
        save_model(workdir / "model", PARAMS, META)
    save_model(workdir / "model", PARAMS, META | {"step": 5}, dtype="bfloat16", overwrite=True)
    checkpoint_io.update_meta(workdir, {"level_order": [0, 1]})
    params, meta = checkpoint_io.read_model("s3://bucket/runs/first")
    np.testing.assert_array_equal(params["a"]["kernel"], PARAMS["a"]["kernel"])
    assert (meta["step"], meta["level_order"]) == (5, [0, 1])
    names = sorted(path.name for path in (workdir / "model").iterdir())
    assert names == ["config.json", "model.safetensors"]


def test_metrics_of_a_run_and_of_its_resumption_are_one_file(workdir):
    for step in (1, 2):
        writer = MetricWriter(workdir)
        writer.write_scalars(step, {"loss": 0.5 * step})
        writer.flush()
        assert len((workdir / "metrics.jsonl").read_text().splitlines()) == step
        writer.close()
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == [0.5, 1.0]
    assert any((workdir / "tensorboard").iterdir())


def test_best_model_picture_and_summary(workdir):
    best = BestCheckpoint(workdir, is_on=True)
    found = {"iou_max": 0.25, "mask_ap": 0.5, "classes": {"cat": {"ap": 50.0}}}
    assert best.update(found, PARAMS, META, step=3)
    again = BestCheckpoint(workdir, is_on=True)
    assert (again.score, again.step, again.evaluation) == (0.25, 3, found)
    figures.save_figure(workdir, np.zeros((4, 5, 3), np.uint8))
    assert (workdir / "predictions.png").read_bytes().startswith(b"\x89PNG")
    assert report.finished_summary(workdir) is None
    (workdir / "summary.json").write_text('{"steps": 3}')
    assert report.finished_summary(workdir) == {"steps": 3}


def test_an_empty_bucket_has_no_step_and_takes_no_profile(workdir):
    with Checkpoints(workdir, keep=1) as checkpoints:
        assert checkpoints.latest_step() is None
        assert checkpoints.latest_meta() is None
    with pytest.raises(ConfigError, match="choose a local --workdir"):
        Profile(workdir, (1, 2))
