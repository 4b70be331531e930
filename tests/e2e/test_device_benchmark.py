"""What an owner of a GPU or TPU would run, small on a CPU."""

import time

import jax
import pytest

from benchmarks import device


def test_what_there_is_no_time_for_is_said():
    rows = list(device.measure(list(device.SECTIONS), device.SMALL, time.monotonic() - 1))
    assert {row.figure for row in rows} == {"not reached"}
    names = [row.what for row in rows]
    assert "`cell_gather`, bfloat16" in names
    assert "joint step, tiny" in names
    assert not any("matmul" in name for name in names)  # interpreted on a CPU


def test_the_table_names_device_version_and_command():
    lines = device.table([device.Row("encode", "1.0 ms", "how")], ["--minutes", "3"])
    assert lines[0].startswith(f"{jax.devices()[0].device_kind}, {jax.device_count()} of them")
    assert jax.__version__ in lines[0]
    assert lines[0].endswith("`python -m benchmarks.device --minutes 3`")
    assert lines[-1] == "| encode | 1.0 ms | how |"


def test_a_program_that_does_not_fit_costs_its_own_row_alone(monkeypatch):
    def fails():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 99 | 16")
        yield

    def section(_):
        yield "first", fails
        yield "second", lambda: iter([device.Row("second", "1 s")])

    monkeypatch.setattr(device, "forms", section)
    rows = list(device.measure(["forms"], device.SMALL, time.monotonic() + 60))
    assert [row.figure for row in rows] == ["failed", "1 s"]
    assert rows[0].how == "RESOURCE_EXHAUSTED: 99 / 16"


@pytest.mark.nightly
@pytest.mark.parametrize("section", device.SECTIONS)
def test_every_section_runs(section):
    rows = list(device.measure([section], device.SMALL, time.monotonic() + 3000))
    assert rows
    assert not [row for row in rows if row.figure in ("failed", "not reached")]
