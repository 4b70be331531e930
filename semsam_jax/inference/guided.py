"""Mask logits at stride 4 -> masks whose outlines follow the edges of the image.

A mask of a small network is a blob: four pixels of the canvas, and more of the image, share one
logit. A guided filter takes the probability p of a mask as a locally linear function of the
colours I,

    q = a . I + b,   (a, b) = argmin  sum over a window of (a . I + b - p)^2 + eps |a|^2

with a and b averaged over all windows that hold a pixel. They are computed on the canvas and
enlarged, and the product is taken with the colours of the image, so that fine edges cost little.

Where the image has no edges, q is p smoothed twice, and masks smaller than the window shrink. To
compensate, a share `detail` of the difference between p and p smoothed twice is added to q; 1 keeps
masks of flat images as they are. Clicks do better without it (what has no edge is seldom an
object), boxes with it, because a box says where the object ends.

Source: He, Sun, Tang: Guided image filtering, TPAMI 2013, section 3.4 (colour guide); He, Sun: Fast
guided filter, arXiv 1505.00996.
"""

from collections.abc import Iterable

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from semsam_jax.inference.preprocess import Frame
from semsam_jax.inference.upsample import upsample_masks

RADIUS_CELLS = 2
"""Half width of the window, in cells of the mask logits."""

EPS = 1e-4
SHARPNESS = 4.0
"""p is the sigmoid of the logits times this: the logits themselves are soft over several cells."""

CLICK_DETAIL, BOX_DETAIL = 0.0, 1.0

MAX_SIDE = 1024
"""A larger image is filtered at this long side; the outline is then enlarged."""

_CHANNELS = 3


class GuidedUpsampler:
    """Upsamples masks of one image to its size, along its edges.

    The window, the sharpness and eps were chosen on validation images of 21 sources (docs/lite.md).

    Args:
        image: uint8 [h, w, 3], the image of the frame.
        frame: how it was shown to the network.
    """

    def __init__(self, image: UInt8[np.ndarray, "h w 3"], frame: Frame) -> None:
        self._frame = frame
        rows, columns = frame.resized_hw
        canvas = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA)
        self._canvas = _planes(canvas)
        scale = min(1.0, MAX_SIDE / max(frame.image_hw))
        self._fine_hw = tuple(max(1, round(side * scale)) for side in frame.image_hw)
        fine = image
        if scale < 1:
            fine = cv2.resize(image, self._fine_hw[::-1], interpolation=cv2.INTER_AREA)
        self._fine = _planes(fine)
        self._statistics: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def masks(
        self, logits: Float[np.ndarray, "n low_h low_w"], detail: float = CLICK_DETAIL
    ) -> Bool[np.ndarray, "n h w"]:
        """Masks at the image's size; one that the filter empties is upsampled without it."""
        height, width = self._frame.image_hw
        out = np.empty((len(logits), height, width), bool)
        for low, mask in zip(logits, out, strict=True):
            found = self.probability(low, detail)
            if found.shape != (height, width):
                found = cv2.resize(found, (width, height), interpolation=cv2.INTER_LINEAR)
            mask[:] = found > 0.5
            if not mask.any():
                mask[:] = upsample_masks(low[None], self._frame, (height, width))[0]
        return out

    def probability(
        self, low: Float[np.ndarray, "low_h low_w"], detail: float
    ) -> Float[np.ndarray, "h w"]:
        """The q of one mask, float32, at the image's size or at `MAX_SIDE`."""
        rows, columns = self._frame.resized_hw
        canvas_hw = self._frame.canvas_hw
        wide = cv2.resize(
            np.asarray(low, np.float32), canvas_hw[::-1], interpolation=cv2.INTER_LINEAR
        )
        scaled = np.clip(SHARPNESS * wide[:rows, :columns], -30, 30)
        p = 1 / (1 + np.exp(-scaled))
        radius = max(1, RADIUS_CELLS * canvas_hw[0] // low.shape[0])
        slopes = self._slopes(p, radius)
        if detail:
            slopes[_CHANNELS] += detail * (p - _box(_box(p, radius), radius))
        # Plane by plane: colours beside each other would keep NumPy from adding neighbours at once.
        out = self._enlarged(slopes[_CHANNELS])
        for slope, colour in zip(slopes, self._fine, strict=False):
            term = self._enlarged(slope)
            term *= colour
            out += term
        return out

    def _enlarged(self, plane: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "fine_h fine_w"]:
        return cv2.resize(plane, self._fine_hw[::-1], interpolation=cv2.INTER_LINEAR)

    def _slopes(self, p: Float[np.ndarray, "h w"], radius: int) -> list[np.ndarray]:
        """The three planes of a and the plane of b, each averaged over its windows, [h, w]."""
        mean, inverse = self._window_statistics(radius)
        mean_p = _box(p, radius)
        covariance = [
            _box(colour * p, radius) - m * mean_p
            for colour, m in zip(self._canvas, mean, strict=True)
        ]
        a = [_dot(row, covariance) for row in inverse]
        b = mean_p - _dot(a, mean)
        return [_box(plane, radius) for plane in (*a, b)]

    def _window_statistics(
        self, radius: int
    ) -> tuple[Float[np.ndarray, "c h w"], Float[np.ndarray, "c c h w"]]:
        """Mean colour, and inverse of the covariance of colours plus eps, of every window."""
        if radius not in self._statistics:
            colours = self._canvas
            mean = np.stack([_box(plane, radius) for plane in colours])
            second = np.stack([[_box(x * y, radius) for y in colours] for x in colours])
            covariance = (second - mean[:, None] * mean).transpose(2, 3, 0, 1)
            inverse = np.linalg.inv(covariance.astype(np.float64) + EPS * np.eye(_CHANNELS))
            inverse = np.ascontiguousarray(inverse.transpose(2, 3, 0, 1), np.float32)
            self._statistics[radius] = mean, inverse
        return self._statistics[radius]


def plain_where_better(
    masks: Bool[np.ndarray, "n h w"],
    logits: Float[np.ndarray, "n low_h low_w"],
    frame: Frame,
    points: Float[np.ndarray, "c 2"],
    is_positive: Bool[np.ndarray, " c"],
) -> None:
    """Replaces guided masks that put more clicks on the wrong side than the plain ones.

    Args:
        masks: of one request, at the image's size; changed in place.
        logits: of these masks.
        frame: of the image.
        points: clicks x, y in pixels of the image.
        is_positive: which clicks the object must contain.
    """
    for i in np.flatnonzero(_wrong_clicks(masks, points, is_positive)):
        plain = upsample_masks(logits[i : i + 1], frame, frame.image_hw)
        wrong = [_wrong_clicks(m, points, is_positive)[0] for m in (plain, masks[i : i + 1])]
        if wrong[0] < wrong[1]:
            masks[i] = plain[0]


def _wrong_clicks(
    masks: Bool[np.ndarray, "n h w"],
    points: Float[np.ndarray, "c 2"],
    is_positive: Bool[np.ndarray, " c"],
) -> Int[np.ndarray, " n"]:
    """How many clicks lie on the wrong side of each mask."""
    top = np.array(masks.shape[:0:-1]) - 1
    x, y = np.clip(np.floor(points).astype(int), 0, top).T
    return (masks[:, y, x] != is_positive).sum(1)


def inside_box(
    box: Float[np.ndarray, "4"], margin: float, image_hw: tuple[int, int]
) -> Bool[np.ndarray, "h w"]:
    """Pixels whose centres lie in a box times a margin.

    Args:
        box: x0, y0, x1, y1 in pixels of the image.
        margin: `DecoderConfig.box_margin`, above 0.
        image_hw: height and width of the image.
    """
    (height, width), half = image_hw, 0.5 * margin
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    reach_x, reach_y = half * (box[2] - box[0]), half * (box[3] - box[1])
    columns = np.abs(x - 0.5 * (box[0] + box[2])) <= reach_x
    rows = np.abs(y - 0.5 * (box[1] + box[3])) <= reach_y
    return rows[:, None] & columns


def _planes(image: UInt8[np.ndarray, "h w c"]) -> Float[np.ndarray, "c h w"]:
    """Colours from 0 to 1, one plane each."""
    return np.ascontiguousarray(image.transpose(2, 0, 1), np.float32) / 255


def _dot(left: Iterable[np.ndarray], right: Iterable[np.ndarray]) -> Float[np.ndarray, "h w"]:
    """Sum of the products of planes."""
    terms = (x * y for x, y in zip(left, right, strict=True))
    out = next(terms)
    for term in terms:
        out += term
    return out


def _box(values: Float[np.ndarray, "h w"], radius: int) -> Float[np.ndarray, "h w"]:
    """Mean over a square window; the border is mirrored."""
    side = 2 * radius + 1
    return cv2.boxFilter(values, -1, (side, side), borderType=cv2.BORDER_REFLECT)
