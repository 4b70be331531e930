"""Requests, checked once, in image pixels; results."""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from semsam_jax.core.errors import PromptError
from semsam_jax.inference.granularity import Level, check_area

POSITIVE, NEGATIVE = 1, 0


@dataclasses.dataclass(frozen=True)
class Request:
    """One object: clicks and possibly a box, and the levels wanted.

    Attributes:
        point_coords: clicks (x, y) in image pixels, anything of shape [n, 2].
        point_labels: 1 for a click on the object, 0 for a click beside it; None means all 1.
        box: x0, y0, x1, y1 in image pixels.
        level: 1..6, a list of them, or None for all.
        area: wanted area as a fraction of the image; chooses the level, instead of `level`.
    """

    point_coords: object = None
    point_labels: object = None
    box: object = None
    level: Level = None
    area: float | None = None


class ScoredName(NamedTuple):
    """A class name and its score in 0..1."""

    name: str
    score: float


@dataclasses.dataclass(frozen=True)
class Segments:
    """The masks of one request; unpacks as `masks, scores, low_res_logits`.

    Attributes:
        masks: bool [m, h, w] at the image's size (float32 logits if those were asked for).
        scores: predicted IoU, float32 [m].
        low_res_logits: float32 [m, h/4, w/4] of the padded canvas.
        levels: level of each mask.
        tokens: token of each mask.
        objects: best object name of each mask, None without `labels`.
        parts: best part name of each mask, None without `labels`.
    """

    masks: np.ndarray
    scores: np.ndarray
    low_res_logits: np.ndarray
    levels: tuple[int, ...]
    tokens: tuple[int, ...]
    objects: tuple[ScoredName | None, ...]
    parts: tuple[ScoredName | None, ...]

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yields masks, scores and low_res_logits."""
        return iter((self.masks, self.scores, self.low_res_logits))


@dataclasses.dataclass(frozen=True)
class CheckedRequest:
    """A request as arrays: clicks first, then at most one box.

    Attributes:
        points: image pixels.
        is_positive: one flag for each click.
        boxes: x0, y0, x1, y1 in image pixels, none or one.
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


def check_request(request: Request, image_hw: tuple[int, int]) -> CheckedRequest:
    """Checks clicks and box against the image.

    Raises:
        PromptError: nothing given, wrong shape, NaN, a click or box outside the image, an
            empty box, only negative clicks, or an area that is no fraction.
    """
    check_area(request.area)
    height, width = image_hw
    points = _array(request.point_coords, 2, "point")
    boxes = _array(request.box, 4, "box")
    if len(boxes) > 1:
        raise PromptError("box: got several boxes for one object; send one request for each.")
    labels = np.ones(len(points)) if request.point_labels is None else request.point_labels
    labels = np.asarray(labels).reshape(-1)
    if len(labels) != len(points):
        raise PromptError(f"point_labels: got {len(labels)} labels for {len(points)} points.")
    if not np.isin(labels, (POSITIVE, NEGATIVE)).all():
        raise PromptError(f"point_labels: got {labels.tolist()}; wanted 1 (on it) or 0 (beside).")
    is_positive = labels == POSITIVE
    for x, y in points:
        if not (0 <= x <= width and 0 <= y <= height):
            raise PromptError(
                f"point {x:g},{y:g}: outside the image, which is {width}x{height} pixels."
            )
    for x0, y0, x1, y1 in boxes:
        if not (x0 < x1 and y0 < y1):
            raise PromptError(
                f"box {x0:g},{y0:g},{x1:g},{y1:g}: empty; wanted x0<x1 and y0<y1 (x0,y0,x1,y1)."
            )
        if min(x0, y0) < 0 or x1 > width or y1 > height:
            raise PromptError(
                f"box {x0:g},{y0:g},{x1:g},{y1:g}: reaches outside the image, which is "
                f"{width}x{height} pixels."
            )
    if not len(boxes) and not is_positive.any():
        raise PromptError("prompt: nothing to segment; give at least one positive click or a box.")
    return CheckedRequest(points, is_positive, boxes)


def _array(values: object, columns: int, what: str) -> np.ndarray:
    if values is None:
        return np.zeros((0, columns))
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise PromptError(f"{what}: got {values!r}; wanted {columns} numbers each.") from error
    if array.size == 0:
        return np.zeros((0, columns))
    if array.ndim == 1:
        array = array[None]
    if array.ndim != 2 or array.shape[1] != columns:
        raise PromptError(f"{what}: got shape {array.shape}; wanted [n, {columns}].")
    if not np.isfinite(array).all():
        raise PromptError(f"{what}: got NaN or infinity; wanted finite image pixels.")
    return array
