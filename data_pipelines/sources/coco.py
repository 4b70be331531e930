"""COCO 2017: panoptic segments (things and stuff), or instances as an option.

Layout: `root/{split}2017/*.jpg`, `root/annotations/panoptic_{split}2017.json` with a folder of
PNGs of the same name, and `root/annotations/instances_{split}2017.json`. Source: docs/reference.md,
section 12.
"""

import os
import pathlib

from data_pipelines.schema import RawExample
from data_pipelines.sources.base import Source, below
from data_pipelines.sources.builder import ExampleBuilder
from data_pipelines.sources.coco_json import add_annotations, load_table
from data_pipelines.sources.panoptic import PanopticFile, class_labels
from data_pipelines.vocabulary import Vocabulary
from semsam_jax.core.errors import ConfigError


class Coco(Source):
    """Reader of COCO 2017.

    Args:
        root: the folder above `annotations`.
        split: `train` or `val`.
        vocabulary: gives the class indices.
        annotations: `panoptic` (133 classes) or `instances` (the 80 things among them).
    """

    def __init__(
        self,
        root: str | os.PathLike,
        split: str,
        vocabulary: Vocabulary,
        *,
        annotations: str = "panoptic",
    ):
        super().__init__("coco", root, split, vocabulary, annotations=annotations)
        if annotations not in ("panoptic", "instances"):
            raise ConfigError(
                f"coco: annotations={annotations!r}; expected 'panoptic' or 'instances'"
            )
        self._images = self.root / f"{split}2017"
        file = self.root / "annotations" / f"{annotations}_{split}2017.json"
        self._pngs = file.with_suffix("")
        is_panoptic = annotations == "panoptic"
        wanted = [self._images, *([self._pngs] if is_panoptic else [])]
        if not file.is_file() or not all(folder.is_dir() for folder in wanted):
            raise self._layout_error(
                f"annotations/{file.name} and folders "
                f"{[folder.relative_to(self.root).as_posix() for folder in wanted]}"
            )
        self.annotation_files = (file,)
        self._panoptic = PanopticFile(file, "coco", vocabulary) if is_panoptic else None
        self._table = None if is_panoptic else load_table(file, "coco")
        if self._panoptic is not None:
            self.example_ids, self.unused = self._panoptic.image_ids, self._panoptic.unused
        else:
            self._labels = class_labels(self._table.category_names, "coco", vocabulary, file)
            things = (label.object_id for label in self._labels.values() if label.is_thing)
            self._things = tuple((object_id, -1) for object_id in sorted(things))
            self.revision = 2
            self.example_ids, self.unused = self._table.image_ids, self._table.unused

    def _files(self, position: int) -> tuple[pathlib.Path, ...]:
        if self._panoptic is None:
            return (below(self._images, self._table.file_names[position]),)
        image, png = self._panoptic.file_names(position)
        return below(self._images, image), below(self._pngs, png)

    def _read(self, position: int) -> RawExample:
        if self._panoptic is None:
            name = self._table.file_names[position]
            builder = ExampleBuilder(self, position, below(self._images, name))
            add_annotations(builder, self._table, position, self._labels)
            builder.annotated = self._things  # nothing is known of stuff
        else:
            image, png = self._files(position)
            builder = ExampleBuilder(self, position, image)
            self._panoptic.add_segments(builder, position, png)
        return builder.build()
