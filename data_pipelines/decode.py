"""Encoded photo to RGB pixels in the stored frame, at reduced scale where that is enough.

EXIF orientation is not applied: annotations are in the frame of the stored pixels. Pillow
decodes because, unlike OpenCV, it refuses a truncated file; OpenCV resizes.
"""

import io

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from data_pipelines.transforms.geometry import Placement
from semsam_jax.core.errors import DataError

_FORMATS = ("JPEG", "PNG")
_NEAR = 0.75  # remaining scale from which two neighbours are enough


def decode_image(
    data: bytes, *, where: str, size_hw: tuple[int, int] | None = None, reduction: int = 1
) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes JPEG or PNG bytes to RGB.

    Args:
        data: encoded photo.
        where: dataset and example id, for messages.
        size_hw: height and width that the annotations were made for; checked.
        reduction: 1, 2, 4 or 8; a JPEG is decoded at this fraction of its size (rounded
            up), which costs a fraction of the time. Other formats are always whole.

    Returns:
        The pixels; grey is repeated, CMYK converted, palettes looked up, alpha dropped.

    Raises:
        DataError: not a JPEG or PNG, truncated, or of another size.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as photo:
            _check_size(photo, where, size_hw)
            if reduction > 1:
                photo.draft(None, (photo.width // reduction, photo.height // reduction))
            return _to_rgb(photo)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{where}: the photo cannot be decoded ({error}); got {len(data)} bytes, wanted a "
            f"whole JPEG or PNG. Replace or remove the file and rebuild the index."
        ) from error


def check_header(data: bytes, *, where: str, size_hw: tuple[int, int]) -> None:
    """Checks format, size and the end mark of an encoded photo without decoding it.

    Raises:
        DataError: not a JPEG or PNG, of another size, or cut short.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as photo:
            _check_size(photo, where, size_hw)
            ending = b"IEND" if photo.format == "PNG" else b"\xff\xd9"
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{where}: not a readable JPEG or PNG ({error}).") from error
    # Some writers append bytes after the end mark, so it is looked for near the end only.
    if ending not in data[-4096:]:
        raise DataError(f"{where}: the photo is cut short, its end mark is missing.")


def place_image(
    data: bytes, placement: Placement, *, where: str
) -> UInt8[np.ndarray, "canvas canvas 3"]:
    """Decodes a photo and draws it on a zeroed canvas as `placement` says."""
    height, width = placement.height, placement.width
    scale = max(placement.scale)
    reduction = next((r for r in (8, 4, 2) if scale * r <= 1), 1)
    pixels = decode_image(data, where=where, size_hw=(height, width), reduction=reduction)
    rows, columns = placement.size_hw
    if scale > 1:
        cut = _enlarged_cut(pixels, placement)
    else:
        # A reduced JPEG is rounded up to whole pixels, so it covers a little more than the photo.
        factor = reduction if pixels.shape[:2] != (height, width) else 1
        scale_y, scale_x = placement.scale
        size = (
            round(pixels.shape[1] * factor * scale_x),
            round(pixels.shape[0] * factor * scale_y),
        )
        # Area averaging costs five times as much; near full size nothing is left to average.
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
    """Bilinear enlargement of only the part that is seen: cost follows the canvas."""
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


def _check_size(photo: Image.Image, where: str, size_hw: tuple[int, int] | None) -> None:
    if size_hw is not None and (photo.height, photo.width) != tuple(size_hw):
        raise DataError(
            f"{where}: the photo is {photo.height}x{photo.width} but its annotations are for "
            f"{size_hw[0]}x{size_hw[1]} (height x width); they must be of the same file."
        )


def _to_rgb(photo: Image.Image) -> np.ndarray:
    if photo.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion would clip
        grey = np.clip(np.asarray(photo).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
    if photo.mode in ("P", "PA", "LA", "RGBA"):
        return np.ascontiguousarray(np.asarray(photo.convert("RGBA"))[..., :3])
    return np.asarray(photo if photo.mode == "RGB" else photo.convert("RGB"))
