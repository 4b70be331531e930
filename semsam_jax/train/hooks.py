"""Hooks of the loop: clock, preemption, throughput, non-finite values."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from semsam_jax.core.errors import MatchError, TrainingError
from semsam_jax.parallel import hardware

STREAMS = ("interactive", "generic")

_STOPPING = "stopping after this step and saving; a second Ctrl-C stops at once\n"


class Clock:
    """Wall-clock of the run; `first_step_sec` is set once, compilation included."""

    def __init__(self):
        self._start = time.perf_counter()
        self.first_step_sec: float | None = None

    def elapsed(self) -> float:
        """Seconds since the run started."""
        return time.perf_counter() - self._start

    def is_over(self, limit_sec: float) -> bool:
        """Whether a limit (0 = none) has passed."""
        return limit_sec > 0 and self.elapsed() > limit_sec


class PreemptionGuard:
    """Turns SIGTERM and Ctrl-C into a request that the loop answers between two steps."""

    def __init__(self):
        self._is_hit = False
        if jax.process_count() > 1:
            return  # jax itself listens for SIGTERM and lets all processes agree on a step.
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                signal.signal(number, self._hit)
            except ValueError:  # Not in the main thread: whoever runs us owns the signals.
                return

    def is_requested(self, step: int) -> bool:
        """Whether to save and stop now; all processes agree on the step."""
        if jax.process_count() == 1:
            return self._is_hit
        return multihost_utils.reached_preemption_sync_point(step)

    def _hit(self, number, frame) -> None:
        del frame
        if self._is_hit and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self._is_hit:
            # Not print: the signal may have come in the middle of one.
            os.write(2, _STOPPING.encode())
        self._is_hit = True


class Meter:
    """Throughput, and where the time of a step goes.

    Waiting for input and matching on the host are measured in every step. Forward and
    backward overlap with the host, so now and then one step is measured by itself, with the
    device waited for before and after.

    Args:
        rows: rows of a global batch.
    """

    def __init__(self, rows: int):
        self._rows = rows
        self._halves: dict[str, float] = {}
        self.flops_per_step: float | None = None
        self.restart()

    def restart(self) -> None:
        """Forgets everything measured so far (compilation, for one)."""
        self._window = np.zeros(4)  # steps, wall, input, matching
        self._total = np.zeros(4)
        self._since = time.perf_counter()

    @contextmanager
    def input(self) -> Iterator[None]:
        """Times the wait for a batch."""
        start = time.perf_counter()
        yield
        self._window[2] += time.perf_counter() - start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out what is not training, such as an evaluation."""
        start = time.perf_counter()
        yield
        self._since += time.perf_counter() - start

    def step(self, run: Callable[[], tuple], is_timed: bool) -> tuple:
        """Runs a step and counts it.

        Args:
            run: gives (state, metrics, what the matching took).
            is_timed: time its two programs; the device must be idle, and is so afterwards.
        """
        start = time.perf_counter()
        state, metrics, matching = run()
        if is_timed:
            jax.block_until_ready(state)
            total = max(time.perf_counter() - start, 1e-9)
            forward, match = matching.wait_sec / total, matching.host_sec / total
            self._halves = {"forward_share": forward, "backward_share": 1.0 - forward - match}
        self.count_step(matching.host_sec)
        return state, metrics, matching

    def count_step(self, matching_sec: float) -> None:
        """Counts a step and the time that the host took to solve its assignments."""
        self._window[0] += 1
        self._window[3] += matching_sec

    def values(self) -> dict[str, float]:
        """Returns rates since the last call and starts a new window."""
        now = time.perf_counter()
        self._window[1] = now - self._since
        self._since = now
        values = self._rates(self._window) | self._halves | hardware.memory_in_use()
        self._total += self._window
        self._window = np.zeros(4)
        if self.flops_per_step is not None:
            rate = self.flops_per_step / values["sec_per_step"]
            values["model_tflops_per_sec"] = rate / 1e12
            values["mfu"] = rate / (hardware.chip(jax.devices()[0]).flops * jax.device_count())
        return values

    def totals(self) -> dict[str, float]:
        """Returns rates over the run, the first step left out."""
        return self._rates(self._total)

    def _rates(self, window: np.ndarray) -> dict[str, float]:
        steps, wall, waited, matched = (float(value) for value in window)
        wall = max(wall, 1e-9)
        return {
            "images_per_sec": steps * self._rows / wall,
            "sec_per_step": wall / max(steps, 1.0),
            "input_wait_share": waited / wall,
            "host_matching_share": matched / wall,
        }


class Profile:
    """Records what the devices do during some steps, for TensorBoard's profiler or Perfetto.

    Args:
        workdir: the trace goes to WORKDIR/profile.
        window: first step and the step after the last one; empty records nothing.
    """

    def __init__(self, workdir: Path, window: tuple[int, int] | None):
        self._folder = workdir / "profile"
        self._window = window
        self._is_on = False

    def at(self, step: int) -> None:
        """Called before step number `step`: starts or ends the recording."""
        if self._window is None:
            return
        is_inside = self._window[0] <= step < self._window[1]
        if is_inside and not self._is_on:
            jax.profiler.start_trace(str(self._folder))
        if self._is_on and not is_inside:
            jax.profiler.stop_trace()
        self._is_on = is_inside

    def close(self) -> None:
        """Ends a recording that the end of the run cuts short."""
        if self._is_on:
            jax.profiler.stop_trace()
            self._is_on = False


class NonFiniteWatch:
    """Collects metrics without stopping the device, and stops the run on bad numbers.

    Args:
        describe_batch: (step, streams) -> words that say which examples those streams of
            this process held, for the message.
    """

    def __init__(self, describe_batch):
        self._describe = describe_batch
        self._pending: list[tuple[int, dict]] = []
        self.first: dict[str, float] | None = None
        self.last: dict[str, float] = {}

    def add(self, step: int, metrics: dict) -> None:
        """Remembers the metrics of a step (device arrays)."""
        self._pending.append((step, metrics))

    def check_all(self) -> dict[str, float]:
        """Returns the means since the last call.

        Raises:
            TrainingError: a loss or a gradient was not finite. That step changed nothing.
            MatchError: a matching cost was not finite.
        """
        if not self._pending:
            return self.last
        fetched = [(step, jax.device_get(metrics)) for step, metrics in self._pending]
        self._pending = []
        for step, metrics in fetched:
            self._check(step, metrics)
        kept = {
            key: float(np.mean([metrics[key] for _, metrics in fetched]))
            for key in fetched[0][1]
            if key not in ("is_finite", "nonfinite_costs")
        }
        self.first = kept if self.first is None else self.first
        self.last = kept
        return kept

    def _check(self, step: int, metrics: dict) -> None:
        advice = (
            "the parameters are those of the step before; lower optimizer.learning_rate, or "
            "start again from the last checkpoint with another seed."
        )
        if metrics["nonfinite_costs"] > 0:
            raise MatchError(
                f"step {step}: {int(metrics['nonfinite_costs'])} matching costs are not finite "
                f"({self._describe(step, STREAMS)}); {advice}"
            )
        if not metrics["is_finite"]:
            bad = sorted(key for key, value in metrics.items() if not np.all(np.isfinite(value)))
            streams = tuple(s for s in STREAMS if any(key.startswith(f"{s}/") for key in bad))
            streams = streams or STREAMS
            raise TrainingError(
                f"step {step}, {' and '.join(streams)} stream: not finite: {', '.join(bad)} "
                f"({self._describe(step, streams)}); {advice}"
            )
