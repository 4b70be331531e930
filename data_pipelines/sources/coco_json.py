"""COCO-style annotation files as flat arrays, shared by every dataset that ships them.

One file can hold tens of millions of annotations. Kept as Python dictionaries it would not fit
beside the readers of the other datasets, so boxes, classes and links become arrays sorted by
photo, and each outline stays a short piece of JSON text until its photo is read.
"""

import array
import dataclasses
import json
import pathlib
from collections.abc import Mapping

import numpy as np

from data_pipelines.index.strings import StringCollector, StringTable
from data_pipelines.sources.base import ExampleBuilder, to_rle
from data_pipelines.sources.json_stream import read_elements
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
        outlines: JSON text of each segmentation, in the file's order; empty where there is none.
        outline_at: int64 [a] place of an annotation's outline in `outlines`. Both are empty if
            outlines were not asked for.
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
    outline_at: np.ndarray
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
    photos, notes, names = _Photos(), _Notes(with_outlines), {}

    def add_class(category: dict) -> None:
        names[int(category["id"])] = _category_name(category)

    wanted = {"images": photos.add, "annotations": notes.add, "categories": add_class}
    try:
        read_elements(path, dataset, wanted)
        order = sorted(range(len(photos.ids)), key=photos.ids.__getitem__)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{dataset}: {path}: an image or category record is damaged "
            f"({type(error).__name__}: {error}); wanted ids of one type in each"
        ) from error
    place = {photos.ids[number]: position for position, number in enumerate(order)}
    if len(place) != len(order):
        raise DataError(f"{dataset}: {path}: image ids repeat; wanted one record for each photo")
    owners = np.fromiter((place.get(i, -1) for i in notes.image_ids), np.int64)
    num_orphans = int((owners < 0).sum())
    by_photo = np.argsort(owners, kind="stable")[num_orphans:]
    # Only views of the columns: what is sorted is copied once.
    columns = {name: np.asarray(column)[by_photo] for name, column in notes.columns.items()}
    names_in_file = StringTable.of(photos.names)
    return CocoTable(
        path=path,
        image_ids=StringTable.of(str(photos.ids[number]) for number in order),
        file_names=StringTable.of(names_in_file[number] for number in order),
        heights=np.array(photos.heights, np.int32)[order],
        widths=np.array(photos.widths, np.int32)[order],
        starts=np.searchsorted(owners[by_photo], np.arange(len(order) + 1)),
        ids=columns["ids"],
        categories=columns["categories"],
        boxes=np.asarray(notes.boxes).reshape(-1, 4)[by_photo],
        is_crowd=columns["is_crowd"].astype(np.bool_),
        is_pseudo=columns["is_pseudo"].astype(np.bool_),
        links=columns["links"],
        outlines=notes.outlines.table(),
        outline_at=by_photo if with_outlines else by_photo[:0],
        category_names=names,
        num_orphans=num_orphans,
    )


class _Photos:
    """The file's images, in its order."""

    def __init__(self):
        self.ids: list[int | str] = []
        self.names: list[str] = []
        self.heights, self.widths = array.array("i"), array.array("i")

    def add(self, image: dict) -> None:
        self.ids.append(image["id"])
        self.names.append(str(image.get("file_name") or ""))
        self.heights.append(int(image.get("height") or 0))
        self.widths.append(int(image.get("width") or 0))


class _Notes:
    """The file's annotations, in its order: a few numbers each, and the text of the outline."""

    def __init__(self, with_outlines: bool):
        self.image_ids: list[int | str] | array.array = array.array("q")
        self.columns = {name: array.array("q") for name in ("ids", "categories", "links")}
        self.columns |= {name: array.array("b") for name in ("is_crowd", "is_pseudo")}
        self.boxes = array.array("d")
        self.outlines = StringCollector()
        self._with_outlines = with_outlines

    def add(self, row: dict) -> None:
        image_id = row.get("image_id", -1)
        if not isinstance(image_id, int) and isinstance(self.image_ids, array.array):
            self.image_ids = list(self.image_ids)  # ids may be texts, which take more room
        self.image_ids.append(image_id)
        self.columns["ids"].append(_number(row, "id"))
        self.columns["categories"].append(_number(row, "category_id"))
        self.columns["links"].append(_number(row, "obj_ann_id"))
        self.columns["is_crowd"].append(bool(row.get("iscrowd", 0)))
        self.columns["is_pseudo"].append(bool(row.get("is_pseudo", 0)))
        self.boxes.extend(_box(row))
        if self._with_outlines:
            self.outlines.add(_outline(row))


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
    outline = table.outlines[int(table.outline_at[row])]
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
