"""PACO-LVIS: objects with parts, linked by `obj_ann_id`.

Layout: `root/annotations/paco_lvis_v1_{split}.json`, photos of COCO 2017 at
`root/{train2017,val2017}/NAME.jpg`, as the JSON's file names say. Source: SPEC (xi).
"""

import os
import pathlib

from data_pipelines.schema import RawExample
from data_pipelines.sources.base import ExampleBuilder, Source
from data_pipelines.sources.coco_json import ClassLabel, add_annotations, load_table
from data_pipelines.sources.panoptic import unknown_classes
from data_pipelines.vocabulary import Vocabulary
from semsam_jax.core.errors import DataError


class Paco(Source):
    """Reader of PACO-LVIS: 75 objects, 200 part words.

    Args:
        root: the folder above `annotations`.
        split: `train`, `val` or `test`.
        vocabulary: gives the class indices.
        photos: folder above `train2017` and `val2017`; `root` by default.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        split: str,
        vocabulary: Vocabulary,
        *,
        photos: str | os.PathLike | None = None,
    ):
        options = {} if photos is None else {"photos": str(photos)}
        super().__init__("paco", root, split, vocabulary, **options)
        self._photos = self.root if photos is None else pathlib.Path(photos)
        file = self.root / "annotations" / f"paco_lvis_v1_{split}.json"
        if not file.is_file():
            raise self._layout_error(f"annotations/{file.name}")
        self.annotation_files = (file,)
        self._table = load_table(file, "paco")
        self._labels = whole_part_labels(self._table.category_names, "paco", vocabulary, file)
        self.example_ids, self.unused = self._table.image_ids, self._table.unused

    def _files(self, position: int) -> tuple[pathlib.Path, ...]:
        return (self._photos / self._table.file_names[position],)

    def _read(self, position: int) -> RawExample:
        builder = ExampleBuilder(self, position, self._photos / self._table.file_names[position])
        add_annotations(
            builder,
            self._table,
            position,
            self._labels,
            pseudo_objects=self._is_pseudo("objects"),
            pseudo_parts=self._is_pseudo("parts"),
        )
        return builder.build()


def whole_part_labels(
    names: dict[int, str], dataset: str, vocabulary: Vocabulary, path: pathlib.Path
) -> dict[int, ClassLabel]:
    """Returns native category id -> label, where `whole:part` names a part of a whole.

    Raises:
        DataError: listing all class names that the vocabulary does not have.
    """
    labels: dict[int, ClassLabel] = {}
    unknown: list[str] = []
    for category, name in names.items():
        whole, _, part = name.partition(":")
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
