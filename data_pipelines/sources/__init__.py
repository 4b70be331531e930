"""Readers of datasets in their native layouts, one file each."""

import pathlib
from typing import Any

from data_pipelines.schema import DATASETS
from data_pipelines.sources.ade20k import ADE20k
from data_pipelines.sources.base import Source
from data_pipelines.sources.coco import Coco
from data_pipelines.sources.coco_folder import CocoFolder
from data_pipelines.sources.objects365 import Objects365
from data_pipelines.sources.paco import Paco
from data_pipelines.sources.part_imagenet import PartImageNet
from data_pipelines.sources.pascal_part import PascalPart
from data_pipelines.sources.sa1b import SA1B
from data_pipelines.vocabulary import Vocabulary

__all__ = [
    "SA1B",
    "SOURCES",
    "ADE20k",
    "Coco",
    "CocoFolder",
    "Objects365",
    "Paco",
    "PartImageNet",
    "PascalPart",
    "Source",
    "open_source",
]

SOURCES: dict[str, type[Source]] = {
    "sa1b": SA1B,
    "coco": Coco,
    "ade20k": ADE20k,
    "objects365": Objects365,
    "pascal_part": PascalPart,
    "paco": Paco,
    "part_imagenet": PartImageNet,
}
assert tuple(SOURCES) == DATASETS


def open_source(
    dataset: str,
    root: str | pathlib.Path,
    split: str,
    vocabulary: Vocabulary,
    *,
    cache: str | pathlib.Path | None = None,
    **options: Any,
) -> Source:
    """Opens a dataset by name; a name outside `schema.DATASETS` is a user's own COCO folder.

    Args:
        dataset: its name.
        root: folder in the dataset's native layout.
        split: `train`, `val`, or what the dataset calls its splits.
        vocabulary: gives the class indices.
        cache: where the listing of a very large set is kept between runs.
        **options: of the reader, see its class.

    Raises:
        DataError: the folder does not have the dataset's layout.
        ConfigError: an option has a wrong value.
    """
    if dataset == "sa1b":
        options["cache"] = cache
    if dataset not in SOURCES:
        return CocoFolder(root, split, vocabulary, dataset=dataset, **options)
    return SOURCES[dataset](root, split, vocabulary, **options)
