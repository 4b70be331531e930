"""Evaluation loop: runs a measurement over many images, distributed and resumable.

Process i of n takes the images i, i + n, i + 2n, ...; each works on its own devices without
waiting for the others, and at the end every process gets the result of all images. Reading
images and finding clicks happens in a thread while the devices work.
"""

import copy
import dataclasses
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from flax import serialization
from jax.experimental import multihost_utils
from tqdm import tqdm

from semsam_jax.evals.evaluator import Evaluator
from semsam_jax.evals.resume_log import ResumeLog
from semsam_jax.evals.samples import EvalSample

_AHEAD = 4
_GATHER_BYTES = 2**26


@runtime_checkable
class SampleSource(Protocol):
    """Images of a dataset, read on demand."""

    def __len__(self) -> int:
        """Number of images."""

    def read(self, positions: Sequence[int]) -> Iterator[EvalSample]:
        """Reads some images in the given order."""


@runtime_checkable
class Scorer(Protocol):
    """How a measurement turns images into the input of its evaluator.

    Attributes:
        batch_size: images that are scored together.
    """

    batch_size: int

    def key(self, sample: EvalSample) -> Hashable:
        """Images with equal keys can be scored together."""

    def prepare(self, sample: EvalSample) -> Any:
        """The part that needs no device; runs in the reading thread."""

    def score(self, prepared: list) -> list[tuple]:
        """Arguments of `Evaluator.process` for each image."""


@dataclasses.dataclass(frozen=True)
class SingleImageScorer:
    """Scorer of a function that takes one image."""

    function: Callable[[EvalSample], tuple]
    batch_size: int = 1

    def key(self, sample: EvalSample) -> Hashable:
        """Any images."""
        return None

    def prepare(self, sample: EvalSample) -> EvalSample:
        """Nothing to prepare."""
        return sample

    def score(self, prepared: list[EvalSample]) -> list[tuple]:
        """The function's answers."""
        return [self.function(sample) for sample in prepared]


class EvaluationStopped(Exception):
    """An evaluation ended before its last image, because it was told to."""


@dataclasses.dataclass
class EvalLoop:
    """Where and how evaluations run.

    Attributes:
        folder: for the records from which an interrupted measurement resumes; None keeps none.
        settings: what the results depend on besides the name of the measurement.
        show_progress: draw a bar on the terminal.
        devices: of this process, for the runners; its first one by default.
        images_per_device: images that a device works on at a time.
        process_index, process_count: which images this process takes; those of the running program
            by default.
        is_stopped: asked before each batch of images; the evaluation ends where it is true.
        seconds: time spent waiting for images ("wait"), in the scorers ("score") and in the
            evaluators ("measure"), of this process, all measurements together.
    """

    folder: Path | None = None
    settings: Mapping = dataclasses.field(default_factory=dict)
    show_progress: bool = False
    devices: tuple[jax.Device, ...] | None = None
    images_per_device: int = 1
    process_index: int | None = None
    process_count: int | None = None
    is_stopped: Callable[[], bool] = lambda: False
    seconds: Counter = dataclasses.field(default_factory=Counter)

    def run(
        self, name: str, evaluator: Evaluator, samples: SampleSource | Iterable, scorer: Scorer
    ) -> Evaluator:
        """Scores all images; returns the evaluator, which then holds those of all processes.

        Args:
            name: of the measurement, unique within `folder`.
            evaluator: an empty one.
            samples: images, equal in all processes.
            scorer: turns images into the evaluator's input.

        Raises:
            EvaluationStopped: when `is_stopped` says so.
        """
        index = jax.process_index() if self.process_index is None else self.process_index
        count = jax.process_count() if self.process_count is None else self.process_count
        resume_log, done = None, {}
        if self.folder is not None:
            resume_log = ResumeLog(self.folder, name, self.settings, index)
            done = resume_log.finished()
        single = copy.deepcopy(evaluator)
        own = {position: state for position, state in done.items() if position % count == index}
        for position in sorted(own):
            evaluator.add(own[position])
        size = len(samples) if hasattr(samples, "__len__") else None
        bar = tqdm(
            total=None if size is None else len(range(index, size, count)),
            initial=len(own),
            desc=name,
            unit="image",
            disable=not self.show_progress or index != 0,
        )
        try:
            images = _chosen(samples, index, count, own)
            prepared = ((at, scorer.key(s), scorer.prepare(s)) for at, s in images)
            for batch in _batches(self._timed(_ahead(prepared)), scorer.batch_size):
                if self.is_stopped():
                    raise EvaluationStopped
                start = time.perf_counter()
                outcomes = scorer.score([item for _, item in batch])
                middle = time.perf_counter()
                for (position, _), outcome in zip(batch, outcomes, strict=True):
                    single.reset()
                    single.process(*outcome)
                    state = single.state()
                    evaluator.add(state)
                    if resume_log is not None:
                        resume_log.write(position, state)
                self.seconds["score"] += middle - start
                self.seconds["measure"] += time.perf_counter() - middle
                bar.update(len(batch))
        except BaseException:
            if resume_log is not None:
                resume_log.close()
            raise
        finally:
            bar.close()
        if self.process_count is None and count > 1:
            _exchange(evaluator, index)
        if resume_log is not None:
            resume_log.remove()
        return evaluator

    def _timed(self, items: Iterator) -> Iterator:
        """Counts the time spent waiting for `items`."""
        while True:
            start = time.perf_counter()
            item = next(items, None)
            self.seconds["wait"] += time.perf_counter() - start
            if item is None:
                return
            yield item


def gather_bytes(payload: bytes) -> list[bytes]:
    """The bytes of each process of the run, in the order of the processes."""
    sizes = np.asarray(multihost_utils.process_allgather(np.asarray([len(payload)], np.int64)))
    sizes = sizes.reshape(-1).tolist()
    pieces: list[list[bytes]] = [[] for _ in sizes]
    for first in range(0, max(sizes), _GATHER_BYTES):
        width = min(_GATHER_BYTES, max(sizes) - first)
        own = np.zeros(width, np.uint8)
        part = np.frombuffer(payload[first : first + width], np.uint8)
        own[: len(part)] = part
        rows = np.asarray(multihost_utils.process_allgather(own)).reshape(len(sizes), -1)
        for row, size, kept in zip(rows, sizes, pieces, strict=True):
            kept.append(row[: max(0, size - first)].tobytes())
    return [b"".join(kept) for kept in pieces]


def _exchange(evaluator: Evaluator, index: int) -> None:
    """Adds what the other processes have measured."""
    states = gather_bytes(serialization.msgpack_serialize(evaluator.state()))
    for process, payload in enumerate(states):
        if process != index:
            evaluator.add(serialization.msgpack_restore(payload))


def _chosen(
    samples: SampleSource | Iterable, index: int, count: int, done: Mapping[int, dict]
) -> Iterator[tuple[int, EvalSample]]:
    """Images of this process that are still to do, with their positions."""
    if hasattr(samples, "read"):
        positions = [at for at in range(index, len(samples), count) if at not in done]
        yield from zip(positions, samples.read(positions), strict=True)
        return
    for position, sample in enumerate(samples):
        if position % count == index and position not in done:
            yield position, sample


def _ahead(items: Iterator) -> Iterator:
    """The same items, computed in a thread a few steps ahead."""
    end = object()
    with ThreadPoolExecutor(1, "evaluation-input") as pool:
        waiting = deque(pool.submit(next, items, end) for _ in range(_AHEAD))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(pool.submit(next, items, end))
            yield item


def _batches(
    items: Iterable[tuple[int, Hashable, Any]], size: int
) -> Iterator[list[tuple[int, Any]]]:
    """Groups (position, key, item) by key; what is left comes in smaller groups at the end."""
    waiting: dict[Hashable, list[tuple[int, Any]]] = {}
    for position, key, item in items:
        group = waiting.setdefault(key, [])
        group.append((position, item))
        if len(group) == size:
            yield waiting.pop(key)
    yield from waiting.values()
