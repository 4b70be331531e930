"""One scan of a dataset: what can be trained on, counted, and what was dropped, named.

Training never filters (the data position stays a pure function of the step), so everything
that could fail later is looked at here once. An index is a few small arrays; in a folder
they are memory-mapped and shared by all processes of a machine.
"""

import collections
import dataclasses
import json
import pathlib
import tempfile
import typing
from collections.abc import Callable, Iterator
from concurrent import futures

import numpy as np

from data_pipelines import decode
from data_pipelines.schema import RawExample
from data_pipelines.transforms import masks, row
from semsam_jax.core.errors import DataError

_ARRAYS = ("position", "num_instances", "has_object", "has_part", "view_object", "view_part")
_FORMAT = 1


@typing.runtime_checkable
class Source(typing.Protocol):
    """A reader: random access to the annotated photos of one dataset."""

    def __len__(self) -> int:
        """Number of records, broken ones included."""
        ...

    def __getitem__(self, position: int) -> RawExample:
        """Reads a record; raises DataError if it is broken. Safe to call from threads."""
        ...


@dataclasses.dataclass(frozen=True)
class IndexReport:
    """What a scan found.

    Attributes:
        dataset: name, as the records say.
        records: records scanned.
        examples: records kept.
        instances: instances in the kept records that have at least one pixel.
        dropped: reason -> number of records.
        named: reason -> the first few messages, so that someone can look.
    """

    dataset: str
    records: int
    examples: int
    instances: int
    dropped: dict[str, int]
    named: dict[str, list[str]]

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        return dataclasses.asdict(self)


class Index:
    """The usable examples of one dataset; array `i` entries describe example `i`.

    Attributes:
        position: int64 [e] record number in the source.
        num_instances: int32 [e].
        has_object, has_part: bool [e] whether a whole object / a part is annotated.
        report: counts of the scan.
        folder: where the arrays are mapped from, or None for arrays in memory.
    """

    def __init__(
        self,
        arrays: dict[str, np.ndarray],
        report: IndexReport,
        folder: pathlib.Path | None = None,
    ):
        self._arrays = arrays
        self.report = report
        self.folder = folder

    @property
    def position(self) -> np.ndarray:
        """Record number of each example."""
        return self._arrays["position"]

    @property
    def num_instances(self) -> np.ndarray:
        """Instances of each example."""
        return self._arrays["num_instances"]

    @property
    def has_object(self) -> np.ndarray:
        """Whether each example has a whole object."""
        return self._arrays["has_object"]

    @property
    def has_part(self) -> np.ndarray:
        """Whether each example has a part."""
        return self._arrays["has_part"]

    def __len__(self) -> int:
        return len(self.position)

    def view(self, name: str) -> np.ndarray:
        """Returns int64 [m]: record numbers of the examples that belong to a view."""
        if name == "any":
            return self.position
        return self._arrays[f"view_{name}"]

    def __getstate__(self) -> dict:
        """Worker processes map the files again instead of receiving copies."""
        state = self.__dict__.copy()
        if self.folder is not None:
            state["_arrays"] = None
        return state

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        if self.folder is not None:
            self._arrays = _map_arrays(self.folder)


def build_index(
    source: Source,
    *,
    folder: str | pathlib.Path | None = None,
    max_broken_share: float = 0.01,
    num_threads: int = 0,
) -> Index:
    """Scans a source, or maps the index that an earlier scan left in `folder`.

    Dropped and counted: broken records (unreadable, photo cut short or of another size than
    the annotations, invalid RLE, masks mixed with bare boxes), records without instances
    (crowd regions only), and records whose instances are all empty.

    Args:
        source: the reader.
        folder: where to keep the arrays and `report.json`; None keeps them in memory.
        max_broken_share: broken records allowed, as a share of all. One broken record is
            always allowed, whatever the size of the set; empty ones are never an error.
        num_threads: readers at a time; 0 scans in the calling thread.

    Raises:
        DataError: too many broken records (the most frequent reason and the first records
            are named), nothing usable at all, or a folder that holds another index.
    """
    folder = pathlib.Path(folder) if folder is not None else None
    if folder is not None and (folder / "report.json").exists():
        return _load(folder, source)
    arrays, report = _scan(source, num_threads)
    _check(report, max_broken_share)
    if folder is None:
        return Index(arrays, report)
    folder.mkdir(parents=True, exist_ok=True)
    for name in _ARRAYS:
        _write(folder / f"{name}.npy", lambda file, array=arrays[name]: np.save(file, array))
    text = json.dumps({"format": _FORMAT, **report.to_dict()}, indent=1)
    # Written last: a folder with a report is a complete index.
    _write(folder / "report.json", lambda file: file.write(text.encode()))
    return Index(_map_arrays(folder), report, folder)


def _write(path: pathlib.Path, save: Callable[[typing.BinaryIO], object]) -> None:
    """Whole or not at all: several hosts may scan into one folder at the same time."""
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
        save(file)
    pathlib.Path(file.name).chmod(0o644)
    pathlib.Path(file.name).replace(path)


def _scan(source: Source, num_threads: int) -> tuple[dict[str, np.ndarray], IndexReport]:
    kept, dropped = [], collections.Counter()
    named: dict[str, list[str]] = {}
    dataset = ""
    for position, found in enumerate(_entries(source, num_threads)):
        dataset = found.dataset or dataset
        if found.reason is None:
            kept.append((position, found.num_instances, found.has_object, found.has_part))
            continue
        dropped[found.reason] += 1
        examples = named.setdefault(found.reason, [])
        if len(examples) < 5:
            examples.append(found.message)
    table = np.array(kept, np.int64).reshape(-1, 4)
    arrays = {
        "position": table[:, 0].copy(),
        "num_instances": table[:, 1].astype(np.int32),
        "has_object": table[:, 2].astype(bool),
        "has_part": table[:, 3].astype(bool),
    }
    arrays["view_object"] = arrays["position"][arrays["has_object"]]
    arrays["view_part"] = arrays["position"][arrays["has_part"]]
    report = IndexReport(
        dataset=dataset,
        records=len(source),
        examples=len(table),
        instances=int(table[:, 1].sum()),
        dropped=dict(dropped),
        named=named,
    )
    return arrays, report


@dataclasses.dataclass(frozen=True)
class _Entry:
    dataset: str
    reason: str | None = None
    message: str = ""
    num_instances: int = 0
    has_object: bool = False
    has_part: bool = False


BROKEN = ("unreadable", "photo", "annotation")
_EMPTY = ("no instances", "only empty instances")


def _entries(source: Source, num_threads: int) -> Iterator[_Entry]:
    positions = range(len(source))
    if not num_threads:
        for position in positions:
            yield _look_at(source, position)
        return
    # Small blocks keep memory flat: Executor.map would submit millions of jobs at once.
    with futures.ThreadPoolExecutor(num_threads) as pool:
        block = 64 * num_threads
        for start in range(0, len(source), block):
            part = positions[start : start + block]
            yield from pool.map(lambda position: _look_at(source, position), part)


def _look_at(source: Source, position: int) -> _Entry:
    try:
        example = source[position]
    except (DataError, OSError) as error:
        return _Entry("", "unreadable", f"record {position}: {error}")
    dataset, where = example.dataset, f"{example.dataset}/{example.example_id}"
    if not example.instances:
        return _Entry(dataset, _EMPTY[0], where)
    try:
        decode.check_header(example.image, where=where, size_hw=(example.height, example.width))
    except DataError as error:
        return _Entry(dataset, "photo", str(error))
    try:
        outlines = row.read_outlines(example, where)
    except DataError as error:
        return _Entry(dataset, "annotation", str(error))
    total = example.height * example.width
    seen = []
    for instance, outline in zip(example.instances, outlines, strict=True):
        x0, y0, x1, y1 = instance.box
        if outline is None:
            x0, x1 = max(x0, 0), min(x1, example.width)
            y0, y1 = max(y0, 0), min(y1, example.height)
            is_empty = x1 - x0 < 1 or y1 - y0 < 1
        else:
            is_empty = masks.toggles_area(outline, total) == 0
        if not is_empty:
            seen.append(instance)
    if not seen:
        return _Entry(dataset, _EMPTY[1], where)
    return _Entry(
        dataset=dataset,
        num_instances=len(seen),
        has_object=any(row.in_view(item.object_id, item.part_id, "object") for item in seen),
        has_part=any(row.in_view(item.object_id, item.part_id, "part") for item in seen),
    )


def _check(report: IndexReport, max_broken_share: float) -> None:
    broken = {reason: report.dropped.get(reason, 0) for reason in BROKEN}
    total, name = sum(broken.values()), report.dataset or "the source"
    if total > max(max_broken_share * report.records, 1):
        worst = max(broken, key=broken.get)
        raise DataError(
            f"index of {name}: {total} of {report.records} records are broken "
            f"({100 * total / report.records:.1f} %), allowed are {100 * max_broken_share:g} %; "
            f"most often: {worst} ({broken[worst]}), e.g. {'; '.join(report.named[worst])}. "
            f"Repair or remove them."
        )
    if not report.examples:
        raise DataError(
            f"index of {name}: none of {report.records} records is usable "
            f"({report.dropped or 'the source is empty'}); check the folder and its layout."
        )


def _load(folder: pathlib.Path, source: Source) -> Index:
    stored = json.loads((folder / "report.json").read_text())
    if stored.pop("format", None) != _FORMAT or stored["records"] != len(source):
        raise DataError(
            f"{folder}: holds the index of {stored['dataset']} with {stored['records']} records, "
            f"the source has {len(source)}; delete the folder to scan again."
        )
    index = Index(_map_arrays(folder), IndexReport(**stored), folder)
    dataset = source[int(index.position[0])].dataset
    if dataset != index.report.dataset:
        raise DataError(
            f"{folder}: holds the index of {index.report.dataset}, the source is {dataset}; "
            f"give each dataset its own index folder."
        )
    return index


def _map_arrays(folder: pathlib.Path) -> dict[str, np.ndarray]:
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
