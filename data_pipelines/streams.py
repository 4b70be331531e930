"""The order of the rows of a stream: a pure function of the seed and the row's number.

Each stream is one indexable expression: source, shuffle, repeat and mix of every view of a dataset;
`ProcessRows` selects the rows of one process.
"""

import zlib
from collections.abc import Mapping

import grain
import numpy as np

from data_pipelines.index import ExampleSource, Views
from data_pipelines.mixture import MixtureTable
from data_pipelines.schema import RawExample

_ENDLESS = 2**62  # length of an endless stream; grain needs a number


def stream_examples(
    name: str,
    table: MixtureTable,
    sources: Mapping[str, ExampleSource],
    indexes: Mapping[str, Views],
    seed: int,
) -> grain.MapDataset:
    """(example, view) of every row of a stream."""
    views = [
        grain.MapDataset.source(_ViewSource(sources[r.dataset], indexes[r.dataset], r.view))
        .shuffle(seed=derived_seed(seed, name, r.dataset, r.view))
        .repeat()
        for r in table.active
    ]
    return grain.MapDataset.select_from_datasets(views, _RowSchedule(table.schedule()))


def derived_seed(seed: int, *names: str) -> int:
    """A 32-bit seed; similar seeds and names give unrelated ones (shuffle adds epochs)."""
    words = [seed & 0xFFFFFFFF, seed >> 32, zlib.crc32("/".join(names).encode())]
    return int(np.random.SeedSequence(words).generate_state(1)[0])


class ProcessRows(grain.transforms.DatasetSelectionMap):
    """Row number of this process, from a first step on, to row number of the stream."""

    def __init__(self, first_step: int, batch_size: int, own_rows: int, process_index: int):
        self._first_step, self._batch_size = first_step, batch_size
        self._own_rows, self._offset = own_rows, process_index * own_rows

    def __len__(self) -> int:
        return _ENDLESS // self._batch_size * self._own_rows

    def __getitem__(self, index: int) -> tuple[int, int]:
        step, row = divmod(index, self._own_rows)
        return 0, (self._first_step + step) * self._batch_size + self._offset + row


class _ViewSource:
    """Examples of one view of one dataset, for grain."""

    def __init__(self, source: ExampleSource, index: Views, view: str):
        self._source, self._index, self._view = source, index, view

    def __len__(self) -> int:
        return len(self._index.view(self._view))

    def __getitem__(self, number: int) -> tuple[RawExample, str]:
        return self._source[int(self._index.view(self._view)[number])], self._view


class _RowSchedule(grain.transforms.DatasetSelectionMap):
    """Row number to (view, number of earlier rows of that view)."""

    def __init__(self, schedule: np.ndarray):
        self._view = schedule
        self._in_cycle = np.bincount(schedule)
        turns = [np.flatnonzero(schedule == v) for v in range(len(self._in_cycle))]
        self._turn = np.zeros(len(schedule), np.int64)
        for places in turns:
            self._turn[places] = np.arange(len(places))

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, index: int) -> tuple[int, int]:
        cycle, place = divmod(index, len(self._view))
        view = int(self._view[place])
        return view, cycle * int(self._in_cycle[view]) + int(self._turn[place])
