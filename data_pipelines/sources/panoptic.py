"""COCO's panoptic format: a PNG whose colours are segment ids, and a JSON that names them.

Shared by COCO and by ADE20k in the same format. Source: SPEC (xi).
"""

import json
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from data_pipelines.index.strings import StringTable
from data_pipelines.sources.base import ExampleBuilder
from data_pipelines.sources.coco_json import ClassLabel
from data_pipelines.sources.json_stream import read_elements
from data_pipelines.vocabulary import Vocabulary
from semsam_jax.core.errors import DataError


class PanopticFile:
    """The JSON of one split, indexed by photo in order of the image id.

    Attributes:
        image_ids: native ids as text, in reading order.
        labels: native category id -> place in the union vocabulary.
    """

    def __init__(self, path: pathlib.Path, dataset: str, vocabulary: Vocabulary):
        images: dict[int | str, str] = {}
        records: dict[int | str, str] = {}
        names: dict[int, str] = {}

        def add_image(image: dict) -> None:
            images[image["id"]] = _text({key: image.get(key) for key in _PHOTO_KEYS})

        def add_record(record: dict) -> None:
            records[record["image_id"]] = _text(_slim(record))

        def add_class(category: dict) -> None:
            names[int(category["id"])] = str(category["name"])

        wanted = {"images": add_image, "annotations": add_record, "categories": add_class}
        try:
            read_elements(path, dataset, wanted)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                f"{dataset}: {path}: an image, annotation or category record is damaged "
                f"({type(error).__name__}: {error})"
            ) from error
        self.path = path
        self.labels = object_labels(names, dataset, vocabulary, path)
        order = sorted(records)
        self.image_ids = StringTable.of(str(i) for i in order)
        # Short JSON texts: a million small dictionaries would weigh on every worker process.
        self._rows = StringTable.of(f"[{images.get(i, 'null')},{records[i]}]" for i in order)

    def file_names(self, position: int) -> tuple[str, str]:
        """Returns the file names of the photo and of the PNG.

        Raises:
            KeyError: the JSON lists the annotation but not the photo.
        """
        image, record = self._row(position)
        return image["file_name"], record["file_name"]

    def add_segments(self, builder: ExampleBuilder, position: int, png: pathlib.Path) -> None:
        """Adds the segments of one photo in the JSON's order; crowd regions become `ignored`.

        Raises:
            DataError: the PNG is missing, damaged or of another size than the photo.
        """
        image, record = self._row(position)
        builder.expect_size(int(image["height"]), int(image["width"]))
        ids = read_id_png(png, builder)
        for segment in record["segments_info"]:
            label = self.labels.get(int(segment["category_id"]))
            if label is None:
                raise builder.broken(
                    f"segment {segment['id']} has category id {segment['category_id']}, which "
                    f"{self.path} does not list"
                )
            builder.add_array(
                ids == int(segment["id"]),
                object_id=label.object_id,
                is_thing=label.is_thing,
                is_crowd=bool(segment.get("iscrowd", 0)),
            )

    def _row(self, position: int) -> tuple[dict, dict]:
        image, record = json.loads(self._rows[position])
        if image is None:
            raise KeyError(
                f"image_id {self.image_ids[position]} has no entry in images of {self.path}"
            )
        return image, record


_PHOTO_KEYS = ("file_name", "height", "width")


def _text(content: dict) -> str:
    return json.dumps(content, separators=(",", ":"))


def _slim(record: Mapping) -> dict:
    """Keeps what is read; `segments_info` that is no list of objects is told when read."""
    segments = record.get("segments_info")
    keys = ("id", "category_id", "iscrowd")
    if isinstance(segments, list) and all(isinstance(segment, dict) for segment in segments):
        segments = [{k: segment[k] for k in keys if k in segment} for segment in segments]
    return {"file_name": record.get("file_name"), "segments_info": segments}


def read_id_png(png: pathlib.Path, builder: ExampleBuilder) -> np.ndarray:
    """Reads segment ids int32 [h,w] = R + 256 G + 65536 B.

    Raises:
        DataError: the PNG is missing, damaged, not in colour, or not of the photo's size.
    """
    colours = read_png(png, builder, ("RGB", "RGBA")).astype(np.int32)
    return colours[..., 0] + 256 * colours[..., 1] + 65536 * colours[..., 2]


def read_png(
    png: pathlib.Path, builder: ExampleBuilder, modes: Sequence[str] | None = None
) -> np.ndarray:
    """Reads a label PNG as it is stored, [h,w] or [h,w,c].

    Raises:
        DataError: it is missing, damaged, of another mode or not of the photo's size.
    """
    try:
        with Image.open(png) as image:
            mode, labels = image.mode, np.asarray(image)
    except (OSError, ValueError, SyntaxError) as error:
        raise builder.broken(f"cannot read the label image {png}: {error}") from error
    if modes is not None and mode not in modes:
        raise builder.broken(f"label image {png} has mode {mode}; wanted one of {list(modes)}")
    if labels.shape[:2] != (builder.height, builder.width):
        raise builder.broken(
            f"label image {png} has {labels.shape[1]}x{labels.shape[0]} pixels, the photo "
            f"{builder.width}x{builder.height}"
        )
    return labels


def object_labels(
    names: Mapping[int, str], dataset: str, vocabulary: Vocabulary, path: pathlib.Path
) -> dict[int, ClassLabel]:
    """Returns native category id -> label for a file of object classes.

    Raises:
        DataError: listing all class names that the vocabulary does not have.
    """
    labels: dict[int, ClassLabel] = {}
    unknown: list[str] = []
    for category, name in names.items():
        try:
            index = vocabulary.object_index(dataset, name)
        except DataError:
            unknown.append(name)
            continue
        labels[category] = ClassLabel(index, is_thing=vocabulary.entry(index).is_thing)
    if unknown:
        raise unknown_classes(dataset, path, unknown)
    return labels


def unknown_classes(dataset: str, path: pathlib.Path, names: Sequence[str]) -> DataError:
    """Returns the error for class names that the vocabulary lacks; raise it."""
    return DataError(
        f"{dataset}: {path} has {len(names)} classes that the vocabulary of {dataset} lacks: "
        f"{list(names)[:10]}; wanted the dataset's own names; read own classes with coco_folder"
    )
