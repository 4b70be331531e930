"""Stores millions of short strings as two arrays instead of Python objects.

A tuple of eleven million names takes a gigabyte in every process; the same names concatenated in
one byte array take their letters and one number each, and a table in files is memory-mapped, shared
by all processes of a machine, and pickled as its path.
"""

import array
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np


class StringTable(Sequence[str]):
    """An immutable sequence of strings.

    Args:
        text: uint8 [letters], all texts end to end in UTF-8.
        ends: int64 [n], where each text ends in `text`.
        files: where both arrays are mapped from, or None for arrays in memory.
    """

    def __init__(
        self, text: np.ndarray, ends: np.ndarray, files: tuple[pathlib.Path, ...] | None = None
    ):
        self._text, self._ends, self._files = text, ends, files

    @classmethod
    def of(cls, texts: Iterable[str]) -> "StringTable":
        """Collects strings without keeping them as objects."""
        collector = StringCollector()
        for text in texts:
            collector.add(text)
        return collector.table()

    @classmethod
    def load(cls, folder: pathlib.Path, name: str) -> "StringTable":
        """Maps what `save` wrote."""
        files = (folder / f"{name}.text.npy", folder / f"{name}.ends.npy")
        return cls(np.load(files[0], mmap_mode="r"), np.load(files[1], mmap_mode="r"), files)

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """File name -> array: what to write into a folder for `load`."""
        return {f"{name}.text.npy": self._text, f"{name}.ends.npy": self._ends}

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...

    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        if isinstance(index, slice):
            return tuple(self[number] for number in range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(f"text {index} of {len(self)}")
        number = index % len(self)
        start = int(self._ends[number - 1]) if number else 0
        letters = self._text[start : int(self._ends[number])]
        return letters.tobytes().decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[number] for number in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def __getstate__(self) -> dict:
        """Mapped tables are pickled as their path."""
        return {"files": self._files} if self._files else {"arrays": (self._text, self._ends)}

    def __setstate__(self, state: dict) -> None:
        files = state.get("files")
        arrays = state.get("arrays") or tuple(np.load(file, mmap_mode="r") for file in files)
        self.__init__(*arrays, files)


class StringCollector:
    """A growing table of letters and ends; strings are not kept as objects."""

    def __init__(self):
        self._letters, self._ends = bytearray(), array.array("q")

    def add(self, text: str) -> None:
        """Appends a text."""
        try:
            self._letters += text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:  # half a letter, as JSON can write it: no file has such a name
            self._letters += text.encode("utf-8", "replace")
        self._ends.append(len(self._letters))

    def table(self) -> StringTable:
        """Returns the table; the collector must not grow any more."""
        return StringTable(
            np.frombuffer(self._letters, np.uint8), np.frombuffer(self._ends, np.int64)
        )
