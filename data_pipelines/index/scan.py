"""Examines each record for the index, and stores millions of findings in a few arrays."""

import array
import collections
import dataclasses
import os
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

import numpy as np

from data_pipelines import decode
from data_pipelines.findings import DARK, Findings, Unused
from data_pipelines.schema import RawExample
from data_pipelines.transforms import masks, row
from data_pipelines.vocabulary import Vocabulary
from semsam_jax.core.errors import DataError

_NAMED = 1000  # messages kept for each reason


@typing.runtime_checkable
class ExampleSource(typing.Protocol):
    """A reader: random access to the annotated images of one dataset.

    Attributes:
        fingerprint: short text that changes with the records.
        index_folder: an index that came with the data, or None.
        vocabulary: what the class indices mean.
        unused: annotations of the files that belong to no record.
    """

    fingerprint: str
    index_folder: str | os.PathLike | None
    vocabulary: Vocabulary
    unused: tuple[Unused, ...]

    def __len__(self) -> int:
        """Number of records, broken ones included."""
        ...

    def __getitem__(self, position: int) -> RawExample:
        """Reads a record; raises DataError if it is broken. Safe to call from threads."""
        ...


@dataclasses.dataclass(frozen=True)
class IndexReport:
    """Result of a scan.

    Attributes:
        dataset: name, as in the records.
        records: records scanned.
        examples: records kept.
        instances: instances in the kept records that have at least one pixel.
        dropped: reason -> number of records.
        named: reason -> messages of the records, the first thousand of each reason.
        unused: reason -> annotations that are not used, of all records.
        unused_named: reason -> the first of them.
        classes: class text -> [instances, crowd regions].
    """

    dataset: str
    records: int
    examples: int
    instances: int
    dropped: dict[str, int]
    named: dict[str, list[str]]
    unused: dict[str, int] = dataclasses.field(default_factory=dict)
    unused_named: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    classes: dict[str, list[int]] = dataclasses.field(default_factory=dict)

    def lines(self) -> list[str]:
        """Findings to report before training, one sentence each; empty if everything is used."""
        said = [
            f"{count} of {self.records} records not used, {reason}: "
            f"{'; '.join(self.named[reason][:3])}{'; ...' if count > 3 else ''}"
            for reason, count in sorted(self.dropped.items())
        ]
        findings = Findings()
        findings.merge(dataclasses.asdict(self))
        return [f"{self.dataset}: {line}" for line in said + findings.lines()]

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        return dataclasses.asdict(self)


class ScanTally:
    """Collects the findings of each record, a few bytes per record."""

    def __init__(self):
        self._columns = {"position": array.array("q"), "num_instances": array.array("i")}
        self._columns |= {name: array.array("b") for name in ("has_object", "has_part")}
        self._dataset = ""
        self._classes: collections.Counter[tuple[int, int, bool]] = collections.Counter()
        self.dropped: collections.Counter[str] = collections.Counter()
        self.named: dict[str, list[str]] = {}
        self.findings = Findings()

    def add(self, position: int, found: "Entry") -> None:
        """Counts one record; `position` is kept if the record can be used."""
        self._dataset = found.dataset or self._dataset
        self._classes.update(found.classes)
        self.findings.add(found.unused)
        if found.reason is not None:
            self.dropped[found.reason] += 1
            messages = self.named.setdefault(found.reason, [])
            if len(messages) < _NAMED:
                messages.append(found.message)
            return
        self._columns["position"].append(position)
        for name in ("num_instances", "has_object", "has_part"):
            self._columns[name].append(getattr(found, name))

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays of an `Index`."""
        types = (np.int64, np.int32, np.bool_, np.bool_)
        arrays = {
            name: np.array(column, dtype)
            for (name, column), dtype in zip(self._columns.items(), types, strict=True)
        }
        return with_views(arrays)

    def found(self, vocabulary: Vocabulary, unused: Sequence[Unused] = ()) -> dict:
        """Unused annotations, and the classes by name; `unused` are those that belong to no
        record.
        """
        findings = Findings()
        findings.add(unused)
        findings.merge(self.findings.to_dict())
        for (object_id, part_id, is_crowd), count in self._classes.items():
            text = vocabulary.label_text(object_id, part_id)
            findings.add_class(text, *((0, count) if is_crowd else (count, 0)))
        return findings.to_dict()

    def report(self, source: ExampleSource) -> IndexReport:
        """The counts, for all records of a source."""
        records = len(source)
        return IndexReport(
            dataset=self._dataset,
            records=records,
            examples=len(self._columns["position"]),
            instances=int(np.array(self._columns["num_instances"], np.int64).sum()),
            dropped=dict(self.dropped),
            named=self.named,
            **self.found(source.vocabulary, source.unused),
        )


def with_views(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Adds the record numbers of the views `object` and `part` to the arrays of an index."""
    views = {f"view_{kind}": arrays["position"][arrays[f"has_{kind}"]] for kind in _LABELLED}
    return {**arrays, **views}


_LABELLED = ("object", "part")


def merge_findings(
    parts: Iterable[Mapping[str, Any]],
) -> tuple[dict[str, int], dict[str, list[str]]]:
    """Joins the `dropped` and `named` of several tallies, in their order."""
    dropped: collections.Counter[str] = collections.Counter()
    named: dict[str, list[str]] = {}
    for part in parts:
        dropped.update(current_reasons(part["dropped"]))
        for reason, messages in current_reasons(part["named"]).items():
            known = named.setdefault(reason, [])
            known.extend(messages[: _NAMED - len(known)])
    return dict(dropped), named


@dataclasses.dataclass(frozen=True)
class Entry:
    """Findings of one record: usable, or the reason why not.

    Attributes:
        dataset: name, "" where the record could not be read.
        reason: why it is dropped, or None.
        message: names the record.
        num_instances: instances with at least one pixel.
        has_object, has_part: whether a whole object / a part is annotated.
        unused: annotations that the reader did not use.
        classes: (object, part, whether a crowd region) of every annotation.
    """

    dataset: str
    reason: str | None = None
    message: str = ""
    num_instances: int = 0
    has_object: bool = False
    has_part: bool = False
    unused: tuple[Unused, ...] = ()
    classes: tuple[tuple[int, int, bool], ...] = ()


BROKEN = ("unreadable", "image", "annotation")


def current_reasons(findings: Mapping[str, Any]) -> dict[str, Any]:
    """Reason -> finding, where files of earlier releases say "photo" for "image"."""
    return {"image" if reason == "photo" else reason: found for reason, found in findings.items()}


_EMPTY = ("no instances", "only crowd regions", "only empty instances")


def entries(
    source: ExampleSource, num_threads: int = 0, positions: Sequence[int] | None = None
) -> Iterator[Entry]:
    """Yields the result of `look_at` for every record, in order, read by `num_threads` threads."""
    positions = range(len(source)) if positions is None else positions
    if not num_threads:
        for position in positions:
            yield read_entry(source, position)[0]
        return
    # Small blocks bound the memory: Executor.map would submit millions of jobs at once.
    with futures.ThreadPoolExecutor(num_threads) as pool:
        block = 64 * num_threads
        for start in range(0, len(positions), block):
            part = positions[start : start + block]
            yield from pool.map(lambda position: read_entry(source, position)[0], part)


def read_entry(source: ExampleSource, position: int) -> tuple[Entry, RawExample | None]:
    """Reads one record; returns its findings, and the example if it can be read."""
    try:
        example = source[position]
    except (DataError, OSError) as error:
        return Entry("", "unreadable", f"record {position}: {error}"), None
    return look_at(example), example


def look_at(example: RawExample) -> Entry:
    """Checks everything that could fail when a row is made from the example."""
    where = f"{example.dataset}/{example.example_id}"
    labels = [(item.object_id, item.part_id, False) for item in example.instances]
    labels += [(item.object_id, item.part_id, True) for item in example.ignored]
    seen = Entry(example.dataset, unused=example.unused, classes=tuple(labels))
    size = example.height, example.width
    try:
        decode.check_header(
            example.image, where=where, size_hw=size, is_displayed=example.is_displayed
        )
        if decode.is_dark(example.image, where=where):
            unused = (*seen.unused, Unused(DARK, (where,)))
            seen = dataclasses.replace(seen, unused=unused)
    except DataError as error:
        return dataclasses.replace(seen, reason="image", message=str(error))
    if not example.instances:
        reason = _EMPTY[1 if example.ignored else 0]
        return dataclasses.replace(seen, reason=reason, message=where)
    try:
        outlines = row.read_outlines(example.instances, *size, where)
        row.read_outlines(example.ignored, *size, where)
    except DataError as error:
        return dataclasses.replace(seen, reason="annotation", message=str(error))
    total = example.height * example.width
    visible = []
    for instance, outline in zip(example.instances, outlines, strict=True):
        x0, y0, x1, y1 = instance.box
        if outline is None:
            x0, x1 = max(x0, 0), min(x1, example.width)
            y0, y1 = max(y0, 0), min(y1, example.height)
            is_empty = x1 - x0 < 1 or y1 - y0 < 1
        else:
            is_empty = masks.toggles_area(outline, total) == 0
        if not is_empty:
            visible.append(instance)
    if not visible:
        return dataclasses.replace(seen, reason=_EMPTY[2], message=where)
    return dataclasses.replace(
        seen,
        num_instances=len(visible),
        has_object=any(row.in_view(item, "object") for item in visible),
        has_part=any(row.in_view(item, "part") for item in visible),
    )


def is_too_broken(report: IndexReport, max_broken_share: float) -> bool:
    """Whether more records are broken than allowed; one of them always is."""
    total = sum(report.dropped.get(reason, 0) for reason in BROKEN)
    return total > max(max_broken_share * report.records, 1)


def check_report(report: IndexReport, max_broken_share: float) -> None:
    """Refuses a scan with too many broken records, or without any that can be used.

    Raises:
        DataError: as `build_index` says.
    """
    broken = {reason: report.dropped.get(reason, 0) for reason in BROKEN}
    total, name = sum(broken.values()), report.dataset or "the source"
    if is_too_broken(report, max_broken_share):
        worst = max(broken, key=broken.get)
        raise DataError(
            f"index of {name}: {total} of {report.records} records are broken "
            f"({100 * total / report.records:.1f} %), allowed are {100 * max_broken_share:g} %; "
            f"most often: {worst} ({broken[worst]}), e.g. {'; '.join(report.named[worst][:5])}. "
            f"Repair or remove them."
        )
    if not report.examples:
        why = "; ".join(report.lines()) or "the source is empty"
        raise DataError(
            f"index of {name}: none of {report.records} records is usable ({why}); check the "
            "folder and its layout."
        )
