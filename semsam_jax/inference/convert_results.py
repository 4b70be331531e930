"""Results in the formats of other tools: COCO, LabelMe, label maps, `supervision`.

All functions take the records that `segment`, `auto` and `MaskGenerator` give: mappings with
`segmentation` (COCO RLE or a boolean mask) and, if known, `object`, `part`, `score`,
`predicted_iou` and `level`.
"""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from jaxtyping import Bool, Int

from semsam_jax.core import rle
from semsam_jax.core.errors import DataError
from semsam_jax.inference.outlines import Polygon, joined_polygon, mask_polygons

if TYPE_CHECKING:
    import supervision

Record = Mapping[str, object]

UNNAMED = "thing"
_LARGEST = 1e300
_log = logging.getLogger(__name__)


def record_mask(record: Record) -> Bool[np.ndarray, "h w"]:
    """Mask of a record, whatever its `output_mode` was."""
    segmentation = record.get("segmentation") if isinstance(record, Mapping) else None
    if isinstance(segmentation, np.ndarray) and segmentation.ndim == 2 and segmentation.size:
        return np.ma.filled(segmentation, 0).astype(bool)
    if isinstance(segmentation, Mapping):
        return rle.decode(segmentation)
    got = type(record if segmentation is None else segmentation).__name__
    raise DataError(
        f"record: got a segmentation of type {got}; expected COCO RLE or a boolean mask [h, w]."
    )


def record_name(record: Record) -> str | None:
    """`object`, `part`, `object / part`, or None if no name is sure."""
    return " / ".join(_names(record)) or None


def record_class(record: Record) -> str:
    """`object`, or `object:part` as in PACO, so that a file with it is training data; `thing` if no
    name is sure.
    """
    return ":".join(_names(record)) or UNNAMED


def record_classes(records: Sequence[Record]) -> list[str]:
    """The different classes of records in order of appearance, as files number them."""
    return list(dict.fromkeys(record_class(record) for record in checked_records(records)))


def record_caption(record: Record) -> str:
    """The sure names with their scores, for a picture; empty if there is none."""
    texts = []
    for name in _sure(record):
        score = f" {_number(name, 'score', 0):.2f}" if "score" in name else ""
        texts.append(f"{name['name']}{score}")
    return " / ".join(texts)


def checked_records(records: object) -> Sequence[Record]:
    """Returns a list of records.

    Raises:
        DataError: it is no list, or an entry is no mapping.
    """
    if isinstance(records, str | bytes | Mapping) or not isinstance(records, Sequence):
        raise DataError(
            f"records: got {type(records).__name__}; expected a list of records, such as "
            f"MaskGenerator.generate and Segments.records give."
        )
    for record in records:
        if not isinstance(record, Mapping):
            raise DataError(
                f"records: an entry is {type(record).__name__}; expected a mapping with "
                f"segmentation, score, ..."
            )
    return records


def _number(record: Record, key: str, default: object) -> float:
    value = record.get(key, default)
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not is_number or not -_LARGEST < value < _LARGEST:
        raise DataError(f"record: {key} is {str(value)[:60]!r}; expected a finite number.")
    return float(value)


def record_score(record: Record) -> float:
    """Score of a record; 1 if it has none."""
    return _number(record, "score", record.get("predicted_iou", 1.0))


def scale_record(record: Record, height: int, width: int) -> dict:
    """A record rescaled to a copy of the image of another size; its mask is COCO RLE.

    Clicks and boxes are scaled too; masks are interpolated and thresholded at one half.
    """
    mask = record_mask(record)
    new = dict(record)
    fx, fy = width / mask.shape[1], height / mask.shape[0]
    if mask.shape != (height, width):
        grey = mask.astype(np.uint8) * 255
        mask = cv2.resize(grey, (width, height), interpolation=cv2.INTER_LINEAR) >= 128
    new |= {
        "segmentation": rle.encode(mask),
        "bbox": rle.box_xywh(mask),
        "area": int(mask.sum()),
    }
    if record.get("point_coords"):
        new["point_coords"] = [[x * fx, y * fy] for x, y in record["point_coords"]]
    for key in ("box", "crop_box", "predicted_box_xyxy"):
        values = record.get(key)
        if values:
            new[key] = [v * (fx, fy)[i % 2] for i, v in enumerate(values)]
    return new


def to_coco(
    records: Sequence[Record], file_name: str | os.PathLike, height: int, width: int
) -> dict:
    """COCO data set of one image: `images`, `annotations`, `categories`; see `to_coco_dataset`."""
    return to_coco_dataset([(records, file_name, height, width)])


def to_coco_dataset(
    results: Iterable[tuple[Sequence[Record], str | os.PathLike, int, int]],
) -> dict:
    """COCO data set of several images, each given as (records, file name, height, width).

    A category is an object, or `object:part` as in PACO, so that the file is training data
    (configs/finetune.py); records without a name are `thing`.
    """
    numbers: dict[str, int] = {}
    images, annotations = [], []
    for records, file_name, height, width in results:
        about = {"file_name": _file_name(file_name), "height": height, "width": width}
        images.append({"id": len(images) + 1, **about})
        for record in checked_records(records):
            mask = record_mask(record)
            _check_size(mask, height, width)
            name = record_class(record)
            annotation = {
                "id": len(annotations) + 1,
                "image_id": len(images),
                "category_id": numbers.setdefault(name, len(numbers) + 1),
                "segmentation": rle.encode(mask),
                "bbox": rle.box_xywh(mask),
                "area": int(mask.sum()),
                "iscrowd": 0,
                "score": record_score(record),
            }
            annotations.append(annotation | _extras(record))
    return {
        "info": {"description": "made by semsam_jax"},
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": number, "name": name, "supercategory": name.split(":")[0]}
            for name, number in numbers.items()
        ],
    }


def to_labelme(
    records: Sequence[Record], file_name: str | os.PathLike, height: int, width: int
) -> dict:
    """LabelMe file of one image; each piece of a mask is a polygon, pieces share a group.

    Labels are the categories of `to_coco_dataset`.

    Polygons run along the edges of pixels (`outlines.mask_polygons`). Holes are lost: LabelMe's
    polygons have none. Empty masks have no polygon; a warning counts them.
    """
    shapes = []
    empty = []
    file_name = _file_name(file_name)
    for group, record in enumerate(checked_records(records), start=1):
        mask = record_mask(record)
        _check_size(mask, height, width)
        polygons = mask_polygons(mask)
        if not polygons:
            empty.append(group)
        for polygon in polygons:
            shapes.append(
                {
                    "label": record_class(record),
                    "points": polygon,
                    "group_id": group,
                    "shape_type": "polygon",
                    "flags": {},
                    "description": f"score {record_score(record):.3f}",
                }
            )
    if empty:
        _log.warning("%s: %d masks are empty and have no polygon: %s", file_name, len(empty), empty)
    return {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": file_name,
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }


def to_label_map(records: Sequence[Record], height: int, width: int) -> Int[np.ndarray, "h w"]:
    """Number of the record (from 1) at every pixel, 0 for none; small masks lie on top."""
    masks = [record_mask(record) for record in checked_records(records)]
    label_map = np.zeros((height, width), np.int32)
    for i in sorted(range(len(masks)), key=lambda i: -int(masks[i].sum())):
        _check_size(masks[i], height, width)
        label_map[masks[i]] = i + 1
    return label_map


def to_polygons(records: Sequence[Record]) -> list[list[Polygon]]:
    """For each record the outer outlines of its pieces, (x, y) pixels, large pieces first.

    Holes are filled, so that polygons of masks without overlap may overlap; `to_yolo` keeps holes.
    """
    return [mask_polygons(record_mask(record)) for record in checked_records(records)]


def to_yolo(
    records: Sequence[Record],
    height: int,
    width: int,
    class_names: Sequence[str] | None = None,
) -> str:
    """Lines of a YOLO segmentation label file: a class, then x y of one polygon in 0..1.

    The outlines of the pieces and the holes of a mask are joined by bridges of zero width, because
    a line holds one polygon. Empty masks have no line.

    Args:
        records: the masks.
        height: of the image, pixels.
        width: of the image, pixels.
        class_names: the classes in their order, the same for all images of a data set; None
            numbers those of this image as `record_classes` lists them.

    Raises:
        DataError: a record has a name that is not among the classes.
    """
    names = [record_class(record) for record in checked_records(records)]
    is_list = isinstance(class_names, Sequence) and not isinstance(class_names, str | bytes)
    if class_names is not None and not is_list:
        raise DataError(f"yolo: got {type(class_names).__name__}; expected a list of class names.")
    if is_list and not all(isinstance(name, str) for name in class_names):
        raise DataError("yolo: a class name is no text; expected a list of class names.")
    classes = list(dict.fromkeys(names)) if class_names is None else list(class_names)
    lines = []
    for record, name in zip(records, names, strict=True):
        mask = record_mask(record)
        _check_size(mask, height, width)
        if name not in classes:
            raise DataError(
                f"yolo: {name!r} is not among the {len(classes)} class names; add it, or leave "
                f"its masks out."
            )
        polygon = joined_polygon(mask)
        if polygon:
            points = np.array(polygon) / [width, height]
            numbers = " ".join(f"{value:.6g}" for value in points.ravel())
            lines.append(f"{classes.index(name)} {numbers}")
    return "\n".join(lines) + "\n" * bool(lines)


def to_supervision(records: Sequence[Record]) -> "supervision.Detections":
    """`supervision.Detections` with masks, boxes, scores, `class_name` and `level`.

    The name is that of `record_class`. Masks stay run-length encoded (`supervision.CompactMask`)
    where supervision has it, from 0.28 on: hundreds of masks of a large image then take kilobytes
    instead of gigabytes.

    Raises:
        DataError: the package `supervision` is not installed.
    """
    try:
        import supervision
    except ImportError as error:
        raise DataError(
            "supervision: this package is not installed; run `pip install supervision`."
        ) from error
    if not checked_records(records):
        return supervision.Detections.empty()
    corners, packed = [], []
    for record in records:
        mask = record_mask(record)
        x, y, w, h = rle.box_xywh(mask)
        corners.append([x, y, x + w, y + h])
        packed.append(rle.encode(mask))
    xyxy = np.array(corners, np.float32)
    if len({tuple(one["size"]) for one in packed}) > 1:
        raise DataError("supervision: the masks have different sizes; expected one image.")
    if hasattr(supervision, "CompactMask"):
        inclusive = np.maximum(xyxy - [0, 0, 1, 1], 0).astype(np.float32)
        size = tuple(packed[0]["size"])
        masks = supervision.CompactMask.from_coco_rle(packed, inclusive, size)
    else:
        masks = np.stack([rle.decode(one) for one in packed])
    names = [record_class(record) for record in records]
    numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return supervision.Detections(
        xyxy=xyxy,
        mask=masks,
        confidence=np.array([record_score(record) for record in records], np.float32),
        class_id=np.array([numbers[name] for name in names]),
        data={
            "class_name": np.array(names),
            "level": np.array([int(_number(record, "level", 0)) for record in records]),
        },
    )


def _file_name(name: str | os.PathLike) -> str:
    if not isinstance(name, str | os.PathLike):
        raise DataError(f"file_name: got {type(name).__name__}; expected a name or a path.")
    return name if isinstance(name, str) else Path(name).as_posix()


def _sure(record: Record) -> list[Mapping]:
    """The names of a record that the model is sure of: object, part."""
    found = [record.get(kind) for kind in ("object", "part")]
    named = [n for n in found if isinstance(n, Mapping) and isinstance(n.get("name"), str)]
    return [name for name in named if name["name"] and name.get("is_sure", True)]


def _names(record: Record) -> list[str]:
    return [name["name"] for name in _sure(record)]


def _extras(record: Record) -> dict:
    keys = ("level", "object", "part", "point_coords", "point_labels", "box", "is_thing")
    plain = (str, int, float, bool, list, Mapping)
    values = {key: record.get(key) for key in keys}
    return {key: v for key, v in values.items() if isinstance(v, plain) and v not in ([], {})}


def _check_size(mask: np.ndarray, height: int, width: int) -> None:
    if mask.shape != (height, width):
        raise DataError(
            f"record: its mask is {mask.shape[1]}x{mask.shape[0]} pixels, the image "
            f"{width}x{height}; use `scale_record`."
        )
