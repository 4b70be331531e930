"""Loads an image from a path, PIL image or array as uint8 RGB, as displayed."""

import contextlib
import functools
import os
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from semsam_jax.core.errors import DataError

MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 89_478_485)
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"),
    *(suffix for suffix in (".avif",) if suffix in Image.registered_extensions()),
)

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")
"""What Pillow may read. It has many more readers; some of them start other programs."""

ImageLike = str | os.PathLike | Image.Image | np.ndarray

DARK = 1 << 13
"""16-bit images with all values below this, as of 10- and 12-bit cameras, become almost black."""

_LONGEST_PATH = 500
_DECODER_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)


def load_image(image: ImageLike, max_pixels: int | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """Returns an image as uint8 RGB [h, w, 3] the way a viewer displays it.

    EXIF rotation is applied, so pixel coordinates are those of the displayed image.
    Transparency is composited over white, palettes and CMYK are converted, 16-bit
    values keep their high byte (with a warning if none reaches 2**13), an animation
    gives its first frame.

    Args:
        image: a path, a PIL image, or an array: uint8 or uint16 [h, w], [h, w, 1|3|4],
            or floating point in 0..1 of the same shapes.
        max_pixels: a file or PIL image with more is rejected; `MAX_PIXELS` by default.

    Raises:
        DataError: the file is missing, broken, too large, or the array cannot be an image.
    """
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if isinstance(image, Image.Image):
        with _decoder_errors("image"):  # its pixels are read now
            return _from_pil(image, "image", max_pixels)
    if not isinstance(image, str | os.PathLike):
        raise DataError(
            f"image: got {type(image).__name__}; expected a path, a PIL image or a NumPy array."
        )
    return _from_path(Path(image), max_pixels)


def _from_path(path: Path, max_pixels: int | None) -> np.ndarray:
    check_is_file(path)
    with warnings.catch_warnings(), _decoder_errors(_shown(path)):
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(path, formats=FORMATS) as opened:
            return _from_pil(opened, _shown(path), max_pixels)


@contextlib.contextmanager
def _decoder_errors(where: str) -> Iterator[None]:
    """Turns what the decoders of damaged files raise into one DataError."""
    try:
        yield
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(_too_large(where)) from error
    except _DECODER_ERRORS as error:
        detail = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{where}: not a readable image ({detail}); expected a complete JPEG, PNG, WebP, "
            f"BMP, TIFF or GIF file."
        ) from error


def check_is_file(path: Path) -> None:
    """Raises DataError for what is no file: a folder, nothing, or a pipe, which may never end."""
    where = _shown(path)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise DataError(f"{where}: no such file; check the path of the image.") from error
    except OSError as error:
        raise DataError(f"{where}: cannot be read ({error.strerror or error}).") from error
    if stat.S_ISDIR(mode):
        raise DataError(f"{where}: is a folder, expected an image; use `auto` for folders.")
    if not stat.S_ISREG(mode):
        raise DataError(f"{where}: is a device or a pipe, expected an image file.")


def _shown(path: Path) -> str:
    """A path for messages; what is longer than any path is no file name but, say, its content."""
    text = str(path)
    return text if len(text) <= _LONGEST_PATH else f"{text[:60]}..."


def _from_pil(image: Image.Image, where: str, max_pixels: int | None = None) -> np.ndarray:
    if image.width * image.height > (MAX_PIXELS if max_pixels is None else max_pixels):
        raise DataError(_too_large(where))
    if min(image.size) < 1:
        raise DataError(f"{where}: the image has no pixels, size {image.width}x{image.height}.")
    is_deep = ";16" in str(getattr(image, "tile", ""))  # colour; known until the pixels are read
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise DataError(f"{where}: floating-point image; convert it to 8 or 16 bits first.")
    if image.mode.startswith("I"):
        # Pillow widens 16-bit greyscale to mode I; the high byte is the 8-bit image.
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(f"{where}: 32-bit greyscale image; convert it to 8 or 16 bits first.")
        if values.max() < DARK:
            warn_of_dark(where)
        grey = (values >> 8).astype(np.uint8)
        return np.ascontiguousarray(np.repeat(grey[..., None], 3, axis=-1))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    pixels = np.array(image.convert("RGB"))
    if is_deep and pixels.max() < DARK >> 8:
        warn_of_dark(where)
    return pixels


@functools.cache
def warn_of_dark(where: str) -> None:
    """Warns, once per name, of an image of 16 bits that is almost black at 8 bits."""
    warnings.warn(
        f"{where}: an image of 16 bits with all values below {DARK}, which is almost black, since "
        f"the high byte is read; rescale it to the full 16-bit range or to 8 bits.",
        stacklevel=2,
    )


def _from_array(array: np.ndarray) -> np.ndarray:
    shape = "x".join(map(str, array.shape))
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4) or array.size == 0:
        raise DataError(f"image: got an array of shape {shape}; expected [h,w] or [h,w,1|3|4].")
    if array.shape[0] * array.shape[1] > MAX_PIXELS:
        raise DataError(_too_large("image"))
    if array.dtype == np.uint16:
        if array.max() < DARK:
            warn_of_dark("image")
        array = (array >> 8).astype(np.uint8)
    elif np.issubdtype(array.dtype, np.floating):
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise DataError("image: floating-point array with values outside 0..1 or NaN.")
        array = np.rint(array * 255).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise DataError(f"image: got dtype {array.dtype}; expected uint8, uint16 or float in 0..1.")
    if array.shape[-1] == 1:
        array = np.repeat(array, 3, axis=-1)
    if array.shape[-1] == 4:
        return _from_pil(Image.fromarray(array, "RGBA"), "image")
    return np.ascontiguousarray(array)


def _too_large(where: str) -> str:
    return (
        f"{where}: the image has more than {MAX_PIXELS // 10**6} million pixels; "
        f"use a smaller copy."
    )
