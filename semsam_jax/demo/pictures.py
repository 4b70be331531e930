"""Masks and images in the form that the page receives: numbers, and small PNGs as data URLs."""

import base64
import io
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from semsam_jax.core.distance import innermost_pixel


def picture_answer(
    numbers: Sequence[int],
    records: Sequence[dict],
    masks: Sequence[np.ndarray],
    picture: UInt8[np.ndarray, "h w"],
) -> dict:
    """All masks of an answer as one greyscale picture, with an entry for each.

    Args:
        numbers: of the masks in the session.
        records: of the masks.
        masks: the masks, [h, w] each.
        picture: bits of a pixel, or the number of a segment.
    """
    rows = zip(numbers, records, masks, strict=True)
    return {
        "masks": [mask_entry(number, record, mask) for number, record, mask in rows],
        "picture": png_url(picture),
    }


def mask_entry(number: int, record: dict, mask: Bool[np.ndarray, "h w"]) -> dict:
    """Entry of a mask for the page."""
    return {
        "number": number,
        "score": round(record["score"], 4),
        "area": round(record["area"] / mask.size, 5),
        "level": record.get("level"),
        "granularity": record.get("granularity"),
        "parent": record.get("parent"),
        "depth": record.get("depth"),
        "object": record.get("object"),
        "part": record.get("part"),
        "place": _place(mask),
    }


def png_url(picture: UInt8[np.ndarray, "h w"]) -> str:
    """Greyscale picture as a data URL; lossless."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def jpeg_url(picture: UInt8[np.ndarray, "h w 3"]) -> str:
    """Image as a data URL."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _place(mask: np.ndarray) -> list[float] | None:
    """Innermost point as fractions of width and height, found on a small copy."""
    scale = min(1.0, 256 / max(mask.shape))
    size = (max(1, round(mask.shape[1] * scale)), max(1, round(mask.shape[0] * scale)))
    small = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
    point = innermost_pixel(small)
    if point is None:
        return None
    return [round((point[0] + 0.5) / size[0], 4), round((point[1] + 0.5) / size[1], 4)]
