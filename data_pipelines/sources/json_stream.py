"""Streams annotation files of many gigabytes without loading them into memory.

Parsed at once, the 25 million boxes of Objects365 take some twenty gigabytes of Python objects in
every process that reads them. Here the arrays of the file's outermost object are read one element
at a time.
"""

import codecs
import json
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from data_pipelines.sources.values import short
from semsam_jax.core.errors import DataError

_CHUNK = 2**22  # letters read at a time
_SPACE = re.compile(r"[ \t\r\n]*")


def read_elements(
    path: pathlib.Path, dataset: str, wanted: Mapping[str, Callable[[dict], object]]
) -> None:
    """Calls `wanted[key]` with every element of the array under each key, in the file's order.

    Args:
        path: a JSON file whose outermost value is an object.
        dataset: for messages.
        wanted: key -> what to do with an element; elements of these arrays are objects.

    Raises:
        DataError: the file is missing, cut off, no JSON object, nested too deeply, or one of the
            keys is missing, appears twice or is no array.
    """
    try:
        with path.open(encoding=_encoding(path)) as file:
            found = _Parser(file).run(path, dataset, wanted)
    except OSError as error:
        raise DataError(
            f"{dataset}: cannot read {path}: {error.strerror or error}; check root and split"
        ) from error
    except RecursionError as error:
        raise DataError(
            f"{dataset}: {path} has lists or objects nested too deeply; expected a COCO-style "
            "annotation file"
        ) from error
    except UnicodeError as error:
        raise DataError(
            f"{dataset}: {path} is not complete JSON in UTF-8 ({error}); unpack it, save it in "
            "this encoding, or download it again"
        ) from error
    except ValueError as error:  # of the parser: cut off, a number of 5,000 digits
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{dataset}: {path} is not complete JSON ({error}); download it again"
        ) from error
    twice = [key for key in wanted if found.count(key) > 1]
    if twice:
        raise DataError(
            f"{dataset}: {path} has {twice} twice; expected each key once, since it is unclear "
            "which is meant"
        )
    lacking = [key for key in wanted if key not in found]
    if lacking:
        raise DataError(
            f"{dataset}: {path} has no {lacking}; found keys {sorted(found)[:12]}; expected a "
            "COCO-style annotation file"
        )


def _encoding(path: pathlib.Path) -> str:
    """UTF-8, unless the file begins with the mark of UTF-16, as PowerShell writes it."""
    with path.open("rb") as file:
        start = file.read(2)
    return "utf-16" if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


class _Parser:
    """A moving window over the text, whose values are read by the standard parser."""

    def __init__(self, file: TextIO):
        self._file = file
        self._text, self._at, self._is_end = "", 0, False
        self._decode = json.JSONDecoder().raw_decode

    def run(
        self, path: pathlib.Path, dataset: str, wanted: Mapping[str, Callable[[dict], object]]
    ) -> list[str]:
        """Reads the whole file; returns the outermost keys."""
        if self._next() != "{":
            raise DataError(
                f"{dataset}: {path} holds a {type(self._value()).__name__}; expected an object "
                "with keys"
            )
        keys: list[str] = []
        for _ in self._items("}"):
            keys.append(str(self._value()))
            self._expect(":")
            use = wanted.get(keys[-1])
            if self._next() != "[":
                value = self._value()
                if use is not None:
                    raise DataError(
                        f"{dataset}: {path}: {keys[-1]} is a {type(value).__name__}; expected an "
                        "array"
                    )
                continue
            for _ in self._items("]"):
                element = self._value()
                if use is None:
                    continue
                if not isinstance(element, dict):
                    raise DataError(
                        f"{dataset}: {path}: {keys[-1]} holds a {type(element).__name__} "
                        f"({short(element)}); expected objects"
                    )
                use(element)
        if self._next():
            raise json.JSONDecodeError("text after the end", self._text, self._at)
        return keys

    def _items(self, closing: str):
        """Yields before every item of the object or array that begins here."""
        self._at += 1
        if self._next() == closing:
            self._at += 1
            return
        while True:
            yield
            if self._next() == closing:
                self._at += 1
                return
            self._expect(",")

    def _next(self) -> str:
        """The next non-space character, "" at the end."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()
            if self._at < len(self._text):
                return self._text[self._at]
            if self._is_end:
                return ""
            self._read_on()

    def _expect(self, letter: str) -> None:
        if self._next() != letter:
            raise json.JSONDecodeError(f"expected {letter!r}", self._text, self._at)
        self._at += 1

    def _value(self) -> Any:
        self._next()
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except json.JSONDecodeError:
                if self._is_end:
                    raise
            else:
                # A number at the end of the window may continue after it.
                if end < len(self._text) or self._is_end:
                    self._at = end
                    return value
            self._read_on()

    def _read_on(self) -> None:
        """Drops what is parsed and reads as much again as is left, at least one chunk."""
        rest = self._text[self._at :]
        more = self._file.read(max(_CHUNK, len(rest)))
        self._text, self._at, self._is_end = rest + more, 0, not more
