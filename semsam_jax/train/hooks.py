"""Hooks of the training loop: clock, preemption, throughput, non-finite values."""

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from semsam_jax.core.errors import ConfigError, MatchError, SemSamError, TrainingError
from semsam_jax.core.paths import AnyPath, is_local
from semsam_jax.matching.transport import AssignReport
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


class Deadlines:
    """Decides when to stop and when to save, by the clock of process 0.

    Processes start at different times, and one that stops alone leaves the others waiting; so they
    agree at logged steps, where they wait for the device anyway.

    Args:
        clock: of the run.
        stop_sec: seconds until the run stops, 0 for never.
        save_sec: seconds from one save to the next, 0 for never.
        agree_every: steps from one agreement of several processes to the next.
    """

    def __init__(self, clock: Clock, stop_sec: float, save_sec: float, agree_every: int):
        self._clock, self._stop_sec, self._save_sec = clock, stop_sec, save_sec
        self._agree_every = agree_every
        self._saved = clock.elapsed()

    def due(self, step: int) -> tuple[bool, bool]:
        """Whether to stop and whether to save before step number `step`."""
        now, is_one = self._clock.elapsed(), jax.process_count() == 1
        stop = 0 < self._stop_sec < now
        save = 0 < self._save_sec < now - self._saved
        if not is_one and (self._stop_sec or self._save_sec):
            if step % self._agree_every:
                return False, False
            stop, save = multihost_utils.broadcast_one_to_all(np.array([stop, save])).tolist()
        return bool(stop), bool(save)

    def saved(self) -> None:
        """Called at every save."""
        self._saved = self._clock.elapsed()


class PreemptionGuard:
    """Turns SIGTERM and Ctrl-C into a request that the loop answers between two steps.

    A signal has its former effect again after `close`.
    """

    def __init__(self):
        self._is_hit = False
        self._former: dict[int, Any] = {}
        if jax.process_count() > 1:
            return  # JAX listens for SIGTERM itself and lets all processes agree on a step.
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._former[number] = signal.signal(number, self._hit)
            except ValueError:  # Not in the main thread: the caller owns the signals.
                return

    def close(self) -> None:
        """Gives the signals back."""
        for number, handler in self._former.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._former = {}

    @property
    def is_hit(self) -> bool:
        """Whether this process was told to stop; never with several, which agree on a step."""
        return self._is_hit

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
            # Not print: the signal may have interrupted one.
            os.write(2, _STOPPING.encode())
        self._is_hit = True


class Meter:
    """Throughput, and the breakdown of a step's time.

    Waiting for input and matching on the host are measured in every step. Forward and backward
    overlap with the host, so now and then one step is measured in isolation, waiting for the device
    before and after.

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
        """Excludes time that is not training, such as an evaluation."""
        start = time.perf_counter()
        yield
        self._since += time.perf_counter() - start

    def add(self, state: object, report: AssignReport, started: float | None) -> None:
        """Counts a step.

        Args:
            state: that it left.
            report: what its matching took.
            started: `time.perf_counter()` before it, if its two programs are to be timed: the
                device was idle then, and is so afterwards.
        """
        if started is not None:
            jax.block_until_ready(state)
            total = max(time.perf_counter() - started, 1e-9)
            forward, match = report.wait_sec / total, report.host_sec / total
            self._halves = {"forward_share": forward, "backward_share": 1.0 - forward - match}
        self.count_step(report.host_sec)

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
        """Returns rates since the start without the first step; empty without a step."""
        return self._rates(self._total) if self._total[0] else {}

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
    """Records a profile of some steps, for TensorBoard or Perfetto.

    Args:
        workdir: the trace goes to WORKDIR/profile.
        window: first step and the step after the last one; empty records nothing.
    """

    def __init__(self, workdir: AnyPath, window: tuple[int, int] | None):
        if window is not None and not is_local(workdir):
            raise ConfigError(f"--profile: {workdir} is no local folder; choose a local --workdir.")
        self._folder = workdir / "profile"
        self._window = window
        self._is_on = False

    def missed(self, first: int, stop: int) -> str:
        """What to say where none of the steps from `first` to before `stop` is recorded, or ""."""
        if self._window is None or max(first, self._window[0]) < min(stop, self._window[1]):
            return ""
        begin, end = self._window
        made = f"makes steps {first} to {stop - 1}" if first < stop else "makes no step"
        return f"--profile={begin}:{end}: nothing is recorded, because this run {made}\n"

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
        """Ends a recording at the end of the run."""
        if self._is_on:
            jax.profiler.stop_trace()
            self._is_on = False


class NonFiniteWatch:
    """Collects metrics without stopping the device, and counts the steps that were skipped.

    A step whose loss, gradients or matching costs are not finite changes nothing
    (`TrainStep`). Such steps are logged with their examples, and the run goes on until there
    are too many.

    Args:
        describe_batch: (step, streams) -> words that say which examples those streams of
            this process held.
        max_in_a_row: consecutive skipped steps that end the run.
        max_in_all: total skipped steps that end the run.
    """

    def __init__(
        self,
        describe_batch: Callable[[int, Sequence[str]], str],
        max_in_a_row: int = 0,
        max_in_all: int = 0,
    ):
        self._describe = describe_batch
        self._limits = max_in_a_row, max_in_all
        self._pending: list[tuple[int, jax.Array]] = []
        self._good: list[dict[str, float]] = []
        self._names: tuple[str, ...] = ()
        self._in_a_row = 0
        self.num_skipped = 0
        self.first: dict[str, float] | None = None
        self.last: dict[str, float] = {}

    def add(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Keeps the metrics of a step, scalars on the device, as one device array."""
        self._names = tuple(sorted(metrics))
        self._pending.append((step, _stacked([metrics[name] for name in self._names])))

    def check_all(self) -> dict[str, float]:
        """Returns the means since the last call, without skipped steps; empty if all were skipped.

        Raises:
            TrainingError: too many losses or gradients were not finite.
            MatchError: too many steps had matching costs that were not finite.
        """
        self.check()
        if not self._good:
            return {}
        self.last = {
            key: float(np.mean([metrics[key] for metrics in self._good], dtype=np.float32))
            for key in self._names
            if key not in ("is_finite", "nonfinite_costs")
        }
        self.first = self.first or self.last
        self._good = []
        return self.last

    def check(self) -> None:
        """Waits for the steps so far, such as before a save; raises as `check_all`."""
        if not self._pending:
            return
        steps, arrays = zip(*self._pending, strict=True)
        self._pending = []
        for step, values in zip(steps, jax.device_get(arrays), strict=True):
            metrics = dict(zip(self._names, values.tolist(), strict=True))
            if metrics["is_finite"] and not metrics["nonfinite_costs"]:
                self._in_a_row = 0
                self._good.append(metrics)
            else:
                self._skip(step, metrics)

    def _skip(self, step: int, metrics: Mapping[str, float]) -> None:
        self._in_a_row += 1
        self.num_skipped += 1
        bad = sorted(key for key, value in metrics.items() if not np.isfinite(value))
        streams = tuple(s for s in STREAMS if any(key.startswith(f"{s}/") for key in bad))
        streams = streams or STREAMS
        kind: type[SemSamError] = TrainingError
        what = f"{' and '.join(streams)} stream: not finite: {', '.join(bad)}"
        if metrics["nonfinite_costs"]:
            kind, streams = MatchError, STREAMS
            what = f"{int(metrics['nonfinite_costs'])} matching costs are not finite"
        told = f"step {step}: {what} ({self._describe(step, streams)})"
        in_a_row, in_all = self._limits
        if self._in_a_row >= max(in_a_row, 1) or self.num_skipped >= max(in_all, 1):
            raise kind(
                f"{told}; {self._in_a_row} such steps in a row, {self.num_skipped} in all. The "
                f"parameters are those of the last good step; lower optimizer.learning_rate or "
                f"choose another seed, and resume with "
                f"--allow_change=optimizer.learning_rate,seed; or raise max_skipped."
            )
        logging.warning("%s; the step is skipped, training goes on.", told)


@jax.jit
def _stacked(values: list[jax.Array]) -> jax.Array:
    return jnp.stack([value.astype(jnp.float32) for value in values])
