"""Input of a training run: an endless, exactly reproducible stream of batches.

Each stream is one indexable expression (grain `MapDataset`) until the very end: source,
shuffle, repeat, mix, random map, the rows of this process. Threads and worker processes decide only
where a row is computed, not which or how, and the position is the step number.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping

import cv2
import grain
import numpy as np
from absl import flags

from data_pipelines.index import ExampleSource, Index, open_index
from data_pipelines.index.subset import IndexShare
from data_pipelines.mixture import Mixture, MixtureTable, build_mixture, epoch_warnings
from data_pipelines.names import name_notes, row_labels
from data_pipelines.schema import DATASETS, BatchShape
from data_pipelines.streams import ProcessRows, derived_seed, stream_examples
from data_pipelines.transforms import geometry
from data_pipelines.transforms.evaluation import evaluation_rows
from data_pipelines.transforms.geometry import Augment
from data_pipelines.transforms.prompts import PromptPolicy
from data_pipelines.transforms.row import RowMaker
from data_pipelines.vocabulary import Vocabulary
from semsam_jax.core.errors import CheckpointError, ConfigError

__all__ = [
    "InputIterator",
    "PipelineConfig",
    "StreamConfig",
    "dataset_numbers",
    "evaluation_rows",
    "make_iterator",
]

STREAMS = ("interactive", "generic")
_STATE_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class StreamConfig:
    """One stream of a batch.

    Attributes:
        batch_size: rows of the global batch; 0 turns the stream off.
        mixture: where they come from.
    """

    batch_size: int
    mixture: Mixture


@dataclasses.dataclass(frozen=True)
class PipelineConfig:
    """Settings of the contents of batches, and of how they are computed.

    Attributes:
        shape: sizes of a row; `vocab_size` must be that of the vocabulary.
        interactive, generic: the two streams.
        prompts: how prompts are drawn.
        augments: placement policy per dataset; others get large-scale jitter.
        default_augment: placement policy of the other datasets.
        num_threads: reading threads per stream and process; 0 computes in the calling thread.
        num_workers: worker processes per stream; 0 for none.
        prefetch: batches prepared in advance.
        total_steps: planned steps, for the expected epochs in the mixture tables.
        verified_classes: see `transforms.row.RowMaker`.
        subsets: fraction of a dataset's images that is used, by name; 1 by default.
    """

    shape: BatchShape
    interactive: StreamConfig
    generic: StreamConfig
    prompts: PromptPolicy = dataclasses.field(default_factory=PromptPolicy)
    augments: Mapping[str, Augment] = dataclasses.field(default_factory=lambda: geometry.AUGMENTS)
    default_augment: Augment = geometry.LSJ
    num_threads: int = 8
    num_workers: int = 0
    prefetch: int = 2
    total_steps: int = 0
    verified_classes: bool = True
    subsets: Mapping[str, float] = dataclasses.field(default_factory=dict)


def make_iterator(
    config: PipelineConfig,
    sources: Mapping[str, ExampleSource],
    vocabulary: Vocabulary,
    *,
    process_index: int = 0,
    process_count: int = 1,
    seed: int = 0,
    indexes: Mapping[str, Index] | None = None,
    index_folder: str | pathlib.Path | None = None,
    class_mask: np.ndarray | None = None,
) -> "InputIterator":
    """Builds the endless iterator over this process' share of the global batches.

    Args:
        config: contents of batches.
        sources: reader of each dataset by name.
        vocabulary: the union vocabulary.
        process_index: of this host, which gets a contiguous block of rows; the blocks in order are
            the global batch.
        process_count: number of hosts.
        seed: of order, placements and prompts.
        indexes: index of each dataset; built here if not given.
        index_folder: where new indexes are kept (one folder per dataset and state of its files) for
            later runs; None scans every time. Records have their own index.
        class_mask: bool [v], False for names without a text embedding, which are removed from
            `vocab_valid` and `vocab_owned`.

    Raises:
        ConfigError: inconsistent shares, sizes or masks.
        DataError: a dataset has too many broken records.
    """
    used = {
        name
        for stream in (config.interactive, config.generic)
        if stream.batch_size
        for name, share in stream.mixture.datasets.items()
        if share > 0
    }
    built = dict(indexes or {})
    for name in used & set(sources) - set(built):
        built[name] = open_index(
            sources[name], name, cache=index_folder, num_threads=config.num_threads
        )
    for name in used & set(built):
        share = config.subsets.get(name, 1.0)
        if share < 1:
            built[name] = IndexShare(built[name], share)
    augments = {name: config.augments.get(name, config.default_augment) for name in built}
    rows = RowMaker(
        shape=config.shape,
        policy=config.prompts,
        augments=augments,
        vocab_valid=_vocab_valid(config.shape, vocabulary, tuple(built), class_mask),
        dataset_index=dataset_numbers(tuple(sources)),
        verified_classes=config.verified_classes,
        labels=_row_labels(vocabulary),
    )
    tables, examples, streams = {}, {}, {}
    for name in STREAMS:
        stream: StreamConfig = getattr(config, name)
        if not stream.batch_size:
            continue
        if stream.batch_size % process_count:
            raise ConfigError(
                f"{name} stream: a global batch of {stream.batch_size} rows does not divide over "
                f"{process_count} processes; use a multiple of {process_count}."
            )
        total_rows = config.total_steps * stream.batch_size
        tables[name] = build_mixture(
            stream.mixture, built, total_rows=total_rows, where=f"{name} stream"
        )
        examples[name] = stream_examples(name, tables[name], sources, built, seed)
        own = rows if name == "interactive" else rows.without_pseudo_targets()
        streams[name] = examples[name].random_map(own, seed=derived_seed(seed, name, "rows"))
    if not streams:
        raise ConfigError("pipeline: both streams have batch_size 0; give one of them rows.")
    iterator = InputIterator(config, examples, streams, tables, process_index, process_count, seed)
    iterator.notes = [line for name in sorted(built) for line in built[name].report.lines()]
    flipped = [name for name in used & set(augments) if augments[name].flip > 0]
    iterator.notes += name_notes(vocabulary, flipped) + epoch_warnings(tables)
    if "generic" in tables and config.verified_classes:
        names = dict.fromkeys(r.dataset for r in tables["generic"].active)
        named = {name: built[name] for name in names if rows.vocab_valid[name].any()}
        iterator.notes += _crowded_notes(named, config.shape.max_instances)
    return iterator


class InputIterator:
    """Yields {"interactive": {key: array [rows, ...]}, "generic": {...}} endlessly.

    A stream with `batch_size` 0 is absent. Keys, types and shapes are those of
    `BatchShape.spec` behind a leading axis of this process' rows.

    Attributes:
        tables: the mixture of each stream, to be logged and stored.
        notes: what is not used of the datasets, one sentence each.
    """

    def __init__(
        self,
        config: PipelineConfig,
        examples: Mapping[str, grain.MapDataset],
        streams: Mapping[str, grain.MapDataset],
        tables: Mapping[str, MixtureTable],
        process_index: int,
        process_count: int,
        seed: int,
    ):
        # Rows are made in parallel by threads and processes; OpenCV's own threads would compete.
        cv2.setNumThreads(1)
        self.tables = dict(tables)
        self.notes: list[str] = []
        self._config = config
        self._examples, self._streams = examples, streams
        self._process = (process_index, process_count)
        self._seed = seed
        self._step = 0
        self._running: dict[str, grain.DatasetIterator] | None = None

    def __iter__(self) -> "InputIterator":
        return self

    def __next__(self) -> dict[str, dict[str, np.ndarray]]:
        """Returns this process' rows of the next global batch.

        Raises:
            DataError: an example is broken in a way that the index did not detect.
        """
        self.start_prefetch()
        batch = {name: next(rows) for name, rows in self._running.items()}
        self._step += 1
        return batch

    def start_prefetch(self) -> None:
        """Starts preparing batches in the background; `next` does so too."""
        if self._running is not None:
            return
        self._running = {name: self._start(name) for name in self._streams}
        for rows in self._running.values():
            rows.start_prefetch()

    def example_names(self, step: int) -> dict[str, list[str]]:
        """Names the examples in batch number `step` of this process, for messages.

        Returns:
            Per stream "dataset/example_id" of each row, in order.
        """
        index, count = self._process
        names = {}
        for stream, examples in self._examples.items():
            own_rows = getattr(self._config, stream).batch_size // count
            rows = ProcessRows(step, own_rows * count, own_rows, index)
            drawn = [examples[rows[number][1]][0] for number in range(own_rows)]
            names[stream] = [f"{example.dataset}/{example.example_id}" for example in drawn]
        return names

    def get_state(self) -> bytes:
        """The position as JSON bytes; the same on every process."""
        return self.state_for_step(self._step)

    def state_for_step(self, step: int) -> bytes:
        """The state in which batch number `step` (from 0) comes next."""
        state = {"format": _STATE_FORMAT, "step": int(step), "seed": self._seed}
        for name, table in self.tables.items():
            state[name] = {
                "batch_size": getattr(self._config, name).batch_size,
                "schedule": [[r.dataset, r.view, r.examples, r.in_cycle] for r in table.active],
            }
        return json.dumps(state).encode()

    def set_state(self, state: bytes) -> None:
        """Restores a position; the numbers of threads, workers and hosts may differ.

        Raises:
            CheckpointError: the state belongs to other data, another seed or another batch;
                every difference is listed.
        """
        stored, own = json.loads(state), json.loads(self.get_state())
        keys = sorted((set(stored) | set(own)) - {"step"})
        wrong = [
            f"{key} is {stored.get(key)} in the checkpoint and {own.get(key)} here"
            for key in keys
            if stored.get(key) != own.get(key)
        ]
        if wrong:
            raise CheckpointError(
                f"data position: it was stored for another input: {'; '.join(wrong)}. Resume "
                f"with the old settings, or start a new run from the weights alone."
            )
        self.close()
        self._step = int(stored["step"])

    def close(self) -> None:
        """Stops threads and worker processes; a later `next` starts them again."""
        for rows in (self._running or {}).values():
            rows.close()
        self._running = None

    def _start(self, name: str) -> grain.DatasetIterator:
        config = self._config
        process_index, process_count = self._process
        batch_size = getattr(config, name).batch_size
        own_rows = batch_size // process_count
        part = ProcessRows(self._step, batch_size, own_rows, process_index)
        mine = grain.MapDataset.select_from_datasets([self._streams[name]], part)
        options = grain.ReadOptions(
            num_threads=config.num_threads, prefetch_buffer_size=2 * config.num_threads
        )
        rows = mine.to_iter_dataset(options)
        if config.num_workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # grain reads its absl flags when workers start
            workers = grain.MultiprocessingOptions(config.num_workers, per_worker_buffer_size=2)
            rows = rows.mp_prefetch(workers, worker_init_fn=_start_worker)
        batches = rows.batch(own_rows)
        if config.prefetch:
            batches = grain.experimental.ThreadPrefetchIterDataset(
                batches, prefetch_buffer_size=config.prefetch
            )
        return iter(batches)


def dataset_numbers(names: tuple[str, ...]) -> dict[str, int]:
    """Number of each dataset in a batch: `DATASETS` first, then custom ones by name."""
    own = sorted(name for name in names if name not in DATASETS)
    return {name: number for number, name in enumerate((*DATASETS, *own))}


def _row_labels(vocabulary: Vocabulary) -> dict[str, np.ndarray]:
    """`RowMaker.labels`: of the datasets that have classes which change."""
    labels = row_labels(vocabulary)
    moved = (labels != np.arange(len(vocabulary))).any(axis=0)
    return {name: labels for name in vocabulary.datasets if moved[vocabulary.valid(name)].any()}


def _crowded_notes(indexes: Mapping[str, Index | IndexShare], limit: int) -> list[str]:
    """A sentence for each dataset with images of more than `limit` instances."""
    said = []
    for name, index in indexes.items():
        many = int(np.count_nonzero(index.num_instances > limit))
        if many:
            said.append(
                f"{name}: {many} of {len(index)} images {'has' if many == 1 else 'have'} more than "
                f"data.max_instances={limit} instances, up to {int(index.num_instances.max())}; in "
                f"the generic stream, a class whose instances are cut off there gives no "
                f"negatives. Raise --config.data.max_instances, at most to the number of queries "
                f"of the model."
            )
    return said


def _vocab_valid(
    shape: BatchShape,
    vocabulary: Vocabulary,
    names: tuple[str, ...],
    class_mask: np.ndarray | None,
) -> dict[str, np.ndarray]:
    size = len(vocabulary)
    if shape.vocab_size != max(size, 1):
        raise ConfigError(
            f"pipeline: shape.vocab_size is {shape.vocab_size}, the vocabulary has {size} names; "
            f"set vocab_size={max(size, 1)}."
        )
    if class_mask is not None and class_mask.shape != (size,):
        raise ConfigError(
            f"pipeline: class_mask has shape {class_mask.shape}, expected ({size},), one per name."
        )
    mask = np.ones(size, np.bool_) if class_mask is None else class_mask.astype(np.bool_)
    # A run without class names still has one (never valid) entry: shapes stay non-empty.
    return {name: np.resize(vocabulary.valid(name) & mask, shape.vocab_size) for name in names}


def _start_worker(worker_index: int, worker_count: int) -> None:
    del worker_index, worker_count
    cv2.setNumThreads(1)
