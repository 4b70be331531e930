"""Click positions of evaluations, and the boxes that represent clicks."""

import numpy as np

from semsam_jax.core.distance import distance_inside, innermost_pixel

CLICK_BOX_PX = 6.0
"""Side of the box that represents an evaluation click (docs/reference.md, section 5)."""


def centre_click(mask: np.ndarray) -> tuple[int, int] | None:
    """Pixel farthest from the mask's border: the click of the 1-click evaluation.

    The first maximum of `distance_inside` in row-major order. The original uses an
    approximate transform, so its clicks may differ by a few pixels.

    Args:
        mask: bool [h, w].

    Returns:
        (x, y) in pixels, or None for an empty mask.

    Source: docs/reference.md, section 11; RITM / SAM protocol (arXiv 2304.02643, section 7.1).
    """
    return innermost_pixel(mask)


def next_click(truth: np.ndarray, prediction: np.ndarray) -> tuple[int, int, bool] | None:
    """Click in the largest error of a prediction, as in interactive segmentation.

    Of the false negatives and the false positives, the one whose largest inscribed circle
    is larger receives the click at the centre of that circle (false negatives on a tie).

    Args:
        truth: the wanted mask, bool [h, w].
        prediction: the current mask, bool [h, w].

    Returns:
        (x, y, is_positive), or None if the prediction is exact.

    Source: RITM (arXiv 2102.06583), as in SAM's appendix.
    """
    missed = distance_inside(truth & ~prediction)
    extra = distance_inside(prediction & ~truth)
    if missed.max() == 0 and extra.max() == 0:
        return None
    is_positive = bool(missed.max() >= extra.max())
    distance = missed if is_positive else extra
    y, x = np.unravel_index(int(np.argmax(distance)), distance.shape)
    return int(x), int(y), is_positive


def click_boxes(
    clicks_xy: np.ndarray, canvas_hw: tuple[int, int], side_px: float = CLICK_BOX_PX
) -> np.ndarray:
    """Turns integer clicks into the tiny boxes that the model takes.

    The box is centred exactly on (x, y), without half a pixel, as in the original.

    Args:
        clicks_xy: [n, 2] pixels of the canvas.
        canvas_hw: size of the padded canvas.
        side_px: side of the box in pixels.

    Returns:
        float32 [n, 4] cxcywh, fractions of the canvas.
    """
    height, width = canvas_hw
    clicks = np.asarray(clicks_xy, np.float64).reshape(-1, 2)
    side = np.full((len(clicks), 2), side_px)
    scale = np.asarray([width, height, width, height], np.float64)
    return (np.concatenate([clicks, side], axis=1) / scale).astype(np.float32)
