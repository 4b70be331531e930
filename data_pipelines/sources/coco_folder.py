"""Custom datasets: a COCO-format JSON and a folder of images, as annotation tools export them.

A category `whole:part` names a part of a whole; an annotation of a part may refer to its whole by
`obj_ann_id`. If images list `neg_category_ids` or `not_exhaustive_category_ids`, each is annotated
for some classes only, as in LVIS (`federated`). Build the vocabulary from the same file:

    classes = read_class_names("my/train.json")
    vocabulary = build_vocabulary(["coco"], extra={"mine": classes})
    source = CocoFolder("my", "train", vocabulary, dataset="mine")
"""

import collections
import os
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from data_pipelines import findings
from data_pipelines.findings import Unused
from data_pipelines.schema import DATASETS, RawExample
from data_pipelines.sources.base import Source
from data_pipelines.sources.builder import ExampleBuilder
from data_pipelines.sources.coco_json import (
    Categories,
    ClassLabel,
    CocoTable,
    add_annotations,
    load_table,
)
from data_pipelines.sources.federated import has_lists, set_classes
from data_pipelines.sources.image_files import ImagePlaces
from data_pipelines.sources.json_stream import read_elements
from data_pipelines.sources.layouts import SPLITS, annotation_places, find_layout, layout_error
from data_pipelines.sources.panoptic import class_labels
from data_pipelines.sources.values import IdCodes, clean_text, is_storable, short
from data_pipelines.vocabulary import Vocabulary
from semsam_jax.core.errors import ConfigError, DataError

_LONGEST_NAME = 100


class CocoFolder(Source):
    """Reader of a custom dataset in COCO format.

    Args:
        root: the folder.
        split: names the files if `annotations` and `images` are not given.
        vocabulary: must hold the classes under the name `dataset`.
        dataset: name of the dataset.
        annotations: the JSON, relative to root; by default where `layouts` finds it.
        images: folder of the images, relative to root; by default where the file names point.
        boxes_only: ignore outlines and use the boxes.
    """

    revision = 2
    is_displayed = True

    def __init__(
        self,
        root: str | os.PathLike,
        split: str,
        vocabulary: Vocabulary,
        *,
        dataset: str,
        annotations: str | None = None,
        images: str | None = None,
        boxes_only: bool = False,
    ):
        check_own_name(dataset)
        options = {"annotations": annotations, "images": images, "boxes_only": boxes_only}
        super().__init__(dataset, root, split, vocabulary, **options)
        self.has_masks = not boxes_only
        layout = find_layout(self.root, split, annotations=annotations, images=images)
        if layout is None or layout.file is None or not layout.folders:
            raise layout_error(dataset, self.root, split)
        file = layout.file
        self.annotation_files = (file,)
        self._table = load_table(file, dataset, with_outlines=not boxes_only)
        self._labels = own_labels(self._table, dataset, vocabulary)
        self._places = ImagePlaces(self._table.file_names, layout.folders)
        self.example_ids = self._table.image_ids
        self.is_federated = has_lists(self._table)
        others = _of_no_split(file, split) if annotations is None else ()
        self.unused = (*self._table.unused, *self._doubled_files(), *others)

    def _doubled_files(self) -> tuple[Unused, ...]:
        """Records of one image: each is trained on without the annotations of the others."""
        counts = collections.Counter(self._table.file_names)
        doubled = [name for name, count in counts.items() if count > 1 and name]
        if not doubled:
            return ()
        named = tuple(f"{short(name)}, {counts[name]} records" for name in doubled)
        number = sum(counts[name] for name in doubled)
        return (Unused(findings.DOUBLED_FILE, named[: findings.NAMED], number),)

    def _files(self, position: int) -> tuple[pathlib.Path, ...]:
        return (self._places.path(self._table.file_names[position]),)

    def _read(self, position: int) -> RawExample:
        (image,) = self._files(position)
        builder = ExampleBuilder(self, position, image)
        add_annotations(
            builder,
            self._table,
            position,
            self._labels,
            boxes_only=not self.has_masks,
            pseudo_objects=self._is_pseudo("objects"),
            pseudo_parts=self._is_pseudo("parts"),
        )
        if self.is_federated:
            set_classes(builder, self._table, position, self._labels)
        return builder.build()


def _of_no_split(file: pathlib.Path, split: str) -> tuple[Unused, ...]:
    """Files next to this one that no split reads: CVAT's tasks without a subset are `default`."""
    known = {pathlib.PurePosixPath(p).name for s in (split, *SPLITS) for p in annotation_places(s)}
    beside = {path.name for path in file.parent.glob("instances_*.json")} - {file.name}
    alone = sorted(beside - known)
    return (Unused(findings.NO_SPLIT, tuple(alone[: findings.NAMED]), len(alone)),) if alone else ()


def check_own_name(dataset: str) -> None:
    """Refuses a name for a custom dataset that is no name of a folder, or that of a built-in one.

    Raises:
        ConfigError: it is one of these.
    """
    is_name = is_storable(dataset) and dataset.strip(". ") and not set(dataset) & set("/\\")
    if not is_name or len(dataset.encode()) > _LONGEST_NAME:
        raise ConfigError(
            f"dataset {clean_text(dataset[:60])!r}: expected a name that a folder can have, such "
            "as mine"
        )
    if dataset in DATASETS:
        raise ConfigError(
            f"coco_folder: dataset={dataset!r} is the name of a built-in dataset; choose your "
            "own name"
        )


def own_labels(table: CocoTable, dataset: str, vocabulary: Vocabulary) -> dict[int, ClassLabel]:
    """Category id -> label; categories without annotations may be unknown.

    Raises:
        DataError: names the classes that the vocabulary, made from another split, does not have.
    """
    used = set(np.unique(table.categories).tolist())
    names = {code: name for code, name in table.category_names.items() if code in used}
    unknown = unknown_names(names.values(), dataset, vocabulary)
    if unknown:
        raise unknown_error(unknown, dataset, table.path)
    rest = {
        code: name
        for code, name in table.category_names.items()
        if code in names or not unknown_names([name], dataset, vocabulary)
    }
    return class_labels(rest, dataset, vocabulary, table.path, has_parts=True)


def unknown_names(names: Iterable[str], dataset: str, vocabulary: Vocabulary) -> list[str]:
    """The class names (`whole` or `whole:part`) that a vocabulary does not have."""
    unknown = []
    for name in names:
        whole, _, part = name.partition(":")
        try:
            vocabulary.object_index(dataset, whole)
            if part:
                vocabulary.part_index(dataset, part)
        except DataError:
            unknown.append(name)
    return unknown


def unknown_error(unknown: Sequence[str], dataset: str, file: pathlib.Path) -> DataError:
    """The error for classes that the training split does not have; raise it."""
    listed = ", ".join(unknown[:10]) + (", ..." if len(unknown) > 10 else "")
    return DataError(
        f"{dataset}: class {listed} is in {file} and not in the train split, whose classes the "
        "model learns; add it to the categories of train (it needs no annotation there), or take "
        f"it out of {file.name}"
    )


def read_class_names(annotations: str | pathlib.Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns (object names, part names) of a COCO-format file, for `build_vocabulary(extra=)`.

    Raises:
        DataError: the file is not COCO-format or lists no categories.
    """
    path = pathlib.Path(annotations)
    categories = Categories(path, "coco_folder", IdCodes())
    read_elements(path, "coco_folder", {"categories": categories.add})
    if not categories.names:
        raise DataError(f"coco_folder: {path} lists no categories; expected a COCO-format file")
    return split_names(categories.names.values())


def split_names(names: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(object names, part names) of classes written `whole` or `whole:part`, each once."""
    pairs = [name.partition(":") for name in names]
    objects = dict.fromkeys(whole for whole, _, _ in pairs)
    parts = dict.fromkeys(part for _, _, part in pairs if part)
    return tuple(objects), tuple(parts)
