"""Results in the formats of other tools: COCO, LabelMe, label maps, `supervision`.

All functions take the records that `segment`, `auto` and `MaskGenerator` give: mappings with
`segmentation` (COCO RLE or a boolean mask) and, if known, `object`, `part`, `score`,
`predicted_iou` and `level`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np
from jaxtyping import Bool, Int

from semsam_jax.core.errors import DataError
from semsam_jax.inference.files import box_xywh, decode_rle, encode_rle

if TYPE_CHECKING:
    import supervision

Record = Mapping[str, object]

_UNNAMED = "thing"
_MIN_POLYGON_POINTS = 3
_POLYGON_TOLERANCE_PX = 0.75


def record_mask(record: Record) -> Bool[np.ndarray, "h w"]:
    """Mask of a record, whatever its `output_mode` was."""
    segmentation = record["segmentation"]
    if isinstance(segmentation, np.ndarray):
        return segmentation.astype(bool)
    if isinstance(segmentation, Mapping) and isinstance(segmentation.get("counts"), str):
        return decode_rle(dict(segmentation))
    if isinstance(segmentation, Mapping) and isinstance(segmentation.get("counts"), list):
        runs = np.asarray(segmentation["counts"], np.int64)
        flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
        return flat.reshape(segmentation["size"], order="F")
    raise DataError(
        f"record: got a segmentation of type {type(segmentation).__name__}; wanted COCO RLE "
        f"or a boolean mask."
    )


def record_name(record: Record) -> str | None:
    """`object`, `object / part` or None, as the record says."""
    return " / ".join(_names(record)) or None


def record_score(record: Record) -> float:
    """Score of a record; 1 if it has none."""
    return float(record.get("score", record.get("predicted_iou", 1.0)))


def scale_record(record: Record, height: int, width: int) -> dict:
    """The record for a copy of the image of another size, with COCO RLE.

    Clicks and boxes are scaled along; a mask is interpolated and cut at one half.
    """
    mask = record_mask(record)
    new = dict(record)
    fx, fy = width / mask.shape[1], height / mask.shape[0]
    if mask.shape != (height, width):
        grey = mask.astype(np.uint8) * 255
        mask = cv2.resize(grey, (width, height), interpolation=cv2.INTER_LINEAR) >= 128
    new |= {
        "segmentation": encode_rle(mask),
        "bbox": box_xywh(mask),
        "area": int(mask.sum()),
    }
    if record.get("point_coords"):
        new["point_coords"] = [[x * fx, y * fy] for x, y in record["point_coords"]]
    for key in ("box", "crop_box", "predicted_box_xyxy"):
        values = record.get(key)
        if values:
            new[key] = [v * (fx, fy)[i % 2] for i, v in enumerate(values)]
    return new


def to_coco(records: Sequence[Record], file_name: str, height: int, width: int) -> dict:
    """COCO data set of one image: `images`, `annotations`, `categories`; see `to_coco_dataset`."""
    return to_coco_dataset([(records, file_name, height, width)])


def to_coco_dataset(results: Iterable[tuple[Sequence[Record], str, int, int]]) -> dict:
    """COCO data set of several images, each given as (records, file name, height, width).

    A category is an object, or `object:part` as in PACO, so that the file is training data
    (configs/finetune.py); records without a name are `thing`.
    """
    numbers: dict[str, int] = {}
    images, annotations = [], []
    for records, file_name, height, width in results:
        about = {"file_name": file_name, "height": height, "width": width}
        images.append({"id": len(images) + 1, **about})
        for record in records:
            mask = record_mask(record)
            _check_size(mask, height, width)
            name = ":".join(_names(record)) or _UNNAMED
            annotation = {
                "id": len(annotations) + 1,
                "image_id": len(images),
                "category_id": numbers.setdefault(name, len(numbers) + 1),
                "segmentation": encode_rle(mask),
                "bbox": box_xywh(mask),
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


def to_labelme(records: Sequence[Record], file_name: str, height: int, width: int) -> dict:
    """LabelMe file of one image; each piece of a mask is a polygon, pieces share a group.

    Holes are lost: LabelMe's polygons have none.
    """
    shapes = []
    for group, record in enumerate(records, start=1):
        mask = record_mask(record)
        _check_size(mask, height, width)
        for polygon in mask_polygons(mask):
            shapes.append(
                {
                    "label": record_name(record) or _UNNAMED,
                    "points": polygon,
                    "group_id": group,
                    "shape_type": "polygon",
                    "flags": {},
                    "description": f"score {record_score(record):.3f}",
                }
            )
    return {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": file_name,
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }


def mask_polygons(mask: Bool[np.ndarray, "h w"]) -> list[list[list[float]]]:
    """Outer outlines of the pieces of a mask, in pixels, large pieces first."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    polygons = []
    for contour in sorted(contours, key=lambda c: -cv2.contourArea(c)):
        points = cv2.approxPolyDP(contour, _POLYGON_TOLERANCE_PX, True)[:, 0]
        if len(points) >= _MIN_POLYGON_POINTS:
            polygons.append((points + 0.5).astype(float).tolist())
    return polygons


def to_label_map(records: Sequence[Record], height: int, width: int) -> Int[np.ndarray, "h w"]:
    """Number of the record (from 1) at every pixel, 0 for none; small masks lie on top."""
    masks = [record_mask(record) for record in records]
    label_map = np.zeros((height, width), np.int32)
    for i in sorted(range(len(masks)), key=lambda i: -int(masks[i].sum())):
        _check_size(masks[i], height, width)
        label_map[masks[i]] = i + 1
    return label_map


def to_supervision(records: Sequence[Record]) -> "supervision.Detections":
    """`supervision.Detections` with masks, boxes, scores, `class_name` and `level`.

    Raises:
        DataError: the package `supervision` is not installed.
    """
    try:
        import supervision
    except ImportError as error:
        raise DataError(
            "supervision: this package is not installed; run `pip install supervision`."
        ) from error
    if not records:
        return supervision.Detections.empty()
    masks = np.stack([record_mask(record) for record in records])
    names = [record_name(record) or _UNNAMED for record in records]
    numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
    corners = np.array([box_xywh(mask) for mask in masks], np.float32)
    corners[:, 2:] += corners[:, :2]
    return supervision.Detections(
        xyxy=corners,
        mask=masks,
        confidence=np.array([record_score(record) for record in records], np.float32),
        class_id=np.array([numbers[name] for name in names]),
        data={
            "class_name": np.array(names),
            "level": np.array([int(record.get("level") or 0) for record in records]),
        },
    )


def _names(record: Record) -> list[str]:
    found = [record.get(kind) for kind in ("object", "part")]
    return [str(name["name"]) for name in found if isinstance(name, Mapping) and name["name"]]


def _extras(record: Record) -> dict:
    keys = ("level", "object", "part", "point_coords", "point_labels", "box", "is_thing")
    return {key: record[key] for key in keys if record.get(key) not in (None, [], {})}


def _check_size(mask: np.ndarray, height: int, width: int) -> None:
    if mask.shape != (height, width):
        raise DataError(
            f"record: its mask is {mask.shape[1]}x{mask.shape[0]} pixels, the image "
            f"{width}x{height}; use `scale_record`."
        )
