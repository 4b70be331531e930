"""The quickstart: what it leaves behind, resume, preemption, two processes, bad input."""

import json
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from benchmarks import kill_and_resume
from semsam_jax.core import checkpoint_io
from semsam_jax.core.model_files import has_model
from semsam_jax.parallel.distributed import RESTART_CODE
from tests.e2e import runs

pytestmark = pytest.mark.timeout(3000)
EIGHT_DEVICES = {"data__interactive_batch": 8, "data__generic_batch": 8}  # of this process
SUMMARY_KEYS = {
    "preset",
    "data",
    "steps",
    "seconds",
    "seconds_to_first_step",
    "images_per_sec",
    "loss_first",
    "loss_last",
    "one_click_iou_max_before",
    "one_click_iou_max_after",
    "one_click_iou_oracle_before",
    "one_click_iou_oracle_after",
    "host_matching_share",
    "input_wait_share",
    "skipped_steps",
    "classes",
}


def test_it_says_what_it_uses_and_shows_progress(finished):
    _, said = finished
    for words in ("preset tiny", "embedded sample", "--data.root=DIR", "images/s", "ETA"):
        assert words in said
    assert "step 12/12" in said
    assert "held-out images" in said


def test_it_leaves_checkpoints_metrics_summary_and_pictures(finished):
    workdir, _ = finished
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary.keys() == SUMMARY_KEYS
    assert summary["steps"] == 12
    assert all(v is not None and np.isfinite(v) for v in summary.values() if type(v) is float)
    assert 0 <= summary["one_click_iou_max_after"] <= summary["one_click_iou_oracle_after"] <= 1
    # The small run knows no names here: clicks alone have figures.
    assert all(row.keys() == {"masks", "iou"} for row in summary["classes"].values())
    assert sorted(runs.losses(workdir)) == list(range(1, 13))
    assert any((workdir / "tensorboard").iterdir())
    assert "decoder/layers" in (workdir / "parameters.txt").read_text()
    assert "sa1b" in (workdir / "mixture.txt").read_text()
    picture = np.asarray(Image.open(workdir / "predictions.png"))
    assert picture.shape[1] > picture.shape[0] / 4
    assert picture.std() > 10
    meta = checkpoint_io.read_meta(workdir)
    assert meta["step"] == 12
    assert sorted(meta["level_order"]) == list(range(6))
    assert meta["vocabulary"]["objects"]
    assert has_model(workdir / "model")
    assert "steps = 12" in (workdir / "config.txt").read_text()


def test_segment_after_the_run_finds_its_programs(finished, cache, tmp_path):
    """The run has drawn its picture with them: the network is not traced or compiled again."""

    def traced():
        return {f.name for f in (cache / "traced").iterdir()}

    workdir, _ = finished
    (image,) = runs.ROOT.glob("data_pipelines/sample/data/coco/*/000000000785.jpg")
    before = traced()
    assert before
    command = [sys.executable, "-m", "semsam_jax", "segment", str(image), "--point", "300,200"]
    command += ["--checkpoint", str(workdir), "--out", str(tmp_path)]
    done = subprocess.run(
        command,
        cwd=runs.ROOT,
        env=runs.environment(cache, JAX_LOG_COMPILES="1", JAX_EXPLAIN_CACHE_MISSES="1"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(json.loads((tmp_path / "masks.json").read_text())) == 6
    assert traced() == before
    said = re.findall(r"cache (hit|miss) for '(\w+)'", done.stderr, re.IGNORECASE)
    found = {name for word, name in said if word == "hit"}
    missed = {name for word, name in said if word != "hit"}
    assert found
    assert not {name for name in missed if name.startswith("jit__")} - {"jit__above_zero"}


@pytest.mark.nightly  # five processes, two to six minutes
@pytest.mark.parametrize("kills", [(4,), (3, 5)], ids=["once", "twice"])
def test_interrupted_again_and_again_it_ends_bitwise_equal(kills, finished, cache, tmp_path):
    """Killed and then preempted, it loses nothing that matters."""
    straight, _ = finished
    workdir = tmp_path / "interrupted"
    for step in kills:
        process = runs.start(workdir, cache, save_every=2)
        runs.read_until(process, step)
        process.kill()
        process.communicate()
    process = runs.start(workdir, cache, save_every=2)
    runs.read_until(process, step=6)
    process.send_signal(signal.SIGTERM)
    rest = process.stdout.read()
    assert process.wait(timeout=600) == RESTART_CODE, rest
    assert "the same command resumes" in rest
    preempted = checkpoint_io.read_meta(workdir)["step"]
    assert 6 <= preempted < 12
    done = runs.run(workdir, cache)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"resumed at step {preempted} of 12" in done.stdout
    kill_and_resume.compare(straight, workdir)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__image_sise": 64}, "image_sise"),
        ({"data__image_size": 100}, "not a multiple of 32"),
        ({"data__root": "/nonexistent"}, "data.root /nonexistent"),
        ({"model__preset": "swin_xl"}, "unknown preset"),
        ({"fsdp": 3}, "fsdp: 3 does not divide"),
    ],
)
def test_bad_configurations_are_one_line_and_exit_code_2(
    changes, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("SEMSAM_JAX_CACHE", str(tmp_path / "cache"))
    command = runs.command(tmp_path / "run", **EIGHT_DEVICES | changes)
    assert message in runs.fails(command, monkeypatch, capsys)
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.nightly
def test_a_finished_run_is_left_as_it_is(finished, cache, tmp_path):
    """Started again, or started in another configuration."""
    straight, _ = finished
    other = tmp_path / "other"
    shutil.copytree(straight, other)
    before = {path: path.read_bytes() for path in other.rglob("*") if path.is_file()}
    done = runs.run(other, cache)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "already finished; nothing is changed" in done.stdout
    done = runs.run(other, cache, seed=5)
    assert done.returncode == 2
    assert "belongs to another configuration: seed: checkpoint 0, this run 5" in done.stderr
    assert {path: path.read_bytes() for path in other.rglob("*") if path.is_file()} == before


@pytest.mark.nightly
def test_a_finished_run_goes_on_when_told_to(finished, cache, tmp_path):
    straight, _ = finished
    other = tmp_path / "longer"
    shutil.copytree(straight, other)
    command = [*runs.command(other, steps=13, seed=5), "--allow_change=steps,seed"]
    done = subprocess.run(
        command, cwd=runs.ROOT, env=runs.environment(cache), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "resumed at step 12 of 13" in done.stdout
    assert "changed: seed: checkpoint 0, this run 5" in done.stdout
    assert json.loads((other / "summary.json").read_text())["steps"] == 13
    assert sorted(runs.losses(other)) == list(range(1, 14))


def test_a_workdir_that_cannot_be_written_is_one_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SEMSAM_JAX_CACHE", str(tmp_path / "cache"))
    (tmp_path / "file").write_text("x")
    command = runs.command(tmp_path / "file" / "run", **EIGHT_DEVICES)
    assert "cannot be written" in runs.fails(command, monkeypatch, capsys)
