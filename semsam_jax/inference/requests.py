"""Requests, checked once, in image pixels."""

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

from semsam_jax.core.errors import PromptError
from semsam_jax.inference.granularity import (
    Granularity,
    Level,
    as_array,
    check_area,
    is_finite_number,
    parse_granularity,
)

POSITIVE, NEGATIVE, PADDING = 1, 0, -1


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt for one object: clicks, a box, a mask or a combination, and the requested levels.

    Attributes:
        point_coords: clicks (x, y) in pixels of the image, anything of shape [n, 2].
        point_labels: 1 for a positive click, 0 for a negative one; None means all 1.
        box: x0, y0, x1, y1 in pixels of the image.
        level: 1..6, a list of them, or None for all.
        area: desired area as a fraction of the image, which selects one of the levels.
        mask_input: a mask to refine, see `mask_prompt.read_mask`.
        granularity: 0 (the finest part) to 1 (the whole), or a list, instead of `level`.
    """

    point_coords: object = None
    point_labels: object = None
    box: object = None
    level: Level = None
    area: float | None = None
    mask_input: object = None
    granularity: Granularity = None


@dataclasses.dataclass(frozen=True)
class CheckedRequest:
    """A request as arrays: clicks first, then at most one box.

    Attributes:
        points: pixels of the image.
        is_positive: one flag for each click.
        boxes: x0, y0, x1, y1 in pixels of the image, none or one.
    """

    points: Float[np.ndarray, "c 2"]
    is_positive: Bool[np.ndarray, " c"]
    boxes: Float[np.ndarray, "n 4"]

    @property
    def num_prompts(self) -> int:
        """Prompts that the network sees."""
        return len(self.points) + len(self.boxes)

    @property
    def is_single(self) -> bool:
        """Whether one prompt answers it, so that nothing has to be combined."""
        return self.num_prompts == 1


def as_request(request: object) -> Request:
    """A request as it is, or of a mapping with the names of its fields.

    Raises:
        PromptError: something else, or a mapping with other keys.
    """
    if isinstance(request, Request):
        return request
    fields = [field.name for field in dataclasses.fields(Request)]
    if isinstance(request, Mapping):
        unknown = [str(key) for key in request if key not in fields]
        if unknown:
            raise PromptError(
                f"request: got the keys {', '.join(unknown[:5])}; expected some of "
                f"{', '.join(fields)}."
            )
        return Request(**request)
    raise PromptError(
        f"request: got {type(request).__name__}; expected Request(point_coords=..., box=...) or a "
        f"dict with these keys."
    )


def as_requests(requests: object) -> list[Request]:
    """A list of requests, each as `as_request` takes it; PromptError for anything else."""
    if isinstance(requests, Request | Mapping):
        raise PromptError("requests: got one request; expected a list, such as [request].")
    check_sequence("requests", requests, "a list of requests")
    return [as_request(request) for request in requests]


def split_batch(request: Request) -> list[Request] | None:
    """One request for each box or row of clicks, None if it is about one object.

    A batch is given as SAM 2 does: boxes [n, 4] of several rows, or clicks [n, k, 2] with labels
    [n, k], where a label of -1 marks padding.

    Raises:
        PromptError: shapes that do not belong together.
    """
    points = _numbers(request.point_coords, "point", 2)
    boxes = _numbers(request.box, "box", 4)
    is_batch = points is not None and points.ndim == 3
    if not is_batch and (boxes is None or boxes.ndim < 2 or len(boxes) < 2):
        return None
    if points is not None and points.ndim != 3:
        raise PromptError(
            f"box: got {len(boxes)} boxes with clicks of shape {points.shape}; expected clicks "
            f"[n, k, 2], k for each box, or one box."
        )
    if request.mask_input is not None:
        raise PromptError("mask_input: got it with several objects; send one request for each.")
    count = len(points) if is_batch else len(boxes)
    if count == 0:
        return None
    if boxes is not None and boxes.reshape(-1, boxes.shape[-1]).shape[0] != count:
        raise PromptError(f"box: got {len(boxes)} boxes for {count} rows of clicks.")
    rows = [None] * count if boxes is None else list(boxes.reshape(count, -1))
    if points is None:
        if request.point_labels is not None:
            raise PromptError("point_labels: got labels without clicks.")
        return [dataclasses.replace(request, box=row) for row in rows]
    labels = _numbers(request.point_labels, "point_labels", None)
    labels = np.ones(points.shape[:2]) if labels is None else labels
    if labels.shape != points.shape[:2]:
        raise PromptError(
            f"point_labels: got shape {labels.shape} for clicks {points.shape}; expected "
            f"{list(points.shape[:2])}."
        )
    return [
        dataclasses.replace(
            request,
            point_coords=xy[row != PADDING],
            point_labels=row[row != PADDING],
            box=box,
        )
        for xy, row, box in zip(points, labels, rows, strict=True)
    ]


def check_request(request: Request, image_hw: tuple[int, int]) -> CheckedRequest:
    """Checks clicks and box against the image; `mask_input` is not looked at.

    Raises:
        PromptError: nothing given, wrong shape, NaN, a click or box outside the image, an
            empty box, only negative clicks, or an area or a granularity that is no fraction.
    """
    check_area(request.area)
    parse_granularity(request.granularity, request.level, request.area)
    height, width = image_hw
    points = _rows(request.point_coords, 2, "point")
    boxes = _rows(request.box, 4, "box")
    if len(boxes) > 1:
        raise PromptError("box: got several boxes for one object; send one request for each.")
    is_positive = _check_labels(request.point_labels, len(points))
    for x, y in points:
        if not (0 <= x <= width and 0 <= y <= height):
            raise PromptError(
                f"point {x:g},{y:g}: outside the image, which is {width}x{height} pixels."
            )
    for x0, y0, x1, y1 in boxes:
        if not (x0 < x1 and y0 < y1):
            raise PromptError(
                f"box {x0:g},{y0:g},{x1:g},{y1:g}: empty; expected x0<x1 and y0<y1 (x0,y0,x1,y1)."
            )
        if min(x0, y0) < 0 or x1 > width or y1 > height:
            raise PromptError(
                f"box {x0:g},{y0:g},{x1:g},{y1:g}: reaches outside the image, which is "
                f"{width}x{height} pixels."
            )
    has_mask = request.mask_input is not None
    if not len(boxes) and not is_positive.any() and not has_mask:
        raise PromptError("prompt: nothing to segment; give at least one positive click or a box.")
    return CheckedRequest(points, is_positive, boxes)


def _check_labels(labels: object, count: int) -> Bool[np.ndarray, " c"]:
    if labels is None:
        return np.ones(count, bool)
    array = _numbers(labels, "point_labels", None)
    array = np.zeros(0) if array is None else array.reshape(-1)
    if len(array) != count:
        raise PromptError(f"point_labels: got {len(array)} labels for {count} points.")
    if not np.isin(array, (POSITIVE, NEGATIVE)).all():
        raise PromptError(
            f"point_labels: got {array.tolist()[:16]}; expected 1 (positive) or 0 (negative)."
        )
    return array == POSITIVE


def warn_of_fractions(request: CheckedRequest, image_hw: tuple[int, int]) -> None:
    """Warns where all coordinates look like fractions of the image instead of pixels."""
    values = np.concatenate([request.points.ravel(), request.boxes.ravel()])
    is_small = values.size > 0 and min(image_hw) > 2 and values.max() <= 1
    if is_small and (len(request.boxes) or (values % 1 > 0).any()):
        warnings.warn(
            f"the prompt {np.round(values, 3).tolist()[:4]} looks like fractions of the image, but "
            f"is taken as pixels: multiply x by {image_hw[1]} and y by {image_hw[0]}.",
            stacklevel=2,
        )


def _rows(values: object, columns: int, what: str) -> np.ndarray:
    array = _numbers(values, what, columns)
    if array is None or array.size == 0:
        return np.zeros((0, columns))
    if array.ndim == 1:
        array = array[None]
    if array.ndim != 2:
        raise PromptError(f"{what}: got shape {array.shape}; expected [n, {columns}].")
    return array


def _numbers(values: object, what: str, columns: int | None) -> np.ndarray | None:
    """Finite float64 numbers, with `columns` of them in the last axis; None stays."""
    if values is None:
        return None
    wanted = "numbers" if columns is None else f"{columns} numbers each"
    try:
        array = as_array(values, np.float64)
    except ValueError as error:
        raise PromptError(f"{what}: got {str(values)[:60]}; expected {wanted}.") from error
    if array.size and columns is not None and (array.ndim == 0 or array.shape[-1] != columns):
        raise PromptError(f"{what}: got shape {array.shape}; expected [n, {columns}].")
    if array.ndim > 3:
        raise PromptError(f"{what}: got shape {array.shape}; expected at most three axes.")
    if not np.isfinite(array).all():
        raise PromptError(f"{what}: got NaN or infinity; expected finite pixels.")
    return array


def check_number(name: str, value: object, low: float, top: float = math.inf) -> float:
    """Returns a finite number between two bounds; PromptError for anything else."""
    if not is_finite_number(value) or not low <= value <= top:
        wanted = f"{low:g}..{top:g}" if math.isfinite(top) else f"at least {low:g}"
        raise PromptError(f"{name}: got {str(value)[:60]}; expected a number, {wanted}.")
    return value


def check_flag(name: str, value: object) -> bool:
    """Returns True or False; PromptError for anything else than a truth value or 0 and 1."""
    if not isinstance(value, bool | np.bool_ | int) or value not in (0, 1):
        raise PromptError(f"{name}: got {str(value)[:60]}; expected True or False.")
    return bool(value)


def check_int(name: str, value: object, low: int, top: int) -> int:
    """Returns an integer between two bounds; PromptError for anything else."""
    is_int = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_int or not low <= value <= top:
        raise PromptError(f"{name}: got {str(value)[:60]}; expected {low}..{top}.")
    return int(value)


def check_sequence(name: str, values: object, wanted: str) -> Sequence:
    """Returns a list or tuple; PromptError for anything else."""
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Sequence):
        raise PromptError(f"{name}: got {type(values).__name__}; expected {wanted}.")
    return values
