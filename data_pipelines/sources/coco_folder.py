"""A user's own data: one COCO-format JSON and a folder of photos.

A category `whole:part` names a part of a whole; an annotation of a part may point at its whole
by `obj_ann_id`. Build the vocabulary from the same file:

    classes = read_class_names("my/train.json")
    vocabulary = build_vocabulary(["coco"], extra={"mine": classes})
    source = CocoFolder("my", "train", vocabulary, dataset="mine")
"""

import os
import pathlib

from data_pipelines.schema import DATASETS, RawExample
from data_pipelines.sources.base import ExampleBuilder, Source, first_existing
from data_pipelines.sources.coco_json import add_annotations, load_table
from data_pipelines.sources.json_stream import read_elements
from data_pipelines.sources.paco import whole_part_labels
from data_pipelines.vocabulary import Vocabulary
from semsam_jax.core.errors import ConfigError, DataError


class CocoFolder(Source):
    """Reader of a COCO-format file of the user's own.

    Args:
        root: the folder.
        split: names the files if `annotations` and `photos` are not given.
        vocabulary: must hold the classes under the name `dataset`.
        dataset: the user's name for the set.
        annotations: the JSON, relative to root; default `annotations/{split}.json`, else
            `annotations/instances_{split}.json`, else `{split}.json`.
        photos: folder of the photos, relative to root; default `{split}`, else `images/{split}`,
            else `images`, else root.
        boxes_only: ignore outlines; every annotation is its box.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        split: str,
        vocabulary: Vocabulary,
        *,
        dataset: str,
        annotations: str | None = None,
        photos: str | None = None,
        boxes_only: bool = False,
    ):
        if dataset in DATASETS:
            raise ConfigError(
                f"coco_folder: dataset={dataset!r} is the name of a built-in dataset; choose your "
                "own name"
            )
        options = {"annotations": annotations, "photos": photos, "boxes_only": boxes_only}
        super().__init__(dataset, root, split, vocabulary, **options)
        self.has_masks = not boxes_only
        names = [annotations] if annotations else annotation_places(split)
        file = first_existing([self.root / name for name in names], pathlib.Path.is_file)
        if file is None:
            raise self._layout_error(f"one of {names}")
        folders = [photos] if photos else [split, f"images/{split}", "images", "."]
        folder = first_existing([self.root / name for name in folders], pathlib.Path.is_dir)
        if folder is None:
            raise self._layout_error(f"a folder of photos, one of {folders}")
        self._photos = folder
        self.annotation_files = (file,)
        self._table = load_table(file, dataset, with_outlines=not boxes_only)
        self._labels = whole_part_labels(self._table.category_names, dataset, vocabulary, file)
        self.example_ids = self._table.image_ids

    def _read(self, position: int) -> RawExample:
        builder = ExampleBuilder(self, position, self._photos / self._table.file_names[position])
        add_annotations(
            builder,
            self._table,
            position,
            self._labels,
            boxes_only=not self.has_masks,
            pseudo_objects=self._is_pseudo("objects"),
            pseudo_parts=self._is_pseudo("parts"),
        )
        return builder.build()


def annotation_places(split: str) -> list[str]:
    """Where the file of a split is looked for if nobody names it, below the root."""
    return [f"annotations/{split}.json", f"annotations/instances_{split}.json", f"{split}.json"]


def read_class_names(annotations: str | pathlib.Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns (object names, part names) of a COCO-format file, for `build_vocabulary(extra=)`.

    Raises:
        DataError: the file is not COCO-format or lists no categories.
    """
    path = pathlib.Path(annotations)
    categories: list[dict] = []
    read_elements(path, "coco_folder", {"categories": categories.append})
    if not categories:
        raise DataError(f"coco_folder: {path} lists no categories; wanted a COCO-format file")
    pairs = [
        str(category.get("name") or f"class {category.get('id')}").partition(":")
        for category in categories
    ]
    objects = dict.fromkeys(whole for whole, _, _ in pairs)
    parts = dict.fromkeys(part for _, _, part in pairs if part)
    return tuple(objects), tuple(parts)
