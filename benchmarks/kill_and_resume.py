"""Kills a run again and again, resumes it, and compares the end with an uninterrupted run.

    python -m benchmarks.kill_and_resume --kills 20 --workdir DIR -- --config=configs/joint.py \
        --config.steps=30 --config.save_every=4

Everything after -- goes to `python -m semsam_jax.main`. The moments are random, from the start
of the process to its end; every third kill waits for a checkpoint that is being written. When a
run ends in spite of it, its last checkpoint is compared with that of the straight run, bit by
bit, and the next run begins. Needs no accelerator; a CPU gives bitwise equal runs.
"""

import argparse
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from semsam_jax.core import checkpoint_io

_POLL_SEC = 0.005


@dataclasses.dataclass
class KillReport:
    """What happened.

    Attributes:
        kills: (seconds after the start, what the process had said last) of each.
        ends: runs that reached their end and were compared.
        during_save: kills that left a checkpoint half-written.
        resumed: steps at which a run was taken up again.
    """

    kills: list[tuple[float, str]] = dataclasses.field(default_factory=list)
    ends: int = 0
    during_save: int = 0
    resumed: list[int] = dataclasses.field(default_factory=list)


def kill_and_resume(
    flags: list[str], workdir: Path, kills: int, seed: int, environment: dict[str, str]
) -> KillReport:
    """Runs straight, then with kills.

    Args:
        flags: of the quickstart, without --workdir.
        workdir: gets the folders straight and killed-N.
        kills: how many.
        seed: of the moments.
        environment: of the processes.

    Raises:
        RuntimeError: a run failed unkilled, or differs from the uninterrupted one.
    """
    rng, report = random.Random(seed), KillReport()
    straight = workdir / "straight"
    if not checkpoint_io.complete_steps(straight):
        _start(flags, straight, environment).finish()  # Fills the cache of compiled programs.
    again = workdir / "timed"
    shutil.rmtree(again, ignore_errors=True)
    begin = time.perf_counter()
    _start(flags, again, environment).finish()
    length = time.perf_counter() - begin
    compare(straight, again)
    print(f"a run takes {length:.1f} s; two straight runs end bitwise equal", flush=True)

    folder = workdir / "killed"
    shutil.rmtree(folder, ignore_errors=True)
    while True:
        is_last = len(report.kills) >= kills
        run = _start(flags, folder, environment)
        moment = None if is_last else rng.uniform(0.0, length)
        wants_save = len(report.kills) % 3 == 2
        is_ended = run.kill(moment, folder if wants_save else None)
        report.resumed += run.resumed()
        if is_ended:
            report.ends += 1
            compare(straight, folder)
            print(f"run {report.ends} ended bitwise equal", flush=True)
            shutil.rmtree(folder)
            if is_last:
                return report
            continue
        half = _half_written(folder)
        report.during_save += bool(half)
        report.kills.append((run.seconds(), run.last_line()))
        print(
            f"kill {len(report.kills)} after {run.seconds():.1f} s, half-written: {half or '-'}, "
            f"last said: {run.last_line()[:70]}",
            flush=True,
        )


def compare(first: Path, second: Path) -> None:
    """Compares the newest checkpoints of two runs and all losses that they logged.

    Args:
        first: folder of a run.
        second: folder of another one.

    Raises:
        RuntimeError: they are not bitwise equal.
    """
    one, two = (_losses(run) for run in (first, second))
    for step in sorted(one.keys() | two.keys()):
        if step in two and two[step] != one.get(step):
            raise RuntimeError(
                f"logged losses of {first} and {second} differ from step {step} on: "
                f"{one.get(step)} | {two[step]}"
            )
    if one.keys() != two.keys():
        raise RuntimeError(f"{first} and {second} logged other steps: {set(one) ^ set(two)}")
    one, two = (_arrays(run) for run in (first, second))
    differing = [name for name in one if not np.array_equal(one[name], two.get(name))]
    if differing or one.keys() != two.keys():
        raise RuntimeError(f"{first} and {second} differ in {len(differing)}: {differing[:5]}")
    for name in ("data", "meta"):
        one, two = (_json(run, name) for run in (first, second))
        for meta in (one, two):
            # How often to save may differ, and seconds do; what matters is in the rest.
            for key in ("config", "measured"):
                meta.pop(key, None)
        keys = [key for key in one.keys() | two.keys() if one.get(key) != two.get(key)]
        if keys:
            raise RuntimeError(
                f"{name} of {first} and {second} differ although all parameters are equal: "
                + "; ".join(f"{key}: {one.get(key)} | {two.get(key)}" for key in keys)
            )


class _Run:
    """One process of the quickstart; its output goes to a file, which survives a kill."""

    def __init__(self, process: subprocess.Popen, log: Path):
        self._process, self._log = process, log
        self._begin, self._seconds = time.perf_counter(), 0.0

    def finish(self) -> None:
        code = self._process.wait()
        self._seconds = time.perf_counter() - self._begin
        if code:
            raise RuntimeError(f"code {code}: {self._log.read_text()[-2000:]}")

    def kill(self, moment: float | None, saving: Path | None) -> bool:
        """Kills after `moment` seconds, and not before a save where `saving` is given.

        Returns:
            True if the run came to its end first.
        """
        while self._process.poll() is None:
            is_time = moment is not None and time.perf_counter() - self._begin >= moment
            if is_time and (saving is None or _half_written(saving)):
                self._process.send_signal(signal.SIGKILL)
                self._process.wait()
                self._seconds = time.perf_counter() - self._begin
                return False
            time.sleep(_POLL_SEC)
        self.finish()
        return True

    def seconds(self) -> float:
        return self._seconds

    def last_line(self) -> str:
        lines = self._log.read_text().strip().splitlines()
        return lines[-1] if lines else "nothing"

    def resumed(self) -> list[int]:
        words = [line.split() for line in self._log.read_text().splitlines()]
        return [int(w[3]) for w in words if w[:3] == ["resumed", "at", "step"]]


def _start(flags: list[str], folder: Path, environment: dict[str, str]) -> _Run:
    log = folder.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    # Means over steps would depend on where a run was taken up again.
    flags = [*flags, "--config.log_every=1", f"--workdir={folder}"]
    command = [sys.executable, "-m", "semsam_jax.main", *flags]
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment, text=True
        )
    return _Run(process, log)


def _half_written(folder: Path) -> str:
    """Name of a step of a run that is being written, or was when its process ended."""
    root = folder / checkpoint_io.FOLDER
    if not root.is_dir():
        return ""
    steps = (p for p in root.iterdir() if p.name[:1].isdigit() and not checkpoint_io.is_complete(p))
    return next((step.name for step in steps), "")


def _json(run: Path, name: str) -> object:
    return json.loads((checkpoint_io.complete_steps(run)[-1] / name / "metadata").read_text())


def _arrays(run: Path) -> dict[str, np.ndarray]:
    step = checkpoint_io.complete_steps(run)[-1].resolve()
    tree = ocp.PyTreeCheckpointHandler().restore(step / "state")
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def _losses(run: Path) -> dict[int, set[float]]:
    """All losses logged for each step; a step that was repeated after a kill has several."""
    found: dict[int, set[float]] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        if "loss" in record:
            found.setdefault(record["step"], set()).add(record["loss"])
    return found


def main() -> None:
    """Runs, kills, compares, and prints what happened."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("flags", nargs="+", help="flags of the quickstart, after --")
    args = parser.parse_args()
    environment = dict(os.environ)
    report = kill_and_resume(args.flags, args.workdir, args.kills, args.seed, environment)
    print(
        f"{len(report.kills)} kills, {report.during_save} of them during a save; resumed at "
        f"steps {report.resumed}; {report.ends} runs ended, all bitwise equal to the straight run"
    )


if __name__ == "__main__":
    main()
