"""Placement of an image on the canvas: flip, scale and crop as one value.

Pixels, masks, boxes and clicks are all transformed by a `Placement`, so that they agree. Scale and
crop policies follow docs/reference.md, section 12.
"""

import dataclasses
import math
import typing

import numpy as np


@dataclasses.dataclass(frozen=True)
class Augment:
    """A policy of random placements.

    Attributes:
        flip: probability of a horizontal flip.
        min_scale, max_scale: image's fitted size relative to the canvas, drawn uniformly.
        side: which side of the image that size is ("long" fits inside the canvas).
        num_scales: 0 draws any scale of the range, otherwise one of so many even steps.
        max_long: maximum length of the long side, in canvases.
    """

    flip: float = 0.5
    min_scale: float = 1.0
    max_scale: float = 1.0
    side: typing.Literal["long", "short"] = "long"
    num_scales: int = 0
    max_long: float = math.inf


def ade20k(min_scale: float = 0.5, max_scale: float = 2.0, *, flip: float = 0.5) -> Augment:
    """ADE20k's scale choices: the short side in steps of a tenth of the canvas."""
    num_scales = round((max_scale - min_scale) * 10) + 1
    return Augment(flip, min_scale, max_scale, "short", num_scales, max_long=4.0)


SA1B = Augment(min_scale=0.99, max_scale=1.01)
LSJ = Augment(min_scale=0.1, max_scale=2.0)
ADE20K = ade20k()
AUGMENTS = {"sa1b": SA1B, "ade20k": ADE20K}
"""Policy of a dataset by name; any other dataset gets `LSJ`."""


@dataclasses.dataclass(frozen=True)
class Placement:
    """An image flipped, resized to (scaled_h, scaled_w), then cut at (offset_y, offset_x).

    The cut is placed at the top left of a square canvas; what it does not fill is padding.

    Attributes:
        height, width: stored image, pixels.
        scaled_h, scaled_w: image after resizing, canvas pixels.
        offset_y, offset_x: first row and column of the cut, in canvas pixels of the resized
            (and flipped) image.
        canvas: side of the canvas in pixels.
        flip: whether the image is mirrored before everything else.
    """

    height: int
    width: int
    scaled_h: int
    scaled_w: int
    offset_y: int
    offset_x: int
    canvas: int
    flip: bool = False

    @property
    def size_hw(self) -> tuple[int, int]:
        """Valid rows and columns of the canvas."""
        return (
            min(self.scaled_h - self.offset_y, self.canvas),
            min(self.scaled_w - self.offset_x, self.canvas),
        )

    @property
    def scale(self) -> tuple[float, float]:
        """Canvas pixels per image pixel, (y, x)."""
        return self.scaled_h / self.height, self.scaled_w / self.width

    def source_rows(self) -> np.ndarray:
        """Returns int64 [valid rows]: nearest image row of each canvas row, ascending."""
        centres = np.arange(self.size_hw[0]) + self.offset_y
        return _nearest(centres, self.height, self.scaled_h)

    def source_columns(self) -> np.ndarray:
        """Returns int64 [valid columns] in the flipped image's frame, ascending."""
        centres = np.arange(self.size_hw[1]) + self.offset_x
        return _nearest(centres, self.width, self.scaled_w)

    def move_box(self, box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        """Moves an (x0, y0, x1, y1) box from image to canvas pixels, clipped to the image.

        A box outside is returned with x1 <= x0 or y1 <= y0.
        """
        x0, y0, x1, y1 = box
        if self.flip:
            x0, x1 = self.width - x1, self.width - x0
        scale_y, scale_x = self.scale
        rows, columns = self.size_hw
        return (
            max(x0 * scale_x - self.offset_x, 0.0),
            max(y0 * scale_y - self.offset_y, 0.0),
            min(x1 * scale_x - self.offset_x, float(columns)),
            min(y1 * scale_y - self.offset_y, float(rows)),
        )


def fit_placement(
    height: int,
    width: int,
    canvas: int,
    short_side: int | None = None,
    long_side: int | None = None,
) -> Placement:
    """Whole image, unflipped, long side on the canvas (evaluation; also the fallback).

    Args:
        height: rows of the stored image.
        width: columns of the stored image.
        canvas: side of the canvas, pixels.
        short_side: wanted short side in pixels; the long side still has to fit.
        long_side: maximum length of the long side, by default the canvas.
    """
    scale = min(canvas, long_side or canvas) / max(height, width)
    if short_side is not None:
        scale = min(short_side / min(height, width), scale)
    return _place(height, width, scale, canvas)


def sample_placement(
    rng: np.random.Generator, height: int, width: int, canvas: int, augment: Augment
) -> Placement:
    """Draws flip, scale and crop; the number of draws never depends on the image."""
    flip_draw, scale_draw, y_draw, x_draw = rng.random(4)
    if augment.num_scales > 1:
        step = int(scale_draw * augment.num_scales)
        scale_draw = step / (augment.num_scales - 1)
    relative = augment.min_scale + scale_draw * (augment.max_scale - augment.min_scale)
    side = max(height, width) if augment.side == "long" else min(height, width)
    scale = min(relative / side, augment.max_long / max(height, width)) * canvas
    fitted = _place(height, width, scale, canvas)
    return dataclasses.replace(
        fitted,
        offset_y=round(y_draw * max(fitted.scaled_h - canvas, 0)),
        offset_x=round(x_draw * max(fitted.scaled_w - canvas, 0)),
        flip=bool(flip_draw < augment.flip),
    )


def zoom_placement(
    height: int, width: int, canvas: int, scale: int, centre_yx: tuple[int, int]
) -> Placement:
    """Image enlarged by an integer factor and cropped around a pixel that stays visible."""
    fitted = _place(height, width, float(scale), canvas)
    offset_y = centre_yx[0] * scale + scale // 2 - canvas // 2
    offset_x = centre_yx[1] * scale + scale // 2 - canvas // 2
    return dataclasses.replace(
        fitted,
        offset_y=min(max(offset_y, 0), max(fitted.scaled_h - canvas, 0)),
        offset_x=min(max(offset_x, 0), max(fitted.scaled_w - canvas, 0)),
    )


def _place(height: int, width: int, scale: float, canvas: int) -> Placement:
    scaled_h, scaled_w = max(round(height * scale), 1), max(round(width * scale), 1)
    return Placement(height, width, scaled_h, scaled_w, 0, 0, canvas)


def _nearest(pixels: np.ndarray, source: int, scaled: int) -> np.ndarray:
    """Image index under the centre of each resized pixel, in exact integer arithmetic."""
    return (2 * pixels.astype(np.int64) + 1) * source // (2 * scaled)
