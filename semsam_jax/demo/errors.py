"""Turns errors of the package into answers of the server."""

from collections.abc import Callable
from typing import TypeVar

from semsam_jax.core.errors import SemSamError
from semsam_jax.demo.limits import HTTPError

T = TypeVar("T")
_FIELDS = {
    "box": "boxes",
    "point": "points",
    "points_per_side": "grid",
    "pred_iou_thresh": "min_score",
    "prompt": "points",
    "stability_score_thresh": "min_score",
    "tile_overlap": "overlap",
}
"""Fields of the API by the names that the package has for them."""


def explained(work: Callable[[], T]) -> T:
    """The result of `work`.

    Raises:
        HTTPError: 400, instead of a `SemSamError`.
    """
    try:
        return work()
    except SemSamError as error:
        message = " ".join(str(error).split())
        raise HTTPError(400, _sentence(message), for_api=_with_field(message)) from error


def _sentence(message: str) -> str:
    """An error without the name of its argument in front, which a visitor of the page never saw."""
    head, colon, rest = message.partition(": ")
    text = rest if colon and " " not in head else message
    return text[:1].upper() + text[1:]


def _with_field(message: str) -> str:
    """An error with the API's name for the argument: `point 9,9: outside` is `points: 9,9: ...`."""
    head, colon, rest = message.partition(": ")
    name, space, value = head.partition(" ")
    if not colon or (space and name not in _FIELDS):
        return message
    return f"{_FIELDS.get(name, name)}: {value}{colon if value else ''}{rest}"
