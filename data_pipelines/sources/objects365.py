"""Objects365 v2: boxes of 365 classes, no masks.

Layout: `zhiyuan_objv2_{split}.json` in `root` or `root/annotations`; images under the file names of
the JSON, `images/v*/patchN/NAME.jpg`, or where the archives are usually unpacked:
`{split}/patchN/NAME.jpg` or `images/{split}/patchN/NAME.jpg`. Source: docs/reference.md, section
12.
"""

import os
import pathlib

from data_pipelines.schema import RawExample
from data_pipelines.sources.base import Source, first_existing
from data_pipelines.sources.builder import ExampleBuilder
from data_pipelines.sources.coco_json import add_annotations, load_table
from data_pipelines.sources.panoptic import class_labels
from data_pipelines.vocabulary import Vocabulary


class Objects365(Source):
    """Reader of Objects365. Crowd boxes are `ignored`, boxes clipped to the image."""

    has_masks = False

    def __init__(self, root: str | os.PathLike, split: str, vocabulary: Vocabulary):
        super().__init__("objects365", root, split, vocabulary)
        name = f"zhiyuan_objv2_{split}.json"
        file = first_existing(
            [self.root / name, self.root / "annotations" / name], pathlib.Path.is_file
        )
        if file is None:
            raise self._layout_error(f"{name} here or in annotations/")
        self.annotation_files = (file,)
        self._table = load_table(file, "objects365", with_outlines=False)
        self._labels = class_labels(
            self._table.category_names, "objects365", vocabulary, self._table.path
        )
        self.example_ids, self.unused = self._table.image_ids, self._table.unused

    def _files(self, position: int) -> tuple[pathlib.Path, ...]:
        return (self._image(self._table.file_names[position]),)

    def _read(self, position: int) -> RawExample:
        builder = ExampleBuilder(self, position, self._image(self._table.file_names[position]))
        add_annotations(builder, self._table, position, self._labels, boxes_only=True)
        return builder.build()

    def _image(self, name: str) -> pathlib.Path:
        tail = pathlib.PurePosixPath(*pathlib.PurePosixPath(name).parts[-2:])
        stated = self.root / name
        places = [stated, self.root / self.split / tail, self.root / "images" / self.split / tail]
        # If none exists the stated place is returned, so that the error names it.
        return first_existing(places, pathlib.Path.is_file) or stated
