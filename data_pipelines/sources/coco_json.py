"""COCO-style annotation files as flat arrays, shared by every dataset that ships them.

One parsed file can hold tens of millions of annotations. Kept as Python dictionaries it would
not fit beside the readers of the other datasets, so boxes, classes and links become arrays
sorted by photo, and each outline stays a short piece of JSON text until its photo is read.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping

import numpy as np

from data_pipelines.index.strings import StringTable
from data_pipelines.sources.base import ExampleBuilder, read_json, to_rle
from semsam_jax.core.errors import DataError


@dataclasses.dataclass(frozen=True)
class ClassLabel:
    """What a native category means in the union vocabulary (-1 none)."""

    object_id: int
    part_id: int = -1
    is_thing: bool = True


@dataclasses.dataclass(frozen=True)
class CocoTable:
    """One annotation file, photos in order of their id.

    Attributes:
        path: the file, for messages.
        image_ids: native ids of the n photos, as text.
        file_names: as the file states them; empty where missing.
        heights, widths: int32 [n] pixels, 0 where missing.
        starts: int64 [n + 1]; annotations starts[i]:starts[i + 1] belong to photo i.
        ids: int64 [a] native annotation ids.
        categories: int64 [a] native category ids, -1 where missing.
        boxes: float64 [a, 4] x, y, width, height in pixels; NaN where missing.
        is_crowd: bool [a].
        is_pseudo: bool [a], from an optional key `is_pseudo` of an annotation.
        links: int64 [a] id of the whole that a part belongs to (`obj_ann_id`), -1 none.
        outlines: JSON text of each segmentation; empty where there is none.
        category_names: native category id -> name.
        num_orphans: annotations whose photo is not in the file; they are left out.
    """

    path: pathlib.Path
    image_ids: StringTable
    file_names: StringTable
    heights: np.ndarray
    widths: np.ndarray
    starts: np.ndarray
    ids: np.ndarray
    categories: np.ndarray
    boxes: np.ndarray
    is_crowd: np.ndarray
    is_pseudo: np.ndarray
    links: np.ndarray
    outlines: StringTable
    category_names: dict[int, str]
    num_orphans: int


def load_table(path: pathlib.Path, dataset: str, *, with_outlines: bool = True) -> CocoTable:
    """Parses a COCO-style JSON file.

    Args:
        path: the file.
        dataset: for messages.
        with_outlines: keep the segmentations; False for boxes-only data.

    Raises:
        DataError: the file is missing, cut off, or lacks images, annotations or categories.
    """
    content = read_json(path, dataset)
    lacking = [k for k in ("images", "annotations", "categories") if k not in content]
    if lacking:
        raise DataError(
            f"{dataset}: {path} has no {lacking}; found keys {sorted(content)[:12]}; wanted a "
            "COCO-style annotation file"
        )
    try:
        images = sorted(content["images"], key=lambda image: image["id"])
        names = {int(c["id"]): _category_name(c) for c in content["categories"]}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{dataset}: {path}: an image or category record is damaged "
            f"({type(error).__name__}: {error}); wanted ids of one type in each"
        ) from error
    order = {image["id"]: position for position, image in enumerate(images)}
    if len(order) != len(images):
        raise DataError(f"{dataset}: {path}: image ids repeat; wanted one record for each photo")
    owners = np.asarray([order.get(a.get("image_id"), -1) for a in content["annotations"]], int)
    by_photo = np.argsort(owners, kind="stable")[int((owners < 0).sum()) :]
    rows = [content["annotations"][i] for i in by_photo]
    return CocoTable(
        path=path,
        image_ids=StringTable.of(str(image["id"]) for image in images),
        file_names=StringTable.of(str(image.get("file_name") or "") for image in images),
        heights=np.asarray([image.get("height") or 0 for image in images], np.int32),
        widths=np.asarray([image.get("width") or 0 for image in images], np.int32),
        starts=np.searchsorted(owners[by_photo], np.arange(len(images) + 1)),
        ids=np.asarray([_number(row, "id") for row in rows], np.int64),
        categories=np.asarray([_number(row, "category_id") for row in rows], np.int64),
        boxes=np.asarray([_box(row) for row in rows], np.float64).reshape(-1, 4),
        is_crowd=np.asarray([bool(row.get("iscrowd", 0)) for row in rows], np.bool_),
        is_pseudo=np.asarray([bool(row.get("is_pseudo", 0)) for row in rows], np.bool_),
        links=np.asarray([_number(row, "obj_ann_id") for row in rows], np.int64),
        outlines=StringTable.of(_outline(row) if with_outlines else "" for row in rows),
        category_names=names,
        num_orphans=len(content["annotations"]) - len(rows),
    )


def add_annotations(
    builder: ExampleBuilder,
    table: CocoTable,
    position: int,
    labels: Mapping[int, ClassLabel],
    *,
    boxes_only: bool = False,
    pseudo_objects: bool = False,
    pseudo_parts: bool = False,
) -> None:
    """Adds photo `position`'s annotations: wholes in file order, then parts with their parent.

    Crowd regions become `ignored`.

    Raises:
        DataError: an annotation has an unknown category, no box or a damaged outline.
    """
    if table.heights[position] and table.widths[position]:
        builder.expect_size(int(table.heights[position]), int(table.widths[position]))
    rows = range(int(table.starts[position]), int(table.starts[position + 1]))
    for row in rows:
        if int(table.categories[row]) not in labels:
            raise builder.broken(
                f"annotation {table.ids[row]} has category id {table.categories[row]}, which "
                f"{table.path} does not list"
            )
    parent_of: dict[int, int] = {}
    for is_part_pass in (False, True):
        for row in rows:
            label = labels[int(table.categories[row])]
            if (label.part_id >= 0) != is_part_pass:
                continue
            parent = parent_of.get(int(table.links[row]), -1) if is_part_pass else -1
            fields = {
                "object_id": label.object_id,
                "part_id": label.part_id,
                "parent": parent,
                "is_thing": label.is_thing,
                "is_crowd": bool(table.is_crowd[row]),
                "is_pseudo": bool(table.is_pseudo[row])
                or (pseudo_parts if is_part_pass else pseudo_objects),
            }
            added = _add_row(builder, table, row, fields, boxes_only)
            if not is_part_pass and added >= 0 and not table.is_crowd[row]:
                parent_of[int(table.ids[row])] = added


def _add_row(
    builder: ExampleBuilder, table: CocoTable, row: int, fields: dict, boxes_only: bool
) -> int:
    if boxes_only:
        return builder.add_box(table.boxes[row].tolist(), **fields)
    outline = table.outlines[row]
    try:
        rle = to_rle(json.loads(outline or "[]"), builder.height, builder.width)
    except (ValueError, TypeError, KeyError) as error:
        raise builder.broken(f"annotation {table.ids[row]} in {table.path}: {error}") from error
    return builder.add_mask(rle, **fields)


def _category_name(category: Mapping) -> str:
    return str(category.get("name") or f"class {category['id']}")


def _number(row: Mapping, key: str) -> int:
    value = row.get(key)
    return int(value) if isinstance(value, (int, float)) else -1


def _box(row: Mapping) -> list[float]:
    box = row.get("bbox")
    if isinstance(box, list) and len(box) == 4 and all(isinstance(v, (int, float)) for v in box):
        return [float(value) for value in box]
    return [float("nan")] * 4


def _outline(row: Mapping) -> str:
    segmentation = row.get("segmentation")
    return json.dumps(segmentation, separators=(",", ":")) if segmentation else ""
