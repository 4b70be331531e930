"""Builds the index of a dataset: lists usable examples and names dropped records.

Training never filters, so that the data position is a pure function of the step; everything that
could fail is checked here once. An index is a few small arrays; in a folder they are memory-mapped
and shared by all processes of a machine.
"""

import hashlib
import json
import os
import pathlib
import tempfile
import typing
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath
from tqdm import tqdm

from data_pipelines.index.files import say_not_kept, write_json, write_whole
from data_pipelines.index.scan import (
    ExampleSource,
    IndexReport,
    ScanTally,
    check_report,
    current_reasons,
    entries,
)
from semsam_jax.core.errors import DataError

_ARRAYS = ("position", "num_instances", "has_object", "has_part", "view_object", "view_part")
_FORMAT = 1


@typing.runtime_checkable
class Views(typing.Protocol):
    """The part of an index that a mixture needs: the examples of each view."""

    def view(self, name: str) -> Sequence[int] | np.ndarray:
        """Record numbers of the examples that belong to a view."""


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
        folder: str | os.PathLike | None = None,
    ):
        self._arrays = arrays
        self.report = report
        self.folder = None if folder is None else pathlib.Path(folder)

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
        """Worker processes map the files instead of receiving copies."""
        state = self.__dict__.copy()
        if self.folder is not None:
            state["_arrays"] = None
        return state

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        if self.folder is not None:
            self._arrays = _map_arrays(self.folder)


def open_index(
    source: ExampleSource,
    name: str,
    *,
    cache: str | os.PathLike | None = None,
    max_broken_share: float = 0.01,
    num_threads: int = 0,
) -> Index:
    """Maps the index of the data or of an earlier scan in `cache`, or scans the source.

    Args:
        source: the reader.
        name: of the dataset, for the folder inside `cache`.
        cache: folder of all kept indexes; None keeps a new one in memory.
        max_broken_share: see `build_index`.
        num_threads: see `build_index`.

    Raises:
        DataError: see `build_index`.
    """
    if source.index_folder is not None:
        return load_index(source.index_folder, source, cache)
    if not len(source):
        raise DataError(f"index of {name}: the source is empty; check the folder and its layout.")
    folder = None if cache is None else pathlib.Path(cache) / f"{name}-{source.fingerprint}"
    return build_index(
        source, folder=folder, max_broken_share=max_broken_share, num_threads=num_threads
    )


def build_index(
    source: ExampleSource,
    *,
    folder: str | os.PathLike | None = None,
    max_broken_share: float = 0.01,
    num_threads: int = 0,
) -> Index:
    """Scans a source, or maps the index of an earlier scan in `folder`.

    Dropped and counted: broken records (unreadable, image truncated or of another size than the
    annotations, invalid RLE, masks mixed with boxes), records without instances or with crowd
    regions only, and records whose instances are all empty.

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
    if folder is not None and _is_kept(pathlib.Path(folder)):
        return load_index(folder, source)
    tally = ScanTally()
    found_in_order = entries(source, num_threads)
    for position, found in enumerate(tqdm(found_in_order, "index", len(source), disable=None)):
        tally.add(position, found)
    report = tally.report(source)
    check_report(report, max_broken_share)
    if folder is None:
        return Index(tally.arrays(), report)
    try:
        save_index(folder, tally.arrays(), report)
    except OSError as error:
        say_not_kept(folder, error)
        return Index(tally.arrays(), report)
    return Index(_map_arrays(pathlib.Path(folder)), report, folder)


def _is_kept(folder: pathlib.Path) -> bool:
    """Whether the folder holds a complete, undamaged index."""
    try:
        report = json.loads((folder / "report.json").read_text())
        _map_arrays(folder)
    except (OSError, ValueError):
        return False
    return isinstance(report, dict) and {"dataset", "records"} <= set(report)


def save_index(
    folder: str | os.PathLike, arrays: Mapping[str, np.ndarray], report: IndexReport
) -> None:
    """Writes an index; the report is written last and marks it as complete."""
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in _ARRAYS:
        write_whole(folder / f"{name}.npy", lambda file, name=name: np.save(file, arrays[name]))
    write_json(folder / "report.json", {"format": _FORMAT, **report.to_dict()})


def load_index(
    folder: str | os.PathLike, source: ExampleSource, cache: str | os.PathLike | None = None
) -> Index:
    """Maps a stored index; one in a bucket is copied to `cache` first.

    Raises:
        DataError: it is the index of another source.
    """
    text = (epath.Path(folder) / "report.json").read_text()
    stored = json.loads(text)
    size = "examples" if source.index_folder is not None else "records"
    if stored.pop("format", None) != _FORMAT or stored[size] != len(source):
        raise DataError(
            f"{folder}: holds the index of {stored['dataset']} with {stored[size]} records, "
            f"the source has {len(source)}; delete the folder to scan again."
        )
    local = pathlib.Path(folder)
    if "://" in os.fspath(folder):
        kept = pathlib.Path(cache or tempfile.gettempdir())
        identity = f"{folder}{text}{source.fingerprint}".encode()
        local = kept / f"bucket-{hashlib.sha256(identity).hexdigest()[:16]}"
        _copy_arrays(epath.Path(folder), local)
    stored |= {name: current_reasons(stored[name]) for name in ("dropped", "named")}
    index = Index(_map_arrays(local), IndexReport(**stored), local)
    dataset = source[int(index.position[0])].dataset
    if dataset != index.report.dataset:
        raise DataError(
            f"{folder}: holds the index of {index.report.dataset}, the source is {dataset}; "
            f"give each dataset its own index folder."
        )
    return index


def _copy_arrays(remote: epath.Path, local: pathlib.Path) -> None:
    local.mkdir(parents=True, exist_ok=True)
    for name in _ARRAYS:
        if not (local / f"{name}.npy").exists():
            data = (remote / f"{name}.npy").read_bytes()
            write_whole(local / f"{name}.npy", lambda file, data=data: file.write(data))


def _map_arrays(folder: pathlib.Path) -> dict[str, np.ndarray]:
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
