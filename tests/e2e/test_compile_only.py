"""A step compiled for a TPU slice that is not there, by libtpu from the extra `test`."""

import json
import subprocess

import pytest

from tests.e2e import runs

pytestmark = pytest.mark.timeout(3000)


def _command(tmp_path, topology: str, **changes) -> list[str]:
    command = runs.command(tmp_path / "plan", **changes)
    return [*command, "--compile_only", f"--topology={topology}"]


def _compile(tmp_path, topology: str, **changes) -> subprocess.CompletedProcess:
    return subprocess.run(
        _command(tmp_path, topology, **changes),
        cwd=runs.ROOT,
        # What is planned is looked at, not how fast it would be.
        env=runs.environment(tmp_path / "cache", JAX_EXEC_TIME_OPTIMIZATION_EFFORT="-1.0"),
        capture_output=True,
        text=True,
        timeout=runs.TIMEOUT_SEC,
    )


@pytest.mark.nightly
def test_a_slice_is_planned_without_one(tmp_path):
    done = _compile(
        tmp_path,
        "v5e:2x2",
        data__interactive_batch=4,
        data__generic_batch=0,
        text__source="none",
        model__dtype="bfloat16",
        fsdp=-1,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "plan" / "compile_only.json").read_text())
    assert report["mesh"] == {"data": 1, "fsdp": 4}
    assert report["rows_per_chip"] == [1, 0]
    forward, backward = report["programs"]
    assert (forward["name"], backward["name"]) == ("forward", "backward")
    # Split parameters are gathered to be used, and their gradients summed.
    assert forward["collectives"]["all-gather"] > 0
    assert {"all-reduce", "reduce-scatter"} & backward["collectives"].keys()
    assert 0 < report["resident"] < report["peak"] < report["hbm"] == 16 * 2**30
    assert report["flops"] > 0
    assert "| tiny | v5e:2x2 (4) | 1 x 4 | 1 + 0 |" in done.stdout


@pytest.mark.parametrize("topology", ["v5e", "v5e:3x5", "v99:2x2"])
def test_an_unknown_slice_is_one_line(topology, tmp_path, monkeypatch, capsys):
    found = runs.fails(_command(tmp_path, topology), monkeypatch, capsys)
    assert found.startswith("semsam train: --topology")
    assert topology in found
