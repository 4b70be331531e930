"""Distance of the pixels of a mask to its outline, the same in every call."""

import cv2
import numpy as np
from jaxtyping import Bool, Float32


def distance_inside(mask: Bool[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w"]:
    """Exact Euclidean distance of each mask pixel to the nearest pixel outside the mask.

    Everything beyond the border of the array counts as outside. Pixels outside the mask have
    distance 0.

    OpenCV's exact transform differs in the last bit with the address of its array, which decides
    between equally deep pixels anew in every call. Squares of the distances are whole numbers;
    rounded to them, the answer depends on the mask alone (distances up to 1,600 pixels).

    Returns:
        float32 [h, w], pixels.
    """
    distance = np.zeros(mask.shape, np.float32)
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if ys.size == 0:
        return distance
    # The nearest outside pixel never lies beyond the ring around the bounding box.
    window = (slice(ys[0], ys[-1] + 1), slice(xs[0], xs[-1] + 1))
    padded = np.pad(mask[window].astype(np.uint8), 1)
    inside = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    distance[window] = np.sqrt(np.rint(np.square(inside, dtype=np.float64)))
    return distance


def innermost_pixel(mask: Bool[np.ndarray, "h w"]) -> tuple[int, int] | None:
    """(x, y) of the pixel farthest from the outline, the first in row-major order; None without
    a pixel.
    """
    if not mask.any():
        return None
    y, x = np.unravel_index(int(distance_inside(mask).argmax()), mask.shape)
    return int(x), int(y)
