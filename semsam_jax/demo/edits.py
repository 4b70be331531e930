"""Masks as pictures that the page edits, and masks that it sends back."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from semsam_jax.core import rle
from semsam_jax.demo.limits import HTTPError, Limits
from semsam_jax.demo.pictures import mask_entry, png_url
from semsam_jax.demo.service import decode_image
from semsam_jax.demo.sessions import ImageSession
from semsam_jax.inference.convert_results import record_mask

_BROKEN = "This mask is not a complete PNG picture."


def mask_pictures(session: ImageSession, numbers: Sequence[int]) -> list[dict]:
    """Each mask as a greyscale PNG of 0 and 255, at the size of the view."""
    records = session.recall(numbers)
    return [
        {"number": number, "picture": png_url(record_mask(record).astype(np.uint8) * 255)}
        for number, record in zip(numbers, records, strict=True)
    ]


def store_edit(
    session: ImageSession, picture: str, level: int | None, score: float, limits: Limits
) -> dict:
    """Keeps a mask that was edited by hand; returns its entry for the page.

    Args:
        session: the image.
        picture: PNG as a data URL, at the size of the view; pixels brighter than half are inside.
        level: of the mask that was changed.
        score: of the mask that was changed.
        limits: see `Limits`.
    """
    height, width = session.upload.pixels.shape[:2]
    try:
        with Image.open(io.BytesIO(decode_image(picture)), formats=("PNG",)) as image:
            if image.size != (width, height):
                raise HTTPError(400, f"The mask is {image.size}; expected {(width, height)}.")
            mask = np.asarray(image.convert("L")) >= 128
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise HTTPError(400, _BROKEN) from error
    record = {
        "segmentation": rle.encode(mask),
        "bbox": rle.box_xywh(mask),
        "area": int(mask.sum()),
        "score": min(1.0, max(-1.0, score)),
        "level": level,
        "is_edited": True,
    }
    number = session.remember([record], limits.record_bytes)[0]
    return mask_entry(number, record, mask)
