"""PACO-LVIS: objects with parts, linked by `obj_ann_id`.

Layout: `root/annotations/paco_lvis_v1_{split}.json`, images of COCO 2017 at
`root/{train2017,val2017}/NAME.jpg`, as the JSON's file names say.

PACO is annotated like LVIS (arXiv 1908.03195, section 3): an image is exhaustively annotated for
the classes of its annotations and for those in its `neg_category_ids`, which are absent. Those in
`not_exhaustive_category_ids` lack instances; nothing is known of all other classes. An image
without `neg_category_ids` is complete for its own classes only. Source: docs/reference.md, section
12.
"""

import os
import pathlib

import numpy as np

from data_pipelines.schema import RawExample
from data_pipelines.sources.base import Source
from data_pipelines.sources.builder import ExampleBuilder
from data_pipelines.sources.coco_json import add_annotations, load_table
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
        self._set_classes(builder, position)
        return builder.build()

    def _set_classes(self, builder: ExampleBuilder, position: int) -> None:
        """Sets what is known about each class in an image; parts are treated like their object."""
        table = self._table
        span = slice(int(table.starts[position]), int(table.starts[position + 1]))
        stated = [
            np.unique(table.categories[span]).tolist(),
            table.negatives.get(position, ()),
            table.not_exhaustive.get(position, ()),
        ]
        # Listed classes that PACO does not have are LVIS's and are ignored.
        found, negatives, listed = (
            [
                (self._labels[category].object_id, self._labels[category].part_id)
                for category in ids
                if category in self._labels
            ]
            for ids in stated
        )
        incomplete = {object_id for object_id, part_id in listed if part_id < 0}
        partial = {*listed, *(label for label in found if label[0] in incomplete)}
        builder.partial = tuple(sorted(partial))
        builder.annotated = tuple(sorted({*found, *negatives} - partial))
