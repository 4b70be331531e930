"""Builds downloads of the chosen masks in memory, at the size of the image."""

import dataclasses
import io
import json
import re
import zipfile
from collections.abc import Callable, Sequence

import cv2
import numpy as np
from PIL import Image

from semsam_jax.demo.limits import HTTPError, Limits
from semsam_jax.demo.sessions import ImageSession
from semsam_jax.inference import visualize
from semsam_jax.inference.convert_results import (
    record_caption,
    record_class,
    record_classes,
    record_mask,
    record_name,
    record_score,
    scale_record,
    to_coco,
    to_label_map,
    to_labelme,
    to_yolo,
)

_JSON, _ZIP, _PNG = "application/json", "application/zip", "image/png"
_IN_TURN = ("coco", "labelme", "yolo")  # the others have a label map, made of all masks at once
_MAX_LABEL_MAP = 65535
_NOT_IN_NAMES = r'[\x00-\x1f\x7f/\\:*?"<>|\ud800-\udfff]'


@dataclasses.dataclass(frozen=True)
class ChosenMask:
    """A mask of a download.

    Attributes:
        number: its number in the session.
        name: given by the visitor, "object" or "object / part"; empty for none; None keeps the
            model's.
        colour: of the mask on the page; None for one of `distinct_colours`.
    """

    number: int
    name: str | None = None
    colour: visualize.RGB | None = None


def make_download(
    session: ImageSession, kind: str, masks: Sequence[ChosenMask], file_name: str, limits: Limits
) -> tuple[str, str, bytes]:
    """Returns name, media type and content of a file; its name starts like the image's.

    Args:
        session: the image and its masks.
        kind: `coco`, `labelme`, `yolo`, `masks` (PNG files in a zip), `panoptic` or `overlay`.
        masks: the chosen masks with their names.
        file_name: of the image, on the visitor's machine.
        limits: see `Limits`.
    """
    if kind not in _KINDS:
        raise HTTPError(400, f"There is no download called {kind[:20]!r}.")
    records = [
        _named(record, one.name)
        for record, one in zip(session.recall([m.number for m in masks]), masks, strict=True)
    ]
    if not records:
        raise HTTPError(400, "There are no masks yet. Click on something first.")
    # Tools find the image by its name: what a name of a file can hold stays.
    image = re.sub(_NOT_IN_NAMES, "_", file_name) or "image.jpg"
    # Headers are ASCII; the name inside the files keeps its letters.
    stem = re.sub("[^ -~]|[%;]", "_", image.rpartition(".")[0] or image).lstrip(".")
    stem = stem or "image"
    ending, media_type, make = _KINDS[kind]
    if kind == "overlay":
        return stem + ending, media_type, _overlay(session, records, [one.colour for one in masks])
    height, width = session.upload.original_hw
    most = limits.most_masks((height, width), is_in_turn=kind in _IN_TURN)
    if len(records) > most:
        raise HTTPError(
            413,
            f"{len(records)} masks of an image this large are too many for this file, at most "
            f"{most}: keep fewer, or open a smaller copy of the image.",
        )
    scaled = [scale_record(record, height, width) for record in records]
    return stem + ending, media_type, make(scaled, image, height, width)


def _named(record: dict, name: str | None) -> dict:
    if name is None:
        return record
    rest = {key: value for key, value in record.items() if key not in ("object", "part")}
    found, slash, part = (text.strip() for text in name.partition(" / "))
    kinds = {"object": found} | ({"part": part} if slash else {})
    return rest | {key: {"name": text} for key, text in kinds.items() if text}


def _coco(records: list[dict], image: str, height: int, width: int) -> bytes:
    return _dump(to_coco(records, image, height, width))


def _labelme(records: list[dict], image: str, height: int, width: int) -> bytes:
    return _dump(to_labelme(records, image, height, width))


def _yolo(records: list[dict], image: str, height: int, width: int) -> bytes:
    """A label file and the list of classes, as in a folder for training."""
    classes = record_classes(records)
    stem = image.rpartition(".")[0] or image
    lines = "".join(f"  {number}: {json.dumps(name)}\n" for number, name in enumerate(classes))
    return _archive(
        {
            f"labels/{stem}.txt": to_yolo(records, height, width, classes).encode(),
            "data.yaml": f"names:\n{lines}".encode(),
        }
    )


def _panoptic(records: list[dict], image: str, height: int, width: int) -> bytes:
    """COCO panoptic: a PNG with the id of a segment at each pixel, and the segments."""
    numbers = to_label_map(records, height, width)
    categories: dict[str, int] = {}
    things: set[str] = set()
    segments = []
    for number, record in enumerate(records, start=1):
        rows, columns = np.nonzero(numbers == number)
        if not len(rows):
            continue  # hidden below smaller ones
        x, y = int(columns.min()), int(rows.min())
        name = record_class(record)
        if record.get("is_thing", True):
            things.add(name)
        segments.append(
            {
                "id": number,
                "category_id": categories.setdefault(name, len(categories) + 1),
                "area": len(rows),
                "bbox": [x, y, int(columns.max()) - x + 1, int(rows.max()) - y + 1],
                "iscrowd": 0,
                "score": record_score(record),
            }
        )
    stem = image.rpartition(".")[0] or image
    about = {"id": 1, "file_name": image, "height": height, "width": width}
    content = {
        "images": [about],
        "annotations": [{"image_id": 1, "file_name": f"{stem}.png", "segments_info": segments}],
        "categories": [
            {
                "id": i,
                "name": name,
                "supercategory": name.partition(":")[0],
                "isthing": int(name in things),
            }
            for name, i in categories.items()
        ],
    }
    colours = np.stack([numbers >> shift & 255 for shift in (0, 8, 16)], -1).astype(np.uint8)
    return _archive({f"{stem}.png": png(colours), "panoptic.json": _dump(content)})


def _masks(records: list[dict], image: str, height: int, width: int) -> bytes:
    del image
    files = {}
    for i, record in enumerate(records, start=1):
        words = re.sub(r"\W+", "-", record_name(record) or "").strip("-")[:40]
        level = f"_level{record['level']}" if record.get("level") else ""
        name = f"mask_{i:03d}{level}{'_' + words if words else ''}.png"
        files[name] = png(record_mask(record).astype(np.uint8) * 255)
    label_map = to_label_map(records, height, width)
    assert label_map.max() <= _MAX_LABEL_MAP
    files["label_map.png"] = png(label_map.astype(np.uint16))
    return _archive(files)


def _overlay(
    session: ImageSession, records: list[dict], wanted: Sequence[visualize.RGB | None]
) -> bytes:
    image = session.upload.pixels
    masks = [record_mask(record) for record in records]
    own = visualize.distinct_colours(len(masks))
    colours = [colour or other for colour, other in zip(wanted, own, strict=True)]
    picture = visualize.overlay_masks(image, masks, colours)
    texts = [record_caption(record) for record in records]
    return png(visualize.write_labels(picture, masks, texts, colours))


def png(picture: np.ndarray) -> bytes:
    """A PNG file, packed quickly."""
    if picture.ndim == 2:
        # OpenCV writes large grey pictures several times faster.
        return cv2.imencode(".png", picture, [cv2.IMWRITE_PNG_COMPRESSION, 3])[1].tobytes()
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def _dump(content: dict) -> bytes:
    return json.dumps(content, allow_nan=False).encode()


def _archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


_KINDS: dict[str, tuple[str, str, Callable[[list[dict], str, int, int], bytes]]] = {
    "coco": ("_coco.json", _JSON, _coco),
    "labelme": (".json", _JSON, _labelme),  # LabelMe finds a file by the stem of its image
    "yolo": ("_yolo.zip", _ZIP, _yolo),
    "masks": ("_masks.zip", _ZIP, _masks),
    "panoptic": ("_panoptic.zip", _ZIP, _panoptic),
    "overlay": ("_overlay.png", _PNG, _masks),
}
