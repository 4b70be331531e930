"""What watches a run: clock, preemption, throughput, non-finite values."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np
from jax.experimental import multihost_utils

from semsam_jax.core.errors import MatchError, TrainingError

RESTART_CODE = 75
"""Exit code after a saved preemption (EX_TEMPFAIL); launchers start the same command again."""


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
        self._is_hit = True


class Meter:
    """Shares of the step time: input, host matching, and the rest.

    Args:
        rows: rows of a global batch.
    """

    def __init__(self, rows: int):
        self._rows = rows
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

    def count_step(self, matching_sec: float) -> None:
        """Counts a step and the time that the host took to solve its assignments."""
        self._window[0] += 1
        self._window[3] += matching_sec

    def values(self) -> dict[str, float]:
        """Returns rates since the last call and starts a new window."""
        now = time.perf_counter()
        self._window[1] = now - self._since
        self._since = now
        values = self._rates(self._window)
        self._total += self._window
        self._window = np.zeros(4)
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


class NonFiniteWatch:
    """Collects metrics without stopping the device, and stops the run on bad numbers.

    Args:
        describe_batch: step -> words that say which examples it held, for the message.
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
                f"({self._describe(step)}); {advice}"
            )
        if not metrics["is_finite"]:
            bad = [key for key, value in metrics.items() if not np.all(np.isfinite(value))]
            raise TrainingError(
                f"step {step}: not finite: {', '.join(sorted(bad))} ({self._describe(step)}); "
                f"{advice}"
            )
