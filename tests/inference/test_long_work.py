"""Long commands show how far they are on a terminal only, and say what Ctrl-C leaves behind."""

import io
import os
import signal
import sys

import numpy as np
import pytest
from PIL import Image

from data_pipelines import build
from semsam_jax import __main__ as command_line
from semsam_jax import main as training
from semsam_jax.convert.torch_reader import read_state_dict
from semsam_jax.inference import auto, files
from semsam_jax.train.hooks import PreemptionGuard
from semsam_jax.train.writers import ProgressLine
from tests.inference.conftest import DATA


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def images(tmp_path, monkeypatch):
    """Three images, and a segmenter that only notes what it was asked."""
    monkeypatch.setenv("SEMSAM_JAX_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "images"
    folder.mkdir()
    for name in "abc":
        Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(folder / f"{name}.png")
    asked = []

    def segment(generator, image, image_id, target, stamp):
        asked.append(image.name)
        if asked == ["a.png", "b.png"]:
            raise KeyboardInterrupt
        files.write_json(target, {"annotations": [], "settings": stamp})
        return 1

    monkeypatch.setattr(auto, "_segment_one", segment)
    return folder, asked


def test_auto_goes_on_after_ctrl_c_and_says_so(images, tiny_checkpoint, capsys):
    folder, asked = images
    args = ["auto", str(folder), "--checkpoint", str(tiny_checkpoint)]
    assert command_line.main(args) == 130
    shown = capsys.readouterr()
    assert shown.err == (
        "semsam auto: interrupted; finished images are kept, the same command resumes\n"
    )
    assert command_line.main(args) == 0
    assert asked == ["a.png", "b.png", "b.png", "c.png"]
    assert ", 1 already finished" in capsys.readouterr().out


def test_bars_are_drawn_on_terminals_only(images, tiny_checkpoint, capsys, monkeypatch):
    folder, asked = images
    asked.append("none")
    args = ["auto", str(folder), "--checkpoint", str(tiny_checkpoint), "--overwrite"]
    assert command_line.main(args) == 0
    read_state_dict(DATA / "tiny_ref.pth")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert command_line.main(args) == 0
    read_state_dict(DATA / "tiny_ref.pth")
    shown = sys.stderr.getvalue()
    assert "3/3" in shown
    assert "image/s" in shown
    assert "reading" in shown


def test_training_reports_rate_and_time_left():
    out = io.StringIO()
    values = {"loss": 2.5, "images_per_sec": 4.0, "sec_per_step": 0.5}
    values |= {"host_matching_share": 0.01, "input_wait_share": 0.02}
    ProgressLine(100, out).report(40, values)
    assert out.getvalue() == (
        "step  40/100  loss 2.500  4.0 images/s  match 1.0%  input 2.0%  ETA 30s\n"
    )


def test_ctrl_c_in_training_saves_first_and_stops_at_once_the_second_time(capfd):
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        guard = PreemptionGuard()
        assert not guard.is_requested(3)
        os.kill(os.getpid(), signal.SIGINT)
        assert guard.is_requested(3)
        assert "after this step and saving" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        guard.close()  # a notebook that trained is interrupted as before
        assert {number: signal.getsignal(number) for number in before} == before
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_training_and_build_say_how_to_go_on(monkeypatch, capsys, tmp_path):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    training.flags.FLAGS.mark_as_parsed()
    monkeypatch.setattr(training, "main", interrupt)
    assert training.run_with_errors([]) == 130
    assert "the same command resumes from the newest checkpoint" in capsys.readouterr().err
    monkeypatch.setattr(build, "RecordsBuilder", interrupt)
    args = ["--dataset", "coco", "--root", str(tmp_path), "--out", str(tmp_path)]
    assert build.main(args) == 130
    assert "finished files are kept, the same command resumes" in capsys.readouterr().err
