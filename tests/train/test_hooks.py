import io
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semsam_jax.core.errors import MatchError, TrainingError
from semsam_jax.matching.transport import AssignReport
from semsam_jax.parallel.hardware import Chip
from semsam_jax.train import hooks
from semsam_jax.train.hooks import Clock, Deadlines, Meter, NonFiniteWatch, Profile
from semsam_jax.train.writers import MetricWriter, ProgressLine, format_duration

GOOD = {"loss": 2.0, "is_finite": True, "nonfinite_costs": 0}


def add(watch, step, metrics):
    """As a step gives them: scalars on the device."""
    watch.add(step, {name: jnp.asarray(value) for name, value in metrics.items()})


def test_watch_returns_means_and_keeps_the_first_and_last():
    watch = NonFiniteWatch(lambda step, streams: "batch")
    add(watch, 0, GOOD)
    watch.check()  # a save in between loses nothing
    add(watch, 1, {**GOOD, "loss": 4.0})
    assert watch.check_all() == {"loss": 3.0}
    add(watch, 2, {**GOOD, "loss": 1.0})
    watch.check_all()
    assert watch.first == {"loss": 3.0}
    assert watch.check_all() == {}
    assert watch.last == {"loss": 1.0}


def test_watch_names_step_value_and_examples():
    def told(step, **values):
        watch = NonFiniteWatch(lambda step, streams: f"{streams} examples of batch {step}")
        add(watch, step, {**GOOD, **values})
        watch.check_all()

    bad = {"loss": np.nan, "generic/l1": np.inf, "is_finite": False}
    message = r"step 7: generic stream: not finite: generic/l1, loss \(\('generic',\) examples of"
    with pytest.raises(TrainingError, match=message):
        told(7, **bad)
    message = r"step 7: interactive and generic stream: not finite.*--allow_change"
    with pytest.raises(TrainingError, match=message):
        told(7, **{"grad_norm/all": np.nan, "is_finite": False})
    with pytest.raises(MatchError, match="step 8: 5 matching costs are not finite"):
        told(8, nonfinite_costs=5, is_finite=False)


def test_a_few_bad_steps_are_skipped_and_logged(caplog):
    watch = NonFiniteWatch(lambda step, streams: "image 17", max_in_a_row=2, max_in_all=3)
    bad = {**GOOD, "loss": np.nan, "is_finite": False}
    for step, metrics in enumerate([GOOD, bad, {**GOOD, "loss": 4.0}, bad]):
        add(watch, step, metrics)
    with caplog.at_level(logging.WARNING, logger="absl"):
        assert watch.check_all() == {"loss": 3.0}
    assert [r.message.count("image 17") for r in caplog.records] == [1, 1]
    assert "step 3: interactive and generic stream: not finite: loss" in caplog.text
    assert watch.num_skipped == 2
    add(watch, 4, bad)
    with pytest.raises(TrainingError, match="2 such steps in a row, 3 in all"):
        watch.check_all()


def test_deadlines_of_one_process(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(hooks.time, "perf_counter", lambda: now[0])
    deadlines = Deadlines(Clock(), stop_sec=100.0, save_sec=30.0, agree_every=7)
    assert deadlines.due(1) == (False, False)
    now[0] = 31.0
    assert deadlines.due(2) == (False, True)
    deadlines.saved()
    assert deadlines.due(3) == (False, False)
    now[0] = 101.0
    assert deadlines.due(4) == (True, True)


def test_several_processes_do_what_the_first_one_says(monkeypatch):
    """Their clocks differ; they ask only at steps that are logged."""
    asked = []

    def answer(own):
        asked.append(own.tolist())
        return np.array([True, False])

    monkeypatch.setattr(hooks.jax, "process_count", lambda: 2)
    monkeypatch.setattr(hooks.multihost_utils, "broadcast_one_to_all", answer)
    deadlines = Deadlines(Clock(), stop_sec=1e6, save_sec=0.0, agree_every=5)
    assert [deadlines.due(step) for step in (3, 4, 5)] == [(False, False)] * 2 + [(True, False)]
    assert asked == [[False, False]]
    silent = Deadlines(Clock(), stop_sec=0.0, save_sec=0.0, agree_every=5)
    assert silent.due(5) == (False, False)
    assert len(asked) == 1


def test_meter_shares():
    meter = Meter(rows=6)
    with meter.input():
        pass
    meter.count_step(0.5)
    values = meter.values()
    assert values["sec_per_step"] > 0
    np.testing.assert_allclose(values["images_per_sec"] * values["sec_per_step"], 6.0)
    np.testing.assert_allclose(values["host_matching_share"] * values["sec_per_step"], 0.5)


def test_meter_leaves_out_pauses(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(hooks.time, "perf_counter", lambda: now[0])
    meter = Meter(rows=6)
    now[0] += 3.0
    with meter.paused():
        now[0] += 50.0
    meter.count_step(0.0)
    assert meter.values()["sec_per_step"] == pytest.approx(3.0)


def test_one_step_alone_tells_its_halves_apart(monkeypatch):
    """8 s: 5 until the costs are there, 1 of matching, 2 for the rest."""
    now = [100.0]
    monkeypatch.setattr(hooks.time, "perf_counter", lambda: now[0])
    meter = Meter(rows=6)
    started = now[0]
    now[0] += 8.0
    meter.add("state", AssignReport(host_sec=1.0, wait_sec=5.0), started)
    values = meter.values()
    assert values["forward_share"] == pytest.approx(5 / 8)
    assert values["backward_share"] == pytest.approx(2 / 8)
    assert values["host_matching_share"] == pytest.approx(1 / 8)


def test_flops_become_utilisation(monkeypatch):
    """A quarter of what the chips can do, whatever the number of devices."""
    monkeypatch.setattr(hooks.hardware, "chip", lambda device: Chip(flops=1e12, memory=1))
    now = [100.0]
    monkeypatch.setattr(hooks.time, "perf_counter", lambda: now[0])
    meter = Meter(rows=6)
    meter.flops_per_step = 0.5e12 * jax.device_count()
    now[0] += 2.0
    meter.count_step(0.0)
    values = meter.values()
    assert values["mfu"] == pytest.approx(0.25)
    assert values["model_tflops_per_sec"] == pytest.approx(0.25 * jax.device_count())


def test_durations():
    assert [format_duration(s) for s in (0.4, 59.0, 200.0, 7500.0, 100000.0)] == [
        "0s",
        "59s",
        "3m20s",
        "2h05m",
        "1d03h",
    ]


def test_metrics_reach_jsonl_and_tensorboard(tmp_path):
    writer = MetricWriter(tmp_path)
    writer.write_scalars(3, {"loss": 1.5})
    writer.write_images(3, {"x": np.zeros((4, 5, 3), np.uint8)})
    writer.write_text(3, {"config": "steps = 12"})
    writer.close()
    record = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert (record["step"], record["loss"]) == (3, 1.5)
    (events,) = (tmp_path / "tensorboard").iterdir()
    content = events.read_bytes()
    assert b"loss" in content
    assert b"steps = 12" in content


def test_progress_line_shows_losses_rate_and_eta():
    stream = io.StringIO()
    values = {
        "loss": 3.0,
        "interactive/total": 2.0,
        "generic/total": 10.0,
        "images_per_sec": 5.0,
        "sec_per_step": 2.0,
        "host_matching_share": 0.01,
        "input_wait_share": 0.02,
    }
    ProgressLine(100, stream, {"interactive": 1.0, "generic": 0.1}).report(40, values)
    line = stream.getvalue()
    losses = "loss 3.000 (interactive 2.000, generic 0.1 x 10.000)"
    for words in ("step  40/100", losses, "5.0 images/s", "ETA 2m00s"):
        assert words in line


def test_a_profile_of_steps_that_are_not_made_is_told(tmp_path):
    """Those of a resumed run, say, are counted from the start of its first part."""
    profile = Profile(tmp_path, (10, 13))
    assert profile.missed(0, 11) == profile.missed(12, 500) == ""
    told = "--profile=10:13: nothing is recorded, because this run makes "
    assert profile.missed(13, 500) == f"{told}steps 13 to 499\n"
    assert profile.missed(0, 10) == f"{told}steps 0 to 9\n"
    assert profile.missed(500, 500) == f"{told}no step\n"
    assert Profile(tmp_path, None).missed(13, 500) == ""


@pytest.mark.parametrize("window", [(1, 2), (1, 9)], ids=["inside", "cut short by the end"])
def test_a_profile_records_its_steps(tmp_path, window):
    profile = Profile(tmp_path, window)
    for step in range(3):
        profile.at(step)
        jax.block_until_ready(jax.jit(lambda x: x * 2)(float(step)))
        assert step or not (tmp_path / "profile").exists()
    profile.close()
    (trace,) = (tmp_path / "profile").rglob("*.xplane.pb")
    assert trace.stat().st_size > 0
