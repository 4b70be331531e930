"""COCO-style annotation files as flat arrays, shared by every dataset that ships them.

One file can hold tens of millions of annotations. As Python dictionaries it would not fit into
memory, so boxes, classes and links are stored as arrays sorted by image, and each outline stays
JSON text until its image is read.
"""

import array
import collections
import dataclasses
import json
import pathlib
from collections.abc import Mapping

import numpy as np

from data_pipelines import findings
from data_pipelines.findings import Unused
from data_pipelines.index.strings import StringCollector, StringTable
from data_pipelines.sources.builder import ExampleBuilder
from data_pipelines.sources.json_stream import read_elements
from data_pipelines.sources.values import (
    MISSING,
    IdCodes,
    IdTable,
    clean_text,
    finite,
    flag,
    image_side,
    plain_name,
    short,
)
from semsam_jax.core.errors import DataError


@dataclasses.dataclass(frozen=True)
class ClassLabel:
    """A native category in the union vocabulary (-1 none)."""

    object_id: int
    part_id: int = -1
    is_thing: bool = True


@dataclasses.dataclass(frozen=True)
class CocoTable:
    """One annotation file, images in order of their id.

    Ids (of images, annotations, categories) are codes of `values.IdCodes`, decoded by `id_texts`.

    Attributes:
        path: the file, for messages.
        image_ids: native ids of the n images, as text.
        file_names: as the file states them, backslashes as `/`; empty where missing.
        heights, widths: int32 [n] pixels, 0 where missing, -1 where they are no sizes.
        starts: int64 [n + 1]; annotations starts[i]:starts[i + 1] belong to image i.
        ids: int64 [a] native annotation ids.
        categories: int64 [a] native category ids.
        boxes: float64 [a, 4] x, y, width, height in pixels; NaN where missing.
        is_crowd: int8 [a] 0 or 1, -1 where it is neither.
        is_pseudo: the same, from an optional key `is_pseudo` of an annotation.
        links: int64 [a] id of the whole that a part belongs to (`obj_ann_id`).
        outlines: JSON text of each segmentation, in the file's order; empty where there is none.
        outline_at: int64 [a] place of an annotation's outline in `outlines`. Both are empty if
            outlines were not asked for.
        category_names: native category id -> name.
        id_texts: decodes ids.
        unused: annotations that belong to no image of the file, and images without an id.
        negatives, not_exhaustive: image -> category ids that its annotators looked for and did not
            find, or did not annotate completely (LVIS); only images that state any.
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
    id_texts: IdTable
    unused: tuple[Unused, ...]
    negatives: dict[int, tuple[int, ...]]
    not_exhaustive: dict[int, tuple[int, ...]]


class Categories:
    """Category records of a file: id -> name, each id once."""

    def __init__(self, path: pathlib.Path, dataset: str, codes: IdCodes):
        self.names: dict[int, str] = {}
        self._where = f"{dataset}: {path}"
        self._codes = codes

    def add(self, category: Mapping) -> None:
        """Takes one record.

        Raises:
            DataError: it has no id, or another class has the same one.
        """
        code, name = self._codes.code(category.get("id")), category_name(category)
        if code == MISSING:
            raise DataError(
                f"{self._where}: category {name!r} has id {short(category.get('id'))}; expected a "
                "number or a text"
            )
        other = self.names.setdefault(code, name)
        if other != name:
            raise DataError(
                f"{self._where}: category id {short(category['id'])} is {other!r} and {name!r}; "
                "expected one name for each id: give one of them another id, here and in its "
                "annotations"
            )


def load_table(path: pathlib.Path, dataset: str, *, with_outlines: bool = True) -> CocoTable:
    """Parses a COCO-style JSON file.

    Args:
        path: the file.
        dataset: for messages.
        with_outlines: keep the segmentations; False for boxes-only data.

    Raises:
        DataError: the file is missing, cut off, lacks images, annotations or categories, or an id
            of an image or a category stands for two.
    """
    codes = IdCodes()
    images, notes = _ImageTable(path, dataset, codes), _Notes(codes, with_outlines)
    categories = Categories(path, dataset, codes)
    wanted = {"images": images.add, "annotations": notes.add, "categories": categories.add}
    read_elements(path, dataset, wanted)
    id_texts = codes.table()
    order = id_texts.order(images.ids)
    place = {images.ids[number]: position for position, number in enumerate(order)}
    if len(place) != len(order):
        twice = next(code for code, n in collections.Counter(images.ids).items() if n > 1)
        raise DataError(
            f"{dataset}: {path}: image ids repeat, such as {id_texts.quoted(twice)}; expected one "
            "record for each image"
        )
    owners = np.fromiter((place.get(i, -1) for i in notes.image_ids), np.int64)
    num_orphans = int((owners < 0).sum())
    in_order = np.argsort(owners, kind="stable")
    by_image = in_order[num_orphans:]
    # Only views of the columns, so that sorting copies them once.
    columns = {name: np.asarray(column)[by_image] for name, column in notes.columns.items()}
    names_in_file = StringTable.of(images.names)
    return CocoTable(
        path=path,
        image_ids=StringTable.of(id_texts.text(images.ids[number]) for number in order),
        file_names=StringTable.of(names_in_file[number] for number in order),
        heights=np.array(images.heights, np.int32)[order],
        widths=np.array(images.widths, np.int32)[order],
        starts=np.searchsorted(owners[by_image], np.arange(len(order) + 1)),
        ids=columns["ids"],
        categories=columns["categories"],
        boxes=np.asarray(notes.boxes).reshape(-1, 4)[by_image],
        is_crowd=columns["is_crowd"],
        is_pseudo=columns["is_pseudo"],
        links=columns["links"],
        outlines=notes.outlines.table(),
        outline_at=by_image if with_outlines else by_image[:0],
        category_names=categories.names,
        id_texts=id_texts,
        unused=_file_findings(images, notes, id_texts, in_order[:num_orphans]),
        negatives={place[i]: ids for i, ids in images.negatives.items()},
        not_exhaustive={place[i]: ids for i, ids in images.not_exhaustive.items()},
    )


def _file_findings(
    images: "_ImageTable", notes: "_Notes", id_texts: IdTable, orphans: np.ndarray
) -> tuple[Unused, ...]:
    found = []
    if len(orphans):
        total = len(notes.image_ids)
        named = [
            f"annotation {id_texts.quoted(notes.columns['ids'][number])} of {total} has image_id "
            f"{id_texts.quoted(notes.image_ids[number])}"
            for number in orphans[: findings.NAMED].tolist()
        ]
        found.append(Unused(findings.UNKNOWN_IMAGE, tuple(named), len(orphans)))
    if images.nameless:
        named = tuple(images.nameless[: findings.NAMED])
        found.append(Unused(findings.NO_IMAGE_ID, named, len(images.nameless)))
    return tuple(found)


class _ImageTable:
    """The file's images, in its order."""

    def __init__(self, path: pathlib.Path, dataset: str, codes: IdCodes):
        self.ids = array.array("q")
        self.names: list[str] = []
        self.heights, self.widths = array.array("i"), array.array("i")
        self.nameless: list[str] = []
        self.negatives: dict[int, tuple[int, ...]] = {}
        self.not_exhaustive: dict[int, tuple[int, ...]] = {}
        self._codes, self._where = codes, f"{dataset}: {path}"

    def add(self, image: dict) -> None:
        code, name = self._codes.code(image.get("id")), image.get("file_name")
        if code == MISSING:
            self.nameless.append(short(name))
            return
        self.ids.append(code)
        self.names.append(plain_name(name) if isinstance(name, str) else "")
        self.heights.append(image_side(image.get("height")))
        self.widths.append(image_side(image.get("width")))
        for key, kept in (
            ("neg_category_ids", self.negatives),
            ("not_exhaustive_category_ids", self.not_exhaustive),
        ):
            if image.get(key):
                kept[code] = self._class_list(image, key)

    def _class_list(self, image: dict, key: str) -> tuple[int, ...]:
        """Codes of a list of category ids; what the list says must not get lost."""
        listed = image[key] if isinstance(image[key], list) else [None]
        codes = tuple(self._codes.code(category) for category in listed)
        if MISSING in codes:
            raise DataError(
                f"{self._where}: {key} of image {short(image.get('id'))} is {short(image[key])}; "
                "expected a list of category ids"
            )
        return codes


class _Notes:
    """The file's annotations, in its order: a few numbers each, and the text of the outline."""

    def __init__(self, codes: IdCodes, with_outlines: bool):
        self.image_ids = array.array("q")
        self.columns = {name: array.array("q") for name in ("ids", "categories", "links")}
        self.columns |= {name: array.array("b") for name in ("is_crowd", "is_pseudo")}
        self.boxes = array.array("d")
        self.outlines = StringCollector()
        self._code = codes.code
        self._with_outlines = with_outlines

    def add(self, row: dict) -> None:
        columns, code = self.columns, self._code
        self.image_ids.append(code(row.get("image_id")))
        columns["ids"].append(code(row.get("id")))
        columns["categories"].append(code(row.get("category_id")))
        columns["links"].append(code(row.get("obj_ann_id")))
        columns["is_crowd"].append(_flag(row.get("iscrowd")))
        columns["is_pseudo"].append(_flag(row.get("is_pseudo")))
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
    """Adds image `position`'s annotations: wholes in file order, then parts with their parent.

    A part may belong to a part; it comes after it. Crowd regions become `ignored`.

    Raises:
        DataError: an annotation has an unknown category, no box or a damaged outline.
    """
    height, width = int(table.heights[position]), int(table.widths[position])
    if height < 0 or width < 0:
        raise builder.broken(f"{table.path} states a height or width that is not a size in pixels")
    if height and width:
        builder.expect_size(height, width)
    rows = range(int(table.starts[position]), int(table.starts[position + 1]))
    for row in rows:
        _check_row(builder, table, row, labels)
    ids = collections.Counter(int(table.ids[row]) for row in rows)
    parent_of: dict[int, int] = {}
    is_part = {row: labels[int(table.categories[row])].part_id >= 0 for row in rows}
    wholes = [row for row in rows if not is_part[row]]
    parts = _wholes_first(table, [row for row in rows if is_part[row]])
    for is_part_pass in (False, True):
        for row in parts if is_part_pass else wholes:
            label = labels[int(table.categories[row])]
            code, link, name = int(table.ids[row]), int(table.links[row]), _row_name(table, row)
            parent = parent_of.get(link, -1) if is_part_pass else -1
            if is_part_pass and link != MISSING and parent < 0:
                builder.leave_out(findings.LOST_WHOLE, name)
            is_crowd = bool(table.is_crowd[row])
            fields = {
                "object_id": label.object_id,
                "part_id": label.part_id,
                "parent": parent,
                "is_thing": label.is_thing,
                "is_crowd": is_crowd,
                "is_pseudo": bool(table.is_pseudo[row])
                or (pseudo_parts if is_part_pass else pseudo_objects),
                "name": name,
            }
            added = _add_row(builder, table, row, fields, boxes_only)
            if code != MISSING and ids[code] > 1:
                builder.leave_out(findings.DOUBLED_ID, name)
            elif code != MISSING and added >= 0 and not is_crowd:
                parent_of[code] = added


def _wholes_first(table: CocoTable, rows: list[int]) -> list[int]:
    """Parts, so that none comes before the part that it belongs to; else in their order."""
    ids = {int(table.ids[row]) for row in rows} - {MISSING}
    ordered: list[int] = []
    done: set[int] = set()
    waiting = rows
    while waiting:
        ready = [
            row for row in waiting if (link := int(table.links[row])) not in ids or link in done
        ]
        if not ready:  # links in a circle: nothing comes first
            return ordered + waiting
        ordered += ready
        done |= {int(table.ids[row]) for row in ready}
        known = set(ready)
        waiting = [row for row in waiting if row not in known]
    return ordered


def _check_row(
    builder: ExampleBuilder, table: CocoTable, row: int, labels: Mapping[int, ClassLabel]
) -> None:
    category = int(table.categories[row])
    name = f"annotation {table.id_texts.quoted(int(table.ids[row]))}"
    if category not in labels:
        raise builder.broken(
            f"{name} has category id {table.id_texts.quoted(category)}, which {table.path} does "
            "not list"
        )
    for key, column in (("iscrowd", table.is_crowd), ("is_pseudo", table.is_pseudo)):
        if column[row] < 0:
            raise builder.broken(f"{name} in {table.path}: {key} is neither 0 nor 1")


def _row_name(table: CocoTable, row: int) -> str:
    return (
        f"annotation {table.id_texts.quoted(int(table.ids[row]))} "
        f"({table.category_names[int(table.categories[row])]})"
    )


def _add_row(
    builder: ExampleBuilder, table: CocoTable, row: int, fields: dict, boxes_only: bool
) -> int:
    if boxes_only:
        return builder.add_box(table.boxes[row].tolist(), **fields)
    outline = table.outlines[int(table.outline_at[row])]
    return builder.add_outline(json.loads(outline or "[]"), file=table.path, **fields)


def category_name(category: Mapping) -> str:
    """Name of a category record; one without a name is called by its id."""
    name = category.get("name")
    usable = isinstance(name, (str, int, float)) and not isinstance(name, bool) and name != ""
    return clean_text(name if usable else f"class {category.get('id')}")


def _flag(value: object) -> int:
    found = flag(value)
    return -1 if found is None else int(found)


def _box(row: Mapping) -> list[float]:
    box = row.get("bbox")
    if isinstance(box, list) and len(box) == 4:
        numbers = [finite(value) for value in box]
        if None not in numbers:
            return numbers
    return [float("nan")] * 4


def _outline(row: Mapping) -> str:
    segmentation = row.get("segmentation")
    return json.dumps(segmentation, separators=(",", ":")) if segmentation else ""
