"""The frame of an image: image pixels <-> resized pixels <-> fractions of the padded canvas.

Source: docs/reference.md, sections 5 and 10. Released weights see the image with its short side at
640 and a click as 0.005 of the image's size; models of our own training see the square training
canvas and a click of 6 canvas pixels.
"""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from semsam_jax.core.errors import PromptError

PromptPreset = Literal["default", "released_v1"]
Size = int | Literal["native"] | None

STRIDE = 32
RELEASED_SHORT_SIDE = 640
RELEASED_CLICK_FRACTION = 0.005
OWN_CLICK_PX = 6.0
MAX_ASPECT = 4.0  # longer images get their long side at 4 short sides, or memory has no bound
MAX_CANVAS_SIDE = 4096


@dataclasses.dataclass(frozen=True)
class Frame:
    """Sizes [height, width] of one image on its way to the network.

    Attributes:
        image_hw: the image as displayed; the pixels of every user coordinate.
        resized_hw: the part of the canvas that holds the image.
        canvas_hw: the padded canvas, multiples of 32.
        prompt_preset: how clicks become boxes.
    """

    image_hw: tuple[int, int]
    resized_hw: tuple[int, int]
    canvas_hw: tuple[int, int]
    prompt_preset: PromptPreset

    def to_canvas(self, xy: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
        """Image pixels (x, y) -> fractions of the canvas."""
        image = np.array(self.image_hw[::-1], np.float64)
        resized = np.array(self.resized_hw[::-1], np.float64)
        canvas = np.array(self.canvas_hw[::-1], np.float64)
        return xy / image * (resized / canvas)

    def click_boxes(self, xy: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 4"]:
        """Clicks in image pixels -> cxcywh boxes, float32 fractions of the canvas."""
        resized = np.array(self.resized_hw[::-1], np.float64)
        canvas = np.array(self.canvas_hw[::-1], np.float64)
        if self.prompt_preset == "released_v1":
            size = RELEASED_CLICK_FRACTION * resized / canvas
        else:
            size = OWN_CLICK_PX / canvas
        centre = self.to_canvas(xy)
        return np.concatenate([centre, np.broadcast_to(size, centre.shape)], 1).astype(np.float32)

    def box_prompts(self, xyxy: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 4"]:
        """Boxes x0,y0,x1,y1 in image pixels -> cxcywh, float32 fractions of the canvas."""
        low, high = self.to_canvas(xyxy[:, :2]), self.to_canvas(xyxy[:, 2:])
        return np.concatenate([(low + high) / 2, high - low], 1).astype(np.float32)

    def box_type(self) -> int:
        """Type index of a box prompt; released weights take 0 for clicks and boxes."""
        return 0 if self.prompt_preset == "released_v1" else 1


def make_frame(
    image_hw: tuple[int, int],
    prompt_preset: PromptPreset,
    size: Size = None,
    *,
    image_size: int | None = None,
    pad_to_multiple: int = STRIDE,
) -> Frame:
    """Computes the size at which the network sees an image.

    Args:
        image_hw: height and width of the image, pixels.
        prompt_preset: `released_v1` resizes the short side, `default` the long side into a
            square canvas, the one of training.
        size: that side in pixels; `native` keeps the image and only pads it to 32; None
            means 640 for released weights and `image_size` for other models.
        image_size: training canvas of the checkpoint, pixels.
        pad_to_multiple: pad up to a multiple of this. 32 is exact; a larger multiple of 32
            gives few compiled programs for images of many shapes.

    Raises:
        PromptError: the size is not `native` or 32..4096, or the image is too large for it.
    """
    height, width = image_hw
    if size == "native":
        resized = image_hw
    else:
        if size is None:
            size = RELEASED_SHORT_SIDE if prompt_preset == "released_v1" else image_size or 512
        if not STRIDE <= size <= MAX_CANVAS_SIDE:
            raise PromptError(f"size: got {size}; expected native or {STRIDE}..{MAX_CANVAS_SIDE}.")
        resized = _resized_hw(height, width, int(size), prompt_preset)
    canvas = (_up(resized[0], pad_to_multiple), _up(resized[1], pad_to_multiple))
    if prompt_preset == "default" and size != "native":
        canvas = (_up(int(size), STRIDE),) * 2
    if max(canvas) > MAX_CANVAS_SIDE:
        raise PromptError(
            f"size: the canvas would be {canvas[1]}x{canvas[0]} pixels, at most "
            f"{MAX_CANVAS_SIDE} a side fit; give a smaller size than native."
        )
    return Frame(image_hw, resized, canvas, prompt_preset)


def check_size(size: object) -> None:
    """Raises PromptError unless `size` is None, `native` or a number of pixels that is possible."""
    if size is None or (isinstance(size, str) and size == "native"):
        return
    is_whole = isinstance(size, int | np.integer) and not isinstance(size, bool)
    if not is_whole or not STRIDE <= size <= MAX_CANVAS_SIDE:
        raise PromptError(
            f"size: got {str(size)[:60]}; expected native or {STRIDE}..{MAX_CANVAS_SIDE}."
        )


def fit_image(image: UInt8[np.ndarray, "ph pw 3"], frame: Frame) -> UInt8[np.ndarray, "h w 3"]:
    """Resizes an image (bicubic, uint8) and pads it with zeros to its canvas."""
    height, width = frame.resized_hw
    if frame.resized_hw != frame.image_hw:
        image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
    canvas = np.zeros((*frame.canvas_hw, 3), np.uint8)
    canvas[:height, :width] = image
    return canvas


def _resized_hw(height: int, width: int, size: int, prompt_preset: str) -> tuple[int, int]:
    short, long = sorted((height, width))
    if prompt_preset == "released_v1":
        new = (size, min(int(size * long / short), int(size * MAX_ASPECT)))
        if long > MAX_ASPECT * short:
            new = (max(1, round(new[1] * short / long)), new[1])
    else:
        new = (max(1, round(size * short / long)), size)
    return new if height <= width else new[::-1]


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
