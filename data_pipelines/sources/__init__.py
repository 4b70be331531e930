"""Readers of datasets in their native layouts and of built records, one file each."""

import inspect
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from data_pipelines.schema import DATASETS
from data_pipelines.sources.ade20k import ADE20k
from data_pipelines.sources.base import Source
from data_pipelines.sources.coco import Coco
from data_pipelines.sources.coco_folder import CocoFolder
from data_pipelines.sources.cocotree import CocoTree
from data_pipelines.sources.layouts import COCO, COCOTREE, LABELME, YOLO, find_layout
from data_pipelines.sources.objects365 import Objects365
from data_pipelines.sources.paco import Paco
from data_pipelines.sources.part_imagenet import PartImageNet
from data_pipelines.sources.pascal_part import PascalPart
from data_pipelines.sources.records import RecordReader, find_records
from data_pipelines.sources.sa1b import SA1B
from data_pipelines.sources.shapes import LabelMeFolder, YoloFolder
from data_pipelines.sources.values import finite, short
from data_pipelines.vocabulary import Vocabulary
from semsam_jax.core.errors import ConfigError, DataError

__all__ = [
    "SA1B",
    "SOURCES",
    "ADE20k",
    "Coco",
    "CocoFolder",
    "CocoTree",
    "LabelMeFolder",
    "Objects365",
    "Paco",
    "PartImageNet",
    "PascalPart",
    "RecordReader",
    "Source",
    "YoloFolder",
    "open_native",
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
    root: str | os.PathLike,
    split: str,
    vocabulary: Vocabulary,
    *,
    cache: str | os.PathLike | None = None,
    **options: Any,
) -> Source:
    """Opens a dataset by name: its records if `root` holds some, else its native layout.

    Args:
        dataset: its name; one outside `schema.DATASETS` is a custom dataset.
        root: the dataset's folder; records may lie in a bucket (`gs://...`).
        split: `train`, `val`, or what the dataset calls its splits.
        vocabulary: gives the class indices.
        cache: where the listing of a very large set is kept between runs.
        **options: of the reader, see its class.

    Raises:
        DataError: the folder does not have the dataset's layout, or records are incomplete.
        ConfigError: an option has a wrong value, or is not what the records were made with.
    """
    if find_records(root, split) is None:
        return open_native(dataset, root, split, vocabulary, cache=cache, **options)
    records = RecordReader(dataset, root, split, vocabulary)
    other = {key: value for key, value in options.items() if records.options.get(key) != value}
    if other:
        raise ConfigError(
            f"{dataset}: the records in {root} were built with options {records.options}, got "
            f"{other}; drop the options, or build other records"
        )
    return records


def own_reader(root: str | os.PathLike, split: str, options: Mapping[str, Any]) -> type[Source]:
    """The reader for the layout of a custom dataset."""
    folder = pathlib.Path(root)
    is_stated = options.get("annotations") is not None
    layout = None if is_stated or not folder.is_dir() else find_layout(folder, split)
    kind = COCO if layout is None else layout.kind
    readers = {COCO: CocoFolder, YOLO: YoloFolder, LABELME: LabelMeFolder, COCOTREE: CocoTree}
    return readers[kind]


def open_native(
    dataset: str,
    root: str | os.PathLike,
    split: str,
    vocabulary: Vocabulary,
    *,
    cache: str | os.PathLike | None = None,
    **options: Any,
) -> Source:
    """Opens a dataset in its native layout, whatever else lies there; see `open_source`.

    Raises:
        DataError: the folder does not have the dataset's layout.
        ConfigError: an option has a wrong value.
    """
    if "://" in os.fspath(root):
        raise DataError(
            f"{dataset} {split}: no records in {root}, and native layouts are read from file "
            "systems only; mount the bucket, or build records into it (semsam data build)"
        )
    reader = SOURCES.get(dataset) or own_reader(root, split, options)
    own = {} if dataset in SOURCES else {"dataset": dataset}
    own |= {"cache": cache} if reader is SA1B else {}
    known = {
        name: parameter.annotation
        for name, parameter in inspect.signature(reader).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name not in own
    }
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ConfigError(
            f"{dataset}: unknown option {', '.join(unknown)}; its reader has "
            f"{', '.join(known) or 'none'}"
        )
    for name, value in options.items():
        number = finite(value) if known[name] is float and not isinstance(value, str) else value
        if not isinstance(number, known[name]):
            raise ConfigError(
                f"{dataset}: option {name} is {short(value)}; expected "
                f"{inspect.formatannotation(known[name])}"
            )
    return reader(root, split, vocabulary, **own, **options)
