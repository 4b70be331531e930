"""Decodes images to RGB pixels in the frame of their annotations, at reduced scale if possible.

That frame is the one of the stored pixels, or of the displayed image, with its EXIF orientation
applied (`RawExample.is_displayed`). Pillow decodes because, unlike OpenCV, it refuses a truncated
file; OpenCV resizes.
"""

import contextlib
import dataclasses
import io
import re
from collections.abc import Iterator

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from data_pipelines.transforms.geometry import Placement
from semsam_jax.core.errors import DataError

MAX_PIXELS = 178_956_970
"""Maximum number of pixels (Pillow's limit): a file of 27 kB can hold more."""

_FORMATS = ("JPEG", "PNG")
_DARK = 1 << 13  # 10- and 12-bit cameras store values below this in files of 16 bits
_NEAR = 0.75  # remaining scale from which two neighbours are enough
_ORIENTATION_TAG = 0x0112
_PNG_START, _PNG_TEXT = b"\x89PNG\r\n\x1a\n", (b"eXIf", b"XML:com.adobe.xmp", b"Raw profile type")
# What follows the entropy-coded data of a JPEG: a marker that is neither stuffing nor a restart.
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


@dataclasses.dataclass(frozen=True)
class Header:
    """Header of an image file.

    Attributes:
        height, width: of the stored pixels.
        orientation: EXIF orientation 1..8; 1 if there is none.
    """

    height: int
    width: int
    orientation: int

    def size_hw(self, is_displayed: bool) -> tuple[int, int]:
        """Rows and columns of the stored or of the displayed image."""
        turned = is_displayed and self.orientation > 4
        return (self.width, self.height) if turned else (self.height, self.width)


def read_header(data: bytes, where: str = "") -> Header:
    """Reads size and orientation of an encoded image without decoding it.

    Raises:
        DataError: not a JPEG or PNG, or of too many pixels.
    """
    with _opened(data, where) as image:
        return Header(image.height, image.width, _orientation(image, data))


def decode_image(
    data: bytes,
    *,
    where: str,
    size_hw: tuple[int, int] | None = None,
    is_displayed: bool | None = None,
    reduction: int = 1,
) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes JPEG or PNG bytes to RGB.

    Args:
        data: encoded image.
        where: dataset and example id for messages.
        size_hw: height and width that the annotations were made for; checked.
        is_displayed: apply the EXIF orientation; None does so only where the stored pixels do not
            have the wanted size and the displayed image has.
        reduction: 1, 2, 4 or 8; a JPEG is decoded at this fraction of its size (rounded
            up), which costs a fraction of the time. Other formats are decoded at full size.

    Returns:
        The pixels; grey is repeated, CMYK converted, palettes looked up, what is transparent
        becomes white, as in inference.

    Raises:
        DataError: not a JPEG or PNG, truncated, too large, or of another size.
    """
    with _opened(data, where) as image:
        orientation = _check_size(image, data, where, size_hw, is_displayed)
        if reduction > 1:
            image.draft(None, (image.width // reduction, image.height // reduction))
        return _turned(_to_rgb(image), orientation)


def check_header(
    data: bytes, *, where: str, size_hw: tuple[int, int], is_displayed: bool | None = None
) -> None:
    """Checks format, size and completeness of an encoded image without decoding it.

    Bytes after the end of the image are ignored (the video of a phone's motion photo).

    Raises:
        DataError: not a JPEG or PNG, of another size, damaged or truncated.
    """
    with _opened(data, where) as image:
        _check_size(image, data, where, size_hw, is_displayed)
        if image.format == "PNG":
            image.verify()  # the checksums of all chunks, up to the last
            return
    if not _has_end(data):
        raise DataError(f"{where}: the image is cut short, its end mark is missing.")


def is_dark(data: bytes, *, where: str) -> bool:
    """Whether a PNG of 16 bits is almost black at 8 bits, since all its values are below 2**13.

    Decodes images of 16 bits only.

    Raises:
        DataError: such an image is damaged.
    """
    if not data.startswith(_PNG_START) or data[24:25] != b"\x10":  # its bits per value
        return False
    with _opened(data, where) as image:
        return int(_to_rgb(image).max()) < _DARK >> 8


def place_image(
    data: bytes, placement: Placement, *, where: str, is_displayed: bool | None = None
) -> UInt8[np.ndarray, "canvas canvas 3"]:
    """Decodes an image and draws it on a zeroed canvas according to `placement`."""
    height, width = placement.height, placement.width
    scale = max(placement.scale)
    reduction = next((r for r in (8, 4, 2) if scale * r <= 1), 1)
    pixels = decode_image(
        data,
        where=where,
        size_hw=(height, width),
        is_displayed=is_displayed,
        reduction=reduction,
    )
    rows, columns = placement.size_hw
    if scale > 1:
        cut = _enlarged_cut(pixels, placement)
    else:
        # A reduced JPEG is rounded up to whole pixels, so it covers a little more than the image.
        factor = reduction if pixels.shape[:2] != (height, width) else 1
        scale_y, scale_x = placement.scale
        size = (
            round(pixels.shape[1] * factor * scale_x),
            round(pixels.shape[0] * factor * scale_y),
        )
        # Area averaging costs five times as much and makes no difference near full size.
        is_near = scale * factor >= _NEAR
        shrunk = cv2.resize(
            pixels, size, interpolation=cv2.INTER_LINEAR if is_near else cv2.INTER_AREA
        )
        x = placement.offset_x
        if placement.flip:
            x = placement.scaled_w - placement.offset_x - columns
        y = placement.offset_y
        cut = shrunk[y : y + rows, x : x + columns]
        if placement.flip:
            cut = cut[:, ::-1]
    canvas = np.zeros((placement.canvas, placement.canvas, 3), np.uint8)
    canvas[:rows, :columns] = cut
    return canvas


def _enlarged_cut(pixels: np.ndarray, placement: Placement) -> np.ndarray:
    """Bilinear enlargement of the visible part only, so that the cost depends on the canvas."""
    rows, columns = placement.size_hw
    scale_y, scale_x = placement.scale
    matrix = np.array(
        [
            [1 / scale_x, 0, (placement.offset_x + 0.5) / scale_x - 0.5],
            [0, 1 / scale_y, (placement.offset_y + 0.5) / scale_y - 0.5],
        ]
    )
    if placement.flip:
        matrix[0] = -matrix[0]
        matrix[0, 2] += placement.width - 1
    return cv2.warpAffine(
        pixels,
        matrix,
        (columns, rows),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )


@contextlib.contextmanager
def _opened(data: bytes, where: str) -> Iterator[Image.Image]:
    """Opens an image; any error of its decoder becomes a DataError."""
    prefix = f"{where}: " if where else ""
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(_too_large(prefix, f"{image.width}x{image.height}"))
            yield image
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(_too_large(prefix, str(error).partition(",")[0])) from error
    # Decoders of damaged files raise struct.error, zlib.error, SyntaxError, IndexError ...
    except Exception as error:
        detail = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            detail = f"it begins with {bytes(data[:12])!r}" if data else "the file is empty"
        raise DataError(
            f"{prefix}the image cannot be decoded ({detail}); got {len(data)} bytes, not a "
            "readable image; expected a whole JPEG or PNG. Replace or remove the file and rebuild "
            "the index."
        ) from error


def _too_large(prefix: str, size: str) -> str:
    return (
        f"{prefix}the image has too many pixels ({size}), expected at most "
        f"{MAX_PIXELS // 10**6} million; use a smaller copy of it"
    )


def _orientation(image: Image.Image, data: bytes) -> int:
    """EXIF orientation; 1 if the EXIF data cannot be read."""
    # Pillow decodes a whole PNG to look for EXIF behind its pixels.
    if image.format == "PNG" and not any(mark in data for mark in _PNG_TEXT):
        return 1
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # damaged EXIF can raise any error; viewers ignore it
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _check_size(
    image: Image.Image,
    data: bytes,
    where: str,
    size_hw: tuple[int, int] | None,
    is_displayed: bool | None,
) -> int:
    """The EXIF orientation to apply, so that the image has the wanted size."""
    stored = image.height, image.width
    wanted = None if size_hw is None else tuple(size_hw)
    if is_displayed is False or (is_displayed is None and wanted in (None, stored)):
        orientation = 1
    else:
        orientation = _orientation(image, data)
    size = Header(*stored, orientation).size_hw(True)
    if wanted is not None and size != wanted:
        raise DataError(
            f"{where}: the image is {size[0]}x{size[1]} but its annotations are for "
            f"{wanted[0]}x{wanted[1]} (height x width); they must be of the same file."
        )
    return orientation


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Applies an EXIF orientation."""
    if orientation > 4:
        pixels = pixels.swapaxes(0, 1)  # 5; the others are this and a flip
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _has_end(data: bytes) -> bool:
    """Whether the end marker of the JPEG itself is there, not that of a thumbnail or appended
    image.
    """
    at = 2
    while True:
        found = _NEXT_MARKER.search(data, at)
        if found is None:
            return False
        kind, at = data[found.end() - 1], found.end()
        if kind == 0xD9:
            return True
        if kind != 0x01:
            at += int.from_bytes(data[at : at + 2], "big")


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion would clip
        grey = np.clip(np.asarray(image) >> 8, 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
    if image.has_transparency_data:
        above = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", above.size, "white"), above)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
