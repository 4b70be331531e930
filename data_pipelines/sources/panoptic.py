"""COCO's panoptic format: a PNG whose colours are segment ids, and a JSON that names them.

Shared by COCO and by ADE20k in the same format. Source: docs/reference.md, section 12.
"""

import collections
import json
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from data_pipelines import findings
from data_pipelines.decode import MAX_PIXELS
from data_pipelines.findings import Unused
from data_pipelines.index.strings import StringTable
from data_pipelines.sources.builder import ExampleBuilder
from data_pipelines.sources.coco_json import Categories, ClassLabel
from data_pipelines.sources.json_stream import read_elements
from data_pipelines.sources.values import (
    MISSING,
    IdCodes,
    flag,
    image_side,
    parse_int,
    plain_name,
    short,
)
from data_pipelines.vocabulary import Vocabulary
from semsam_jax.core.errors import DataError


class PanopticFile:
    """The JSON of one split, indexed by image in order of the image id.

    Attributes:
        image_ids: native ids as text, in reading order.
        labels: native category id (a code of `IdCodes`) -> label in the union vocabulary.
        unused: records without an id, images without a record of their segments.
    """

    def __init__(self, path: pathlib.Path, dataset: str, vocabulary: Vocabulary):
        codes = IdCodes()
        images: dict[int, str] = {}
        records: dict[int, str] = {}
        nameless: list[str] = []
        categories = Categories(path, dataset, codes)

        def add(kept: dict[int, str], kind: str, value: object, text: str) -> None:
            code = codes.code(value)
            if code == MISSING:
                nameless.append(f"{kind} {short(value)}")
                return
            if code in kept:
                raise DataError(
                    f"{dataset}: {path}: {kind} {short(value)} appears twice; expected one record "
                    "for each image"
                )
            kept[code] = text

        def add_image(image: dict) -> None:
            text = _text({key: image.get(key) for key in _IMAGE_KEYS})
            add(images, "image id", image.get("id"), text)

        def add_record(record: dict) -> None:
            add(records, "image_id", record.get("image_id"), _text(_slim(record)))

        wanted = {"images": add_image, "annotations": add_record, "categories": categories.add}
        read_elements(path, dataset, wanted)
        self.path = path
        self.labels = class_labels(categories.names, dataset, vocabulary, path)
        self._codes = codes
        id_texts = codes.table()
        order = [list(records)[at] for at in id_texts.order(records)]
        self.image_ids = StringTable.of(id_texts.text(code) for code in order)
        # Stored as JSON text: a million small dictionaries would take much memory in every worker.
        self._rows = StringTable.of(f"[{images.get(i, 'null')},{records[i]}]" for i in order)
        alone = [f"image {id_texts.quoted(code)}" for code in images if code not in records]
        self.unused = tuple(
            Unused(reason, tuple(names[: findings.NAMED]), len(names))
            for reason, names in ((findings.NO_IMAGE_ID, nameless), (findings.NO_RECORD, alone))
            if names
        )

    def file_names(self, position: int) -> tuple[str, str]:
        """Returns the file names of the image and of the PNG.

        Raises:
            KeyError: the JSON lists the annotation but not the image.
        """
        image, record = self._row(position)
        return image["file_name"], record["file_name"]

    def add_segments(self, builder: ExampleBuilder, position: int, png: pathlib.Path) -> None:
        """Adds the segments of one image in the JSON's order; crowd regions become `ignored`.

        Raises:
            DataError: the PNG is missing, damaged or of another size than the image, its red and
                blue are swapped, or a segment is listed twice or has an unknown category.
        """
        image, record = self._row(position)
        height, width = image_side(image["height"]), image_side(image["width"])
        if min(height, width) < 0:
            raise builder.broken(
                f"{self.path} states a height or width that is not a size in pixels"
            )
        if height and width:
            builder.expect_size(height, width)
        listed = builder.listed(record, "segments_info", self.path)
        segments = [self._segment(builder, segment) for segment in listed]
        counts = collections.Counter(number for number, _, _ in segments)
        twice = [number for number, count in counts.items() if count > 1]
        if twice:
            raise builder.broken(f"segments {twice[:5]} are listed twice in {self.path}")
        ids = read_id_png(png, builder)
        masks = [ids == number for number, _, _ in segments]
        areas = [int(np.count_nonzero(mask)) for mask in masks]
        _check_ids(builder, png, ids, list(counts), areas)
        for mask, area, (number, label, is_crowd) in zip(masks, areas, segments, strict=True):
            if not area:
                builder.leave_out(findings.EMPTY_SEGMENT, f"segment {number} of {png.name}")
                continue
            builder.add_array(
                mask, object_id=label.object_id, is_thing=label.is_thing, is_crowd=is_crowd
            )

    def _segment(self, builder: ExampleBuilder, segment: Mapping) -> tuple[int, ClassLabel, bool]:
        """Number, label and crowd flag of a listed segment."""
        number, is_crowd = parse_int(segment.get("id")), flag(segment.get("iscrowd"))
        if number is None or is_crowd is None:
            raise builder.broken(
                f"segment {short(segment.get('id'))} has iscrowd {short(segment.get('iscrowd'))}; "
                "expected a whole number and 0 or 1"
            )
        label = self.labels.get(self._codes.code(segment.get("category_id")))
        if label is None:
            raise builder.broken(
                f"segment {number} has category id {short(segment.get('category_id'))}, which "
                f"{self.path} does not list"
            )
        return number, label, is_crowd

    def _row(self, position: int) -> tuple[dict, dict]:
        image, record = json.loads(self._rows[position])
        for content in (image or {}, record):
            name = content.get("file_name")
            content["file_name"] = plain_name(name) if isinstance(name, str) else ""
        if image is None:
            raise KeyError(
                f"image_id {self.image_ids[position]} has no entry in images of {self.path}"
            )
        return image, record


_IMAGE_KEYS = ("file_name", "height", "width")


def _text(content: dict) -> str:
    return json.dumps(content, separators=(",", ":"))


def _slim(record: Mapping) -> dict:
    """Keeps what is needed; an invalid `segments_info` is reported when the image is read."""
    segments = record.get("segments_info")
    keys = ("id", "category_id", "iscrowd")
    if isinstance(segments, list) and all(isinstance(segment, dict) for segment in segments):
        segments = [{k: segment[k] for k in keys if k in segment} for segment in segments]
    return {"file_name": record.get("file_name"), "segments_info": segments}


def _check_ids(
    builder: ExampleBuilder,
    png: pathlib.Path,
    ids: np.ndarray,
    listed: Sequence[int],
    areas: Sequence[int],
) -> None:
    """Counts ids of the PNG that are not listed, and refuses one whose red and blue are swapped."""
    if sum(areas) + int(np.count_nonzero(ids == 0)) == ids.size:
        return
    present = np.unique(ids[ids != 0])
    odd = np.setdiff1d(present, listed).tolist()
    shown = ", ".join(map(str, odd[:5])) + (", ..." if len(odd) > 5 else "")
    swapped = [(n & 255) << 16 | n & 0xFF00 | n >> 16 & 255 for n in odd]
    empty = [number for number, area in zip(listed, areas, strict=True) if not area]
    if empty and set(swapped) <= set(empty):
        raise builder.broken(
            f"segments {empty[:5]} have no pixel in {png}, which has the ids {shown} that no "
            "segment lists; with red and blue swapped they fit, so the PNG was written as BGR: "
            "swap these channels (an id is R + 256 G + 65536 B)"
        )
    if odd:
        builder.leave_out(findings.UNLISTED_SEGMENT, f"{shown} of {png.name}", len(odd))


def read_id_png(png: pathlib.Path, builder: ExampleBuilder) -> np.ndarray:
    """Reads segment ids int32 [h,w] = R + 256 G + 65536 B.

    Raises:
        DataError: the PNG is missing, damaged, not in colour, or not of the image's size.
    """
    colours = read_png(png, builder, ("RGB", "RGBA")).astype(np.int32)
    return colours[..., 0] + 256 * colours[..., 1] + 65536 * colours[..., 2]


def read_png(
    png: pathlib.Path, builder: ExampleBuilder, modes: Sequence[str] | None = None
) -> np.ndarray:
    """Reads a label PNG as it is stored, [h,w] or [h,w,c].

    Raises:
        DataError: it is missing, damaged, of another mode or not of the image's size.
    """
    try:
        with Image.open(png) as image:
            if modes is not None and image.mode not in modes:
                raise builder.broken(
                    f"label image {png} has mode {image.mode}; expected one of {list(modes)}"
                )
            if (image.height, image.width) != (builder.height, builder.width):
                raise builder.broken(
                    f"label image {png} has {image.width}x{image.height} pixels, the image "
                    f"{builder.width}x{builder.height}"
                )
            return np.asarray(image)
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise builder.broken(
            f"label image {png} has too many pixels, expected {MAX_PIXELS // 10**6} million at most"
        ) from error
    # Decoders of damaged files raise struct.error, zlib.error, SyntaxError, IndexError ...
    except Exception as error:
        raise builder.broken(f"cannot read the label image {png}: {error}") from error


def class_labels(
    names: Mapping[int, str],
    dataset: str,
    vocabulary: Vocabulary,
    path: pathlib.Path,
    *,
    has_parts: bool = False,
) -> dict[int, ClassLabel]:
    """Returns native category id -> label.

    Args:
        names: native category id -> name.
        dataset: whose names they are.
        vocabulary: gives the class indices.
        path: the file, for messages.
        has_parts: whether `whole:part` names a part of a whole.

    Raises:
        DataError: listing all class names that the vocabulary does not have.
    """
    labels: dict[int, ClassLabel] = {}
    unknown: list[str] = []
    for category, name in names.items():
        whole, _, part = name.partition(":") if has_parts else (name, "", "")
        try:
            object_id = vocabulary.object_index(dataset, whole)
            part_id = vocabulary.part_index(dataset, part) if part else -1
        except DataError:
            unknown.append(name)
            continue
        is_thing = vocabulary.entry(object_id).is_thing
        labels[category] = ClassLabel(object_id, part_id, is_thing)
    if unknown:
        raise unknown_classes(dataset, path, unknown)
    return labels


def unknown_classes(dataset: str, path: pathlib.Path, names: Sequence[str]) -> DataError:
    """Returns the error for class names that the vocabulary lacks; raise it."""
    return DataError(
        f"{dataset}: {path} has {len(names)} classes that the vocabulary of {dataset} lacks: "
        f"{list(names)[:10]}; expected the dataset's names; read custom datasets with coco_folder"
    )
