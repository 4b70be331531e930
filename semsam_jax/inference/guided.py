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

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

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
        self._canvas = canvas.astype(np.float32) / 255
        scale = min(1.0, MAX_SIDE / max(frame.image_hw))
        self._fine_hw = tuple(max(1, round(side * scale)) for side in frame.image_hw)
        fine = image
        if scale < 1:
            fine = cv2.resize(image, self._fine_hw[::-1], interpolation=cv2.INTER_AREA)
        self._fine = fine.astype(np.float32) / 255
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
            slopes[..., _CHANNELS] += detail * (p - _box(_box(p, radius), radius))
        fine = cv2.resize(slopes, self._fine_hw[::-1], interpolation=cv2.INTER_LINEAR)
        return np.einsum("hwc,hwc->hw", fine[..., :_CHANNELS], self._fine) + fine[..., _CHANNELS]

    def _slopes(self, p: Float[np.ndarray, "h w"], radius: int) -> Float[np.ndarray, "h w 4"]:
        """(a, b) of every canvas pixel, averaged over its windows."""
        mean, inverse = self._window_statistics(radius)
        moments = _box(np.concatenate([self._canvas * p[..., None], p[..., None]], -1), radius)
        mean_p = moments[..., _CHANNELS]
        covariance = moments[..., :_CHANNELS] - mean * mean_p[..., None]
        a = np.einsum("hwij,hwj->hwi", inverse, covariance)
        b = mean_p - np.einsum("hwi,hwi->hw", a, mean)
        return _box(np.concatenate([a, b[..., None]], -1), radius)

    def _window_statistics(self, radius: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean colour, and inverse of the covariance of colours plus eps, of every window."""
        if radius not in self._statistics:
            colours = self._canvas
            mean = _box(colours, radius)
            products = (colours[..., :, None] * colours[..., None, :]).reshape(
                *colours.shape[:2], _CHANNELS**2
            )
            # OpenCV filters at most four channels at a time.
            second = np.concatenate(
                [_box(products[..., i : i + 3], radius) for i in range(0, _CHANNELS**2, 3)], -1
            ).reshape(*colours.shape[:2], _CHANNELS, _CHANNELS)
            covariance = second - mean[..., :, None] * mean[..., None, :]
            inverse = np.linalg.inv(covariance.astype(np.float64) + EPS * np.eye(_CHANNELS))
            self._statistics[radius] = mean, inverse.astype(np.float32)
        return self._statistics[radius]


def _box(values: Float[np.ndarray, "h w *c"], radius: int) -> Float[np.ndarray, "h w *c"]:
    """Mean over a square window; the border is mirrored."""
    side = 2 * radius + 1
    return cv2.boxFilter(
        np.ascontiguousarray(values), -1, (side, side), borderType=cv2.BORDER_REFLECT
    )
