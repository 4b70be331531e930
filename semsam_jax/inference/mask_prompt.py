"""A mask as a prompt: the clicks and the box that describe it.

The network takes clicks and boxes only. A mask to be refined (an earlier answer, or a drawn one) is
described by its box, positive clicks at the innermost points of its pieces, and negative clicks at
the innermost points of the rest of its box.
"""

from collections.abc import Mapping

import cv2
import numpy as np
from jaxtyping import Bool, Float

from semsam_jax.core import rle
from semsam_jax.core.errors import DataError, PromptError
from semsam_jax.inference.granularity import as_array
from semsam_jax.inference.preprocess import Frame
from semsam_jax.inference.requests import CheckedRequest
from semsam_jax.inference.upsample import upsample_masks

MAX_POSITIVE, MAX_NEGATIVE = 3, 2
_LEAST_DEPTH_PX = 2.0


def read_mask(
    mask_input: object, frame: Frame, low_hw: tuple[int, int]
) -> Bool[np.ndarray, "h w"] | None:
    """The mask at the size of the image, None without one.

    Args:
        mask_input: a mask of the image's size: bool, numbers or logits (above 0 is inside), [h, w]
            or [1, h, w], or COCO RLE as records have it; or `low_res_logits` of an answer on this
            image, one of them.
        frame: sizes.
        low_hw: height and width of `low_res_logits`.

    Raises:
        PromptError: another shape or type, probabilities, or an empty mask.
    """
    if mask_input is None:
        return None
    height, width = frame.image_hw
    if isinstance(mask_input, Mapping):
        try:
            mask_input = rle.decode(mask_input)
        except DataError as error:
            raise PromptError(f"mask_input: {error}") from error
    try:
        array = as_array(mask_input)
        is_number = array.dtype.kind in "biuf"
    except ValueError:
        is_number = False
    if not is_number:
        raise PromptError(
            f"mask_input: got {type(mask_input).__name__}; expected an array of booleans or "
            f"numbers, or COCO RLE."
        )
    if array.ndim == 3 and len(array) == 1:
        array = array[0]
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise PromptError("mask_input: got NaN or infinity; expected logits or a mask.")
    if array.shape == tuple(low_hw) and array.dtype.kind == "f":
        mask = upsample_masks(array[None].astype(np.float32), frame, frame.image_hw)[0]
    elif array.shape == (height, width):
        _refuse_probabilities(array)
        mask = array > 0
    else:
        raise PromptError(
            f"mask_input: got shape {np.shape(mask_input)}; expected one mask of the image's size "
            f"[{height}, {width}], or one of an answer's low_res_logits {list(low_hw)}."
        )
    if not mask.any():
        raise PromptError("mask_input: the mask is empty; expected at least one pixel inside.")
    return mask


def _refuse_probabilities(array: np.ndarray) -> None:
    """Above 0 is inside: of probabilities this would be nearly everything."""
    if array.dtype.kind == "f" and array.min() >= 0 and array.max() <= 1 and (array % 1).any():
        raise PromptError(
            "mask_input: got values between 0 and 1, which look like probabilities p; expected a "
            "mask, such as p > 0.5, or logits."
        )


def add_mask(check: CheckedRequest, mask: Bool[np.ndarray, "h w"] | None) -> CheckedRequest:
    """Adds the clicks that describe a mask to a request, and its box if the request has none."""
    if mask is None:
        return check
    points, is_positive, box = describe_mask(mask)
    # What the user clicked corrects the mask: its own points stay away from there.
    near = 0.1 * np.hypot(box[2] - box[0], box[3] - box[1])
    for xy, flag in zip(check.points, check.is_positive, strict=True):
        is_kept = (np.hypot(*(points - xy).T) > near) | (is_positive == flag)
        points, is_positive = points[is_kept], is_positive[is_kept]
    return CheckedRequest(
        points=np.concatenate([check.points, points]),
        is_positive=np.concatenate([check.is_positive, is_positive]),
        boxes=check.boxes if len(check.boxes) else box[None],
    )


def describe_mask(
    mask: Bool[np.ndarray, "h w"],
) -> tuple[Float[np.ndarray, "c 2"], Bool[np.ndarray, " c"], Float[np.ndarray, "4"]]:
    """Clicks (x, y), which of them are positive, and the box of a mask, in pixels."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    y0, y1, x0, x1 = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    window = mask[y0:y1, x0:x1]
    inside = innermost_points(window, MAX_POSITIVE, least_depth=0.0)
    outside = innermost_points(~window, MAX_NEGATIVE, least_depth=_LEAST_DEPTH_PX)
    corner = np.array([x0, y0]) + 0.5
    points = np.array(inside + outside, np.float64).reshape(-1, 2) + corner
    is_positive = np.arange(len(points)) < len(inside)
    return points, is_positive, np.array([x0, y0, x1, y1], np.float64)


def innermost_points(
    mask: Bool[np.ndarray, "h w"], count: int, least_depth: float
) -> list[tuple[int, int]]:
    """Up to `count` pixels (x, y) farthest from the border of a mask and from each other.

    The first is the innermost; after each, the disc around it that fits into the mask is taken
    out. Points less deep than a third of the first, or than `least_depth` pixels, are left out.
    """
    rest = np.pad(mask, 1).astype(np.uint8)
    points: list[tuple[int, int]] = []
    first = 0.0
    for _ in range(count):
        distance = cv2.distanceTransform(rest, cv2.DIST_L2, 5)
        y, x = np.unravel_index(int(distance.argmax()), distance.shape)
        depth = float(distance[y, x])
        first = max(first, depth)
        if depth <= 0 or depth < max(least_depth, first / 3):
            break
        points.append((int(x) - 1, int(y) - 1))
        cv2.circle(rest, (int(x), int(y)), max(1, int(np.ceil(depth))), 0, -1)
    return points
