"""Parses numbers and ids of untrusted JSON.

Real JSON contains `NaN`, `1e999`, numbers as text, `true` in place of numbers, and nested lists.
These functions never raise: invalid values become None (or `MISSING`), and the caller reports the
annotation.
"""

import math
import pathlib
import re
from collections.abc import Iterable
from typing import Any

from data_pipelines.index.strings import StringCollector, StringTable

MISSING = -(2**63)
"""Code of a value that is not an id."""

_FIRST_TEXT = -(2**62)  # codes of texts go down from here
_WHOLE_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,17})")
_FLAGS = {"0": False, "1": True, "false": False, "true": True, "": False}


def finite(value: Any) -> float | None:
    """A finite number, also given as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def parse_int(value: Any) -> int | None:
    """An integer within 64 bits (also as 3.0 or "3"), or None."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value if -(2**62) < value < 2**62 else None
    number = finite(value)
    if number is None or not number.is_integer() or abs(number) >= 2**53:
        return None
    return int(number)


def flag(value: Any) -> bool | None:
    """0, 1, true, false, null and the same as text; None for anything else."""
    if value is None:
        return False
    if isinstance(value, str):
        return _FLAGS.get(value.strip().lower())
    if isinstance(value, (bool, int, float)) and value in (0, 1):
        return bool(value)
    return None


def clean_text(value: Any) -> str:
    """Text that can be printed and stored; control characters and lone surrogates are replaced."""
    text = str(value).encode("utf-8", "replace").decode("utf-8")
    return re.sub(r"[\x00-\x1f\x7f]+", " ", text)


def is_storable(text: str) -> bool:
    """Whether a text can be part of a path and be written as UTF-8."""
    return not any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in text)


def plain_name(name: str) -> str:
    """A path with `/` for the backslashes of Windows tools."""
    return pathlib.PureWindowsPath(name).as_posix() if "\\" in name else name


def short(value: Any, letters: int = 60) -> str:
    """A value for a message, shortened to one line."""
    text = clean_text(repr(value) if not isinstance(value, (list, dict)) else _sketch(value))
    return text if len(text) <= letters else f"{text[: letters - 3]}..."


def _sketch(value: list | dict) -> str:
    kind = "a list" if isinstance(value, list) else "an object"
    return f"{kind} of {len(value)}"


class IdCodes:
    """Encodes the ids of a file as 64-bit integers, so that millions of them fit one array.

    A whole number is its own code, whether the file writes 7, 7.0 or "7"; other texts are numbered
    in order of appearance. Two ids are the same where their codes are.
    """

    def __init__(self):
        self._numbers: dict[str, int] = {}
        self._texts = StringCollector()

    def code(self, value: Any) -> int:
        """The code of an id; `MISSING` for what cannot be one (null, NaN, true, a list)."""
        if type(value) is int and _FIRST_TEXT < value < -_FIRST_TEXT:
            return value
        if isinstance(value, str):
            text = value
            if _WHOLE_NUMBER.fullmatch(text):
                return int(text)
        elif isinstance(value, bool) or not isinstance(value, (int, float)):
            return MISSING
        elif isinstance(value, float):
            if not math.isfinite(value):
                return MISSING
            if value.is_integer() and abs(value) < 2**53:
                return int(value)
            text = repr(value)
        else:
            text = hex(value)  # too large for 64 bits, and perhaps for str()
        code = self._numbers.get(text)
        if code is None:
            code = self._numbers[text] = _FIRST_TEXT - len(self._numbers)
            self._texts.add(text)
        return code

    def table(self) -> "IdTable":
        """Returns the decoder; no id may be added afterwards."""
        return IdTable(self._texts.table())


class IdTable:
    """Codes of `IdCodes` as text."""

    def __init__(self, texts: StringTable):
        self._texts = texts

    def text(self, code: int) -> str:
        """The id as text; "(none)" for `MISSING`."""
        if code == MISSING:
            return "(none)"
        return self._texts[_FIRST_TEXT - code] if code <= _FIRST_TEXT else str(int(code))

    def quoted(self, code: int) -> str:
        """The same for messages: texts in quotes."""
        if code == MISSING or code > _FIRST_TEXT:
            return self.text(code)
        return short(self.text(code))

    def order(self, codes: Iterable[int]) -> list[int]:
        """Positions of codes in order: numbers by value, then texts alphabetically."""
        listed = list(codes)

        def key(position: int) -> tuple[bool, int, str]:
            code = listed[position]
            is_text = code <= _FIRST_TEXT
            return is_text, 0 if is_text else code, self.text(code) if is_text else ""

        return sorted(range(len(listed)), key=key)


def image_side(value: object) -> int:
    """Height or width as a file states it: 0 if missing, -1 if it is not a size."""
    if value is None:
        return 0
    side = parse_int(value)
    return side if side is not None and 0 <= side < 2**31 else -1
