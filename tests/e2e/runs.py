"""Runs of the quickstart as a user starts it: a subprocess, small sizes, one compile cache."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

from absl import flags

from semsam_jax import main
from tests.conftest import COMPILE_QUICKLY

TIMEOUT_SEC = 2400
ROOT = Path(__file__).parents[2]
SMALL = {
    "model.preset": "tiny",
    "model.backbone_weights": "",
    "model.init": "random",
    "text.source": "encoder",
    "data.image_size": 64,
    "data.interactive_batch": 2,
    "data.generic_batch": 2,
    "data.max_instances": 12,
    "data.num_prompts": 4,
    "loss.num_points": 64,
    "loss.match_points": 64,
    "optimizer.warmup_steps": 1,
    # All runs have these, so that they share their compiled programs (schedules are in them).
    "steps": 12,
    "save_every": 6,
    "log_every": 1,
    "eval_images": 2,
}


def command(workdir: Path, config: str = "joint.py:scratch", values=SMALL, **changes) -> list[str]:
    """Command line of a small run; `changes` use __ for the dots of a key."""
    values = values | {key.replace("__", "."): value for key, value in changes.items()}
    overrides = [f"--config.{key}={value}" for key, value in values.items()]
    base = [sys.executable, "-m", "semsam_jax.main", f"--config=configs/{config}"]
    return [*base, f"--workdir={workdir}", *overrides]


def environment(cache: Path, **extra: str) -> dict[str, str]:
    """Environment with its own cache folder; only compiled programs are shared by all tests."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("SEMSAM_")}
    env |= {"SEMSAM_JAX_CACHE": str(cache), "JAX_PLATFORMS": "cpu"}
    env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # as users have it
    return env | COMPILE_QUICKLY | extra


def run(workdir: Path, cache: Path, **changes) -> subprocess.CompletedProcess:
    """Runs to the end and returns the finished process, output as text."""
    return subprocess.run(
        command(workdir, **changes),
        cwd=ROOT,
        env=environment(cache),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SEC,
    )


def fails(command: list[str], monkeypatch, capsys) -> str:
    """Gives a command line that cannot work to this process, which is quicker than a new one.

    Returns:
        What it printed as its error: one line, with exit code 2.
    """
    argv = command[2:]  # without `python -m`
    monkeypatch.setattr(sys, "argv", argv)  # where ml_collections looks for overridden keys
    flags.FLAGS.unparse_flags()
    for name in [name for name in flags.FLAGS if name.startswith("config.")]:
        delattr(flags.FLAGS, name)  # made for the keys of the last command line
    try:
        code = main.run_with_errors(main.parse_or_exit(argv))
    except SystemExit as end:
        code = end.code
    assert code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("semsam train: ")
    return line


def start(workdir: Path, cache: Path, env: dict[str, str] | None = None, **changes):
    """Starts a run whose output, errors included, is a pipe of text."""
    return subprocess.Popen(
        command(workdir, **changes),
        cwd=ROOT,
        env=environment(cache, **(env or {})),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def start_pair(workdir: Path, cache: Path, **changes) -> list[subprocess.Popen]:
    """Starts two processes of one run, as two hosts would, over loopback."""
    port = free_port()
    together = {"SEMSAM_COORDINATOR": f"127.0.0.1:{port}", "SEMSAM_NUM_PROCESSES": "2"}
    return [
        start(workdir, cache, together | {"SEMSAM_PROCESS_ID": str(index)}, **changes)
        for index in range(2)
    ]


def read_until(process: subprocess.Popen, step: int) -> None:
    """Reads the output of a run up to the progress line of a step."""
    said = []
    for line in process.stdout:
        said.append(line)
        progress = re.match(r"step +(\d+)/", line)
        if progress and int(progress[1]) >= step:
            return
    raise AssertionError("".join(said))


def losses(workdir: Path) -> dict[int, float]:
    """Loss of each logged step."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return {record["step"]: record["loss"] for record in records if "loss" in record}


def free_port() -> int:
    """A port of the loopback interface that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
