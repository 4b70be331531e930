"""Builds downloads of the chosen masks in memory, at the size of the image."""

import io
import json
import re
import zipfile
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image

from semsam_jax.demo.limits import HTTPError, Limits
from semsam_jax.demo.sessions import ImageSession
from semsam_jax.inference import visualize
from semsam_jax.inference.convert_results import (
    record_mask,
    record_name,
    scale_record,
    to_coco,
    to_label_map,
    to_labelme,
)

_TYPES = {
    "coco": ("masks.json", "application/json"),
    "labelme": ("labelme.json", "application/json"),
    "masks": ("masks.zip", "application/zip"),
    "overlay": ("overlay.png", "image/png"),
}
_MAX_LABEL_MAP = 65535


def make_download(
    session: ImageSession, kind: str, numbers: Sequence[int], file_name: str, limits: Limits
) -> tuple[str, str, bytes]:
    """Returns name, media type and content of a file.

    Args:
        session: the image and its masks.
        kind: `coco`, `labelme`, `masks` (PNG files in a zip) or `overlay`.
        numbers: of the masks.
        file_name: how the visitor calls the image; only written into the JSON files.
        limits: see `Limits`.
    """
    if kind not in _TYPES:
        raise HTTPError(400, f"There is no download called {kind[:20]!r}.")
    records = session.recall(numbers)
    if not records:
        raise HTTPError(400, "There are no masks yet. Click on something first.")
    if kind == "overlay":
        return *_TYPES[kind], _overlay(session, records)
    height, width = session.upload.original_hw
    if height * width * len(records) > limits.download_pixels:
        most = max(1, limits.download_pixels // (height * width))
        raise HTTPError(
            413, f"At most {most} masks of an image this large can be downloaded at once."
        )
    scaled = [scale_record(record, height, width) for record in records]
    name = re.sub(r"[^\w.\- ]", "_", file_name)[-80:] or "image.jpg"
    if kind == "masks":
        return *_TYPES[kind], _zip(scaled, height, width)
    make = to_coco if kind == "coco" else to_labelme
    return *_TYPES[kind], json.dumps(make(scaled, name, height, width), allow_nan=False).encode()


def _overlay(session: ImageSession, records: list[dict]) -> bytes:
    image = session.upload.pixels
    masks = [record_mask(record) for record in records]
    colours = visualize.distinct_colours(len(masks))
    picture = visualize.overlay_masks(image, masks, colours)
    texts = [record_name(record) or "" for record in records]
    return _png(visualize.write_labels(picture, masks, texts, colours))


def _zip(records: list[dict], height: int, width: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for i, record in enumerate(records, start=1):
            words = re.sub(r"\W+", "-", record_name(record) or "").strip("-")[:40]
            level = f"_level{record['level']}" if record.get("level") else ""
            name = f"mask_{i:03d}{level}{'_' + words if words else ''}.png"
            archive.writestr(name, _png(record_mask(record).astype(np.uint8) * 255))
        label_map = to_label_map(records, height, width)
        assert label_map.max() <= _MAX_LABEL_MAP
        archive.writestr("label_map.png", _png(label_map.astype(np.uint16)))
    return buffer.getvalue()


def _png(picture: np.ndarray) -> bytes:
    if picture.ndim == 2:
        # OpenCV writes large grey pictures several times faster.
        return cv2.imencode(".png", picture, [cv2.IMWRITE_PNG_COMPRESSION, 3])[1].tobytes()
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()
