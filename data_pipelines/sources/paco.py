"""PACO-LVIS: objects with parts, linked by `obj_ann_id`.

Layout: `root/annotations/paco_lvis_v1_{split}.json`, images of COCO 2017 at
`root/{train2017,val2017}/NAME.jpg`, as the JSON's file names say.

PACO is annotated like LVIS, each image for some classes only (`federated`). Listed classes that
PACO does not have are LVIS's. Source: docs/reference.md, section 12.
"""

import os
import pathlib

from data_pipelines.schema import RawExample
from data_pipelines.sources.base import Source
from data_pipelines.sources.builder import ExampleBuilder
from data_pipelines.sources.coco_json import add_annotations, load_table
from data_pipelines.sources.federated import set_classes
from data_pipelines.sources.panoptic import class_labels
from data_pipelines.vocabulary import Vocabulary


class Paco(Source):
    """Reader of PACO-LVIS: 75 objects, 200 part words.

    Args:
        root: the folder above `annotations`.
        split: `train`, `val` or `test`.
        vocabulary: gives the class indices.
        images: folder above `train2017` and `val2017`; `root` by default.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        split: str,
        vocabulary: Vocabulary,
        *,
        images: str | os.PathLike | None = None,
    ):
        options = {} if images is None else {"images": str(images)}
        super().__init__("paco", root, split, vocabulary, **options)
        self._images = self.root if images is None else pathlib.Path(images)
        file = self.root / "annotations" / f"paco_lvis_v1_{split}.json"
        if not file.is_file():
            raise self._layout_error(f"annotations/{file.name}")
        self.annotation_files = (file,)
        self._table = load_table(file, "paco")
        self._labels = class_labels(
            self._table.category_names, "paco", vocabulary, file, has_parts=True
        )
        self.example_ids, self.unused = self._table.image_ids, self._table.unused

    def _files(self, position: int) -> tuple[pathlib.Path, ...]:
        return (self._images / self._table.file_names[position],)

    is_federated = True

    def _read(self, position: int) -> RawExample:
        builder = ExampleBuilder(self, position, self._images / self._table.file_names[position])
        add_annotations(
            builder,
            self._table,
            position,
            self._labels,
            pseudo_objects=self._is_pseudo("objects"),
            pseudo_parts=self._is_pseudo("parts"),
        )
        set_classes(builder, self._table, position, self._labels)
        return builder.build()
