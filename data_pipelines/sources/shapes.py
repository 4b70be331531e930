"""Custom datasets with a label file per image: YOLO segments and LabelMe shapes.

YOLO: `labels/NAME.txt` with lines `class x y x y ...` in fractions of the displayed image, and
class names in `data.yaml`. LabelMe: `NAME.json` next to `NAME.jpg`, whose shapes carry names. A
class `whole:part` names a part of a whole. LabelMe's `group_id` joins the pieces of one object and
links parts to their whole.
"""

import abc
import base64
import binascii
import io
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines import findings
from data_pipelines.decode import MAX_PIXELS
from data_pipelines.findings import Unused
from data_pipelines.index.strings import StringTable
from data_pipelines.schema import RawExample
from data_pipelines.sources.base import Source, read_json
from data_pipelines.sources.builder import ExampleBuilder
from data_pipelines.sources.coco_folder import (
    check_own_name,
    split_names,
    unknown_error,
    unknown_names,
)
from data_pipelines.sources.image_files import IMAGE_SUFFIXES
from data_pipelines.sources.layouts import (
    LABELME,
    YOLO,
    Layout,
    find_layout,
    labelme_files,
    layout_error,
)
from data_pipelines.sources.values import (
    clean_text,
    finite,
    image_side,
    parse_int,
    plain_name,
    short,
)
from data_pipelines.sources.yolo_splits import labels_of_folder, labels_of_list, stated_names
from data_pipelines.vocabulary import Vocabulary
from semsam_jax.core.errors import DataError
from semsam_jax.core.rle import encode_mask

_FAR_OUTSIDE = 2.0
"""Fractions beyond this are no outline that leaves the image a little: they are pixels."""

_OUTLINED = ("polygon", "rotation")
"""Kinds of shapes whose points are an outline; X-AnyLabeling calls turned rectangles rotations."""


class _ShapeFolder(Source):
    """Common part: one label file per image, classes by name."""

    kind = ""
    revision = 2
    is_displayed = True

    def __init__(
        self,
        root: str | os.PathLike,
        split: str,
        vocabulary: Vocabulary,
        *,
        dataset: str,
        boxes_only: bool = False,
    ):
        check_own_name(dataset)
        super().__init__(dataset, root, split, vocabulary, boxes_only=boxes_only)
        self.has_masks = not boxes_only
        layout = find_layout(self.root, split)
        if layout is None or layout.kind != self.kind:
            raise layout_error(dataset, self.root, split)
        self._images: list[pathlib.Path] = []
        self._find(layout)
        places = dict.fromkeys([*layout.folders, *(image.parent for image in self._images)])
        self.annotation_files = (*places, *((layout.file,) if layout.file else ()))
        # Of one folder, ids are relative to it; of several and of lists, to the dataset's.
        is_one = len(layout.folders) == 1 and layout.folders[0].is_dir()
        base = layout.folders[0] if is_one else self.root
        paths = (pathlib.Path(os.path.relpath(path, base)) for path in self._images)
        self.example_ids = StringTable.of(path.with_suffix("").as_posix() for path in paths)

    @abc.abstractmethod
    def _find(self, layout: Layout) -> None:
        """Lists the images."""

    def _labels(self, name: str) -> dict[str, int | bool]:
        """Class fields of an instance named `whole` or `whole:part`."""
        above, _, part = name.partition(":")
        object_id = self.vocabulary.object_index(self.dataset, above)
        part_id = self.vocabulary.part_index(self.dataset, part) if part else -1
        pseudo = self._is_pseudo("parts" if part else "objects")
        return {"object_id": object_id, "part_id": part_id, "is_pseudo": pseudo}

    def _add(
        self, builder: ExampleBuilder, points: Any, name: str, what: str, parent: int = -1
    ) -> int:
        """Adds a polygon [x, y, ...] in pixels, or its box."""
        fields = {**self._labels(name), "parent": parent, "name": what}
        if not self.has_masks:
            xy = np.array(points, np.float64).reshape(-1, 2)
            (x0, y0), (x1, y1) = xy.min(axis=0), xy.max(axis=0)
            return builder.add_box((x0, y0, x1 - x0, y1 - y0), **fields)
        return builder.add_outline([points], **fields)


class YoloFolder(_ShapeFolder):
    """Reader of YOLO's segmentation format; see the top of this file.

    Args:
        root: the folder with `data.yaml`.
        split: `train`, `val` or another name.
        vocabulary: must hold the classes under the name `dataset`.
        dataset: the user's name for the set.
        boxes_only: every annotation is its box.
    """

    kind = YOLO

    def _find(self, layout: Layout) -> None:
        self._names = yolo_names(layout)
        found: dict[pathlib.Path, pathlib.Path] = {}  # image -> label file
        alone: list[str] = []
        for place in layout.folders:
            if place.is_dir():
                found |= labels_of_folder(place, alone)
            else:
                found |= labels_of_list(place, layout.file)
        self._images, self._label_files = list(found), list(found.values())
        if len(set(self._label_files)) != len(found):
            raise DataError(
                f"{self.dataset}: {layout.folders[0]} has images of one name with different "
                "endings; expected one image for each label file"
            )
        if alone:
            named = tuple(alone[: findings.NAMED])
            self.unused = (Unused(findings.NO_IMAGE_FILE, named, len(alone)),)

    def _files(self, position: int) -> tuple[pathlib.Path, ...]:
        return self._images[position], self._label_files[position]

    def _read(self, position: int) -> RawExample:
        builder = ExampleBuilder(self, position, self._images[position])
        file = self._label_files[position]
        lines = file.read_text(encoding="utf-8-sig").splitlines() if file.is_file() else []
        for number, line in enumerate(lines, start=1):
            if line.split():
                self._add_line(builder, line.split(), f"line {number} of {file.name}")
        return builder.build()

    def _add_line(self, builder: ExampleBuilder, words: list[str], what: str) -> None:
        category, numbers = parse_int(words[0]), [finite(word) for word in words[1:]]
        if category not in self._names:
            raise builder.broken(f"{what}: class {short(words[0])} is none of data.yaml's")
        if None in numbers:
            at = numbers.index(None) + 1
            raise builder.broken(f"{what}: {short(words[at])} is not a finite number")
        name = self._names[category]
        what = f"{what} ({name})"
        if len(numbers) == 4:  # a box: centre and size
            if self.has_masks:
                builder.leave_out(findings.NO_OUTLINE, what, **self._labels(name))
                return
            x, y, w, h = numbers
            numbers = [x - w / 2, y - h / 2, x + w / 2, y - h / 2, x + w / 2, y + h / 2]
        if len(numbers) < 6 or len(numbers) % 2:
            raise builder.broken(
                f"{what}: {len(numbers)} numbers behind the class; expected x, y of three points "
                "or more"
            )
        if max(map(abs, numbers)) > _FAR_OUTSIDE:
            builder.leave_out(findings.PIXELS, what, **self._labels(name))
            return
        sides = (builder.width, builder.height)
        points = [value * sides[at % 2] for at, value in enumerate(numbers)]
        self._add(builder, points, name, what)


def yolo_names(layout: Layout) -> dict[int, str]:
    """Class number -> name, out of `data.yaml`.

    Raises:
        DataError: there is no such file, or `stated_names` refuses it.
    """
    if layout.file is None:
        raise DataError(
            f"{layout.folders[0].parent}: YOLO labels without data.yaml; expected the file with "
            "the names of the classes, such as names: [cat, dog]"
        )
    return stated_names(layout.file)


class LabelMeFolder(_ShapeFolder):
    """Reader of LabelMe's files; see the top of this file.

    Polygons, rectangles (turned ones too), circles and masks have an area; points and lines are
    counted and left out. Shapes with the same `group_id` and the same label are the pieces of one
    instance, as in the converters of LabelMe. In the group of its whole, each part is an instance
    and has that whole as its parent: a dog has several legs.

    Args:
        root: the folder of images and JSON files, or the one above `train` and `val`; folders
            below them are read too, and example ids are paths.
        split: `train`, `val` or another name.
        vocabulary: must hold the classes under the name `dataset`.
        dataset: the user's name for the set.
        boxes_only: every annotation is its box.
    """

    kind = LABELME

    def _find(self, layout: Layout) -> None:
        (folder,) = layout.folders
        alone = []
        self._texts: list[pathlib.Path] = []
        for file in labelme_files(layout):
            image = self._image_of(file)
            if image is None:
                alone.append(file.relative_to(folder).as_posix())
                continue
            self._images.append(image)
            self._texts.append(file)
        if alone:
            named = tuple(alone[: findings.NAMED])
            self.unused = (Unused(findings.NO_IMAGE_FILE, named, len(alone)),)
        unknown = unknown_names(labelme_names(layout), self.dataset, self.vocabulary)
        if unknown:
            raise unknown_error(unknown, self.dataset, folder)

    @staticmethod
    def _image_of(file: pathlib.Path) -> pathlib.Path | None:
        """The image of the same name; which one, if there are several, `imagePath` says."""
        candidates = [file.with_suffix(s) for s in (*IMAGE_SUFFIXES, ".JPG", ".JPEG", ".PNG")]
        candidates = [path for path in candidates if path.is_file()]
        if len(candidates) == 1:
            return candidates[0]
        stated = _stated_image(file, _content(file))
        return stated if stated is not None and stated.is_file() else None

    def _files(self, position: int) -> tuple[pathlib.Path, ...]:
        return self._images[position], self._texts[position]

    def _read(self, position: int) -> RawExample:
        image, file = self._files(position)
        content = read_json(file, f"{self.dataset} example {self.example_ids[position]!r}")
        builder = ExampleBuilder(self, position, image)
        stated = _stated_image(file, content)
        if stated is not None and stated.name != image.name and stated.is_file():
            raise builder.broken(
                f"{file.name}: imagePath is {stated.name}, but {image.name} has this file's name, "
                "and both exist; expected one image: correct imagePath or rename the file"
            )
        height, width = (image_side(content.get(key)) for key in ("imageHeight", "imageWidth"))
        if height < 0 or width < 0:
            raise builder.broken(f"{file.name}: imageHeight or imageWidth is not a size in pixels")
        if height and width:
            builder.expect_size(height, width)
        first: dict[tuple[int, str], int] = {}
        shapes = list(enumerate(builder.listed(content, "shapes", file)))
        for number, shape in sorted(shapes, key=lambda item: ":" in str(item[1].get("label"))):
            name = _label(shape)
            what = f"shape {number} of {file.name} ({name})"
            above, _, part = name.partition(":")
            group = parse_int(shape.get("group_id"))
            parent = first.get((group, above), -1) if part and group is not None else -1
            added = self._add_shape(builder, shape, name, what, parent)
            if group is None or parent >= 0 or added < 0:
                continue
            key = (group, name if part else above)
            if key in first:
                builder.join_last(first[key])
            else:
                first[key] = added
        return builder.build()

    def _add_shape(
        self, builder: ExampleBuilder, shape: Mapping, name: str, what: str, parent: int
    ) -> int:
        kind, points = shape.get("shape_type") or "polygon", shape.get("points")
        if not isinstance(points, list) or not all(isinstance(point, list) for point in points):
            raise builder.broken(f"{what}: points is {short(points)}, expected a list of [x, y]")
        numbers = [finite(v) for point in points for v in point]
        if None in numbers:
            raise builder.broken(f"{what}: a coordinate of {short(points)} is not a finite number")
        if kind == "mask":
            fields = {**self._labels(name), "parent": parent, "name": what}
            return builder.add_mask(_pasted(builder, shape, numbers, what), **fields)
        if kind == "rectangle" and len(numbers) in (4, 8):
            if len(numbers) == 4:
                (x0, y0, x1, y1) = numbers
                numbers = [x0, y0, x1, y0, x1, y1, x0, y1]
        elif kind == "circle" and len(numbers) == 4:
            (x, y, x1, y1) = numbers
            angles = np.linspace(0, 2 * np.pi, 72, endpoint=False)
            radius = float(np.hypot(x1 - x, y1 - y))
            ring = np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1)
            numbers = ring.reshape(-1).tolist()
        elif kind not in _OUTLINED or len(numbers) < 6:
            shape_name = f"{what}, a {short(kind)}"
            builder.leave_out(findings.NO_AREA_SHAPE, shape_name, **self._labels(name))
            return -1
        try:
            return self._add(builder, numbers, name, what, parent)
        except DataError:
            raise
        except ValueError as error:
            raise builder.broken(f"{what}: {error}") from error


def labelme_names(layout: Layout) -> list[str]:
    """Names of all shapes of a split, in order of appearance; broken files have none."""
    names: dict[str, None] = {}
    for file in labelme_files(layout):
        shapes = _content(file).get("shapes")
        for shape in shapes if isinstance(shapes, list) else ():
            if isinstance(shape, dict):
                names.setdefault(_label(shape))
    return list(names)


def own_names(layout: Layout) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(object names, part names) of a YOLO or LabelMe folder, for `build_vocabulary(extra=)`.

    Raises:
        DataError: it has no classes.
    """
    names = list(yolo_names(layout).values()) if layout.kind == YOLO else labelme_names(layout)
    if not names:
        raise DataError(f"{layout.folders[0]}: no shape has a label; expected class names")
    return split_names(names)


def _stated_image(file: pathlib.Path, content: Mapping) -> pathlib.Path | None:
    """The image next to a LabelMe file that its `imagePath` names; it need not exist."""
    stated = content.get("imagePath")
    if not isinstance(stated, str) or pathlib.PurePath(stated).suffix.lower() not in IMAGE_SUFFIXES:
        return None
    return file.parent / pathlib.PurePosixPath(plain_name(stated)).name


def _label(shape: Mapping) -> str:
    value = shape.get("label")
    return clean_text(value).strip() or "object" if isinstance(value, (str, int)) else "object"


def _content(file: pathlib.Path) -> dict:
    """Content of a file; empty if it is broken, which is reported when its record is read."""
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _pasted(builder: ExampleBuilder, shape: Mapping, numbers: list[float], what: str) -> dict:
    """A shape of type `mask`: a base64-encoded PNG whose top-left corner is the first point."""
    try:
        data = base64.b64decode(shape["mask"], validate=True)
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise builder.broken(f"{what}: its mask has too many pixels")
            small = np.asarray(image.convert("L")) > 0
    except DataError:
        raise
    except (KeyError, TypeError, binascii.Error, Image.DecompressionBombError) as error:
        raise builder.broken(f"{what}: no PNG in base64 ({error})") from error
    x, y = (round(value) for value in numbers[:2])
    if x < 0 or y < 0 or x + small.shape[1] > builder.width or y + small.shape[0] > builder.height:
        raise builder.broken(f"{what}: its mask does not lie inside the image")
    mask = np.zeros((builder.height, builder.width), np.bool_)
    mask[y : y + small.shape[0], x : x + small.shape[1]] = small
    return encode_mask(mask)
