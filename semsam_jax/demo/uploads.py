"""Decodes and checks uploaded images."""

import dataclasses
import io
import struct
import warnings
import zlib

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from semsam_jax.core.errors import DataError
from semsam_jax.demo.limits import HTTPError, Limits, too_many_bytes
from semsam_jax.inference.images import FORMATS, load_image
from semsam_jax.inference.visualize import display_size

WORK_SIDE = 1280
_DRAFT_FORMATS = ("JPEG", "MPO")  # MPO: what some phones write, read by the JPEG reader
_ROTATED = (5, 6, 7, 8)
_ORIENTATION_TAG = 0x0112
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
)


@dataclasses.dataclass(frozen=True)
class Upload:
    """An image as displayed.

    Attributes:
        pixels: RGB, reduced to the side that was asked for; the pixels of every click.
        original_hw: size of the file's image; the pixels of every download.
    """

    pixels: UInt8[np.ndarray, "h w 3"]
    original_hw: tuple[int, int]


def read_upload(content: bytes, limits: Limits, side: int | None = WORK_SIDE) -> Upload:
    """Decodes an image; its header is checked before any pixel is.

    Args:
        content: the file.
        limits: of its size.
        side: the long side is reduced to this; None keeps all pixels.

    Raises:
        HTTPError: not an image, broken, or larger than the limits.
    """
    if not content:
        raise HTTPError(400, "The file is empty. Choose an image.")
    if len(content) > limits.upload_bytes:
        raise HTTPError(413, too_many_bytes(limits))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                width, height = _check_size(image.size, limits)
                is_turned = image.getexif().get(_ORIENTATION_TAG) in _ROTATED
                is_jpeg = image.format in _DRAFT_FORMATS
                if side is not None and is_jpeg:
                    # A large JPEG is decoded at a half or a quarter; nothing else is needed here.
                    image.draft(None, (side, side))
                pixels = load_image(image)
                # Not from the header: the reader of TIFF has turned that size already.
                original_hw = (int(pixels.shape[0]), int(pixels.shape[1]))
                if is_jpeg:
                    original_hw = (width, height) if is_turned else (height, width)
                pixels = pixels if side is None else display_size(pixels, side)
    except Image.DecompressionBombError as error:
        raise HTTPError(
            413,
            f"The image has more than {limits.pixels // 10**6} million pixels. Use a smaller copy.",
        ) from error
    except DataError as error:
        raise HTTPError(415, f"This image cannot be used: {error}") from error
    except _DECODER_ERRORS as error:
        raise HTTPError(
            415,
            "This is not a complete JPEG, PNG, WebP, BMP, TIFF or GIF image. "
            "Save it as JPEG and try again.",
        ) from error
    return Upload(np.ascontiguousarray(pixels), original_hw)


def _check_size(size: tuple[int, int], limits: Limits) -> tuple[int, int]:
    width, height = size
    if width * height > limits.pixels:
        raise HTTPError(
            413,
            f"The image has {width}x{height} pixels, more than {limits.pixels // 10**6} million. "
            f"Use a smaller copy.",
        )
    if max(size) > limits.side or max(size) > limits.aspect * min(size):
        raise HTTPError(
            413,
            f"The image is {width}x{height} pixels; its sides may be at most {limits.side} pixels "
            f"and differ by at most {limits.aspect:g} times. Cut a piece out of it.",
        )
    return size
