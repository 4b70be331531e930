"""PartImageNet: parts of 11 kinds of things on ImageNet images.

Layout: `root/images/{split}/*.JPEG` and COCO-style part masks in `root/annotations/{split}.json`,
`root/annotations/{split}/{split}.json` or `root/{split}.json`. The dataset has no masks of whole
objects: the whole is the union of an image's parts of one kind. An image is annotated for one
object, so nothing is known about other kinds in it (`RawExample.annotated`). Source:
docs/reference.md, section 12.
"""

import dataclasses
import os
import pathlib

from data_pipelines.index.strings import StringTable
from data_pipelines.schema import RawExample, RawInstance
from data_pipelines.sources.base import Source, first_existing
from data_pipelines.sources.builder import ExampleBuilder
from data_pipelines.sources.coco_json import ClassLabel, add_annotations, load_table
from data_pipelines.sources.panoptic import unknown_classes
from data_pipelines.vocabulary import Vocabulary
from semsam_jax.core.errors import DataError
from semsam_jax.core.rle import merge_masks


class PartImageNet(Source):
    """Reader of PartImageNet: 40 categories `Kind Part` = 11 objects, 13 part words."""

    def __init__(self, root: str | os.PathLike, split: str, vocabulary: Vocabulary):
        super().__init__("part_imagenet", root, split, vocabulary)
        names = [f"annotations/{split}.json", f"annotations/{split}/{split}.json", f"{split}.json"]
        file = first_existing([self.root / name for name in names], pathlib.Path.is_file)
        self._images = self.root / "images" / split
        if file is None or not self._images.is_dir():
            raise self._layout_error(f"a folder images/{split} and one of {names}")
        self.annotation_files = (file,)
        self._table = load_table(file, "part_imagenet")
        self._labels = _labels(self._table.category_names, vocabulary, file)
        self.example_ids = StringTable.of(
            pathlib.PurePosixPath(name).stem or image_id
            for name, image_id in zip(self._table.file_names, self._table.image_ids, strict=True)
        )
        self.unused = self._table.unused

    def _files(self, position: int) -> tuple[pathlib.Path, ...]:
        return (self._images / pathlib.PurePosixPath(self._table.file_names[position]).name,)

    def _read(self, position: int) -> RawExample:
        (image,) = self._files(position)
        parts = ExampleBuilder(self, position, image)
        add_annotations(parts, self._table, position, self._labels)
        whole = ExampleBuilder(self, position, image)
        masks: dict[int, list[dict]] = {}
        for part in parts.instances:
            masks.setdefault(part.object_id, []).append(part.rle)
        parents = {
            object_id: whole.add_mask(
                merge_masks(rles), object_id=object_id, is_pseudo=self._is_pseudo("parts")
            )
            for object_id, rles in masks.items()
        }
        whole.instances.extend(
            RawInstance(
                rle=part.rle,
                box=part.box,
                object_id=part.object_id,
                part_id=part.part_id,
                parent=parents[part.object_id],
                is_pseudo=self._is_pseudo("parts"),
            )
            for part in parts.instances
        )
        whole.ignored.extend(parts.ignored)
        # Only the one object of the image is annotated, with the parts of its kind.
        labels = {(label.object_id, label.part_id) for label in self._labels.values()}
        whole.annotated = tuple(
            sorted({(kind, -1) for kind in masks} | {one for one in labels if one[0] in masks})
        )
        whole.is_exclusive = True
        read = parts.build()
        return dataclasses.replace(whole.build(), unused=read.unused, partial=read.partial)


def _labels(
    names: dict[int, str], vocabulary: Vocabulary, path: pathlib.Path
) -> dict[int, ClassLabel]:
    labels: dict[int, ClassLabel] = {}
    unknown: list[str] = []
    for category, name in names.items():
        kind, _, part = name.partition(" ")
        try:
            labels[category] = ClassLabel(
                vocabulary.object_index("part_imagenet", kind),
                vocabulary.part_index("part_imagenet", part),
            )
        except DataError:
            unknown.append(name)
    if unknown:
        raise unknown_classes("part_imagenet", path, unknown)
    return labels
