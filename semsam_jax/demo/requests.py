"""Parses requests of the page's script: JSON, with every value checked."""

import json
import math
import re

from fastapi import Request

from semsam_jax.demo.downloads import ChosenMask
from semsam_jax.demo.limits import HTTPError, Limits
from semsam_jax.inference.visualize import RGB

_INVALID = "Invalid request."
_NAME_LENGTH = 100


async def read_body(request: Request) -> dict:
    """The JSON object of a request; its size was checked at the gate."""
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise HTTPError(400, _INVALID) from error
    if not isinstance(body, dict):
        raise HTTPError(400, _INVALID)
    return body


def read_text(body: dict, key: str, top: int, what: str = "") -> str:
    """A string of at most `top` characters; empty if it is missing."""
    value = body.get(key, "")
    if not isinstance(value, str):
        raise HTTPError(400, _INVALID)
    if len(value) > top:
        raise HTTPError(400, f"The {what or key} may have at most {top} characters.")
    return value


def read_number(body: dict, key: str) -> float:
    """A finite number."""
    return read_numbers([body.get(key)], 1)[0]


def read_granularity(body: dict) -> float | None:
    """A number from 0 to 1, or None if none is asked for."""
    if body.get("granularity") is None:
        return None
    value = read_number(body, "granularity")
    if not 0 <= value <= 1:
        raise HTTPError(400, "Granularity: expected a number from 0 to 1.")
    return value


def read_numbers(values: object, count: int) -> list[float]:
    """A list of `count` finite numbers."""
    is_list = isinstance(values, list) and len(values) == count
    if not is_list or not all(_is_number(value) for value in values):
        raise HTTPError(400, _INVALID)
    return [float(value) for value in values]


def read_points(body: dict, limits: Limits) -> list[list[float]]:
    """Clicks of a request, empty if it has none.

    Returns:
        One [x, y, label] per click: pixels of the displayed image, label 1 (positive) or 0.

    Raises:
        HTTPError: 400, not a list of triples of finite numbers, or more than `limits.points`.
    """
    points = body.get("points") or []
    if not isinstance(points, list):
        raise HTTPError(400, _INVALID)
    if len(points) > limits.points:
        raise HTTPError(400, f"At most {limits.points} clicks on one object.")
    return [read_numbers(point, 3) for point in points]


def read_masks(body: dict, top: int) -> list[ChosenMask]:
    """At most `top` numbers of masks, or mappings with a number, a name and a colour."""
    rows = body.get("masks")
    if not isinstance(rows, list):
        raise HTTPError(400, _INVALID)
    if len(rows) > top:
        raise HTTPError(400, f"{len(rows)} masks are too many at once; at most {top}.")
    found = []
    for row in rows:
        row = row if isinstance(row, dict) else {"number": row}
        number = row.get("number")
        if not isinstance(number, int) or isinstance(number, bool):
            raise HTTPError(400, _INVALID)
        name = row.get("name")
        if not (name is None or isinstance(name, str)):
            raise HTTPError(400, _INVALID)
        name = None if name is None else name[:_NAME_LENGTH].strip()
        found.append(ChosenMask(number, name, _read_colour(row.get("colour"))))
    return found


def _read_colour(text: object) -> RGB | None:
    """Red, green and blue of "#rrggbb"."""
    if text is None:
        return None
    if not isinstance(text, str) or not re.fullmatch("#[0-9a-f]{6}", text):
        raise HTTPError(400, _INVALID)
    red, green, blue = bytes.fromhex(text[1:])
    return red, green, blue


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e9 and math.isfinite(value)
