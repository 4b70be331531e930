"""Opens a single dataset with its own vocabulary, for command-line tools."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from data_pipelines.schema import DATASETS
from data_pipelines.sources import Source, open_native, open_source
from data_pipelines.sources.coco_folder import read_class_names
from data_pipelines.sources.cocotree import read_labels
from data_pipelines.sources.layouts import COCO, COCOTREE, find_layout, layout_error
from data_pipelines.sources.records import find_records, read_classes, read_options
from data_pipelines.sources.shapes import own_names
from data_pipelines.sources.values import short
from data_pipelines.vocabulary import build_vocabulary
from semsam_jax.core.errors import ConfigError, DataError


def open_single_dataset(
    dataset: str,
    root: str | os.PathLike,
    split: str,
    options: Mapping[str, Any],
    *,
    is_native: bool = False,
) -> Source:
    """Opens a dataset; a name outside `schema.DATASETS` is a custom dataset.

    Args:
        dataset: its name.
        root: its folder.
        split: which part of it.
        options: of the reader.
        is_native: look for the native layout only, not for records.

    Raises:
        DataError: the folder has another layout.
        ConfigError: an option that the reader does not have.
    """
    taken = sorted({"dataset", "root", "split", "vocabulary", "cache"} & set(options))
    if taken:
        raise ConfigError(f"{dataset}: {', '.join(taken)} cannot be options of a reader")
    if dataset in DATASETS:
        built = None if is_native else find_records(root, split)
        parts = (options if built is None else read_options(built)).get("parts")
        lists = {"pascal_parts": parts} if dataset == "pascal_part" and parts else {}
        vocabulary = build_vocabulary([dataset], **lists)
    else:
        file = options.get("annotations")
        if not isinstance(file, str | None):
            raise ConfigError(f"{dataset}: option annotations is {short(file)}; expected a path")
        classes = custom_classes(dataset, root, split, annotations=file, is_native=is_native)
        vocabulary = build_vocabulary([], extra={dataset: classes})
    opener = open_native if is_native else open_source
    return opener(dataset, root, split, vocabulary, **options)


def has_split(root: str | os.PathLike, split: str) -> bool:
    """Whether a custom dataset has a split, as records or in one of the layouts."""
    if find_records(root, split) is not None:
        return True
    folder = pathlib.Path(root)
    return folder.is_dir() and find_layout(folder, split) is not None


def reader_options(*, pascal_part_tree: bool, ade20k_parts: bool) -> dict[str, dict[str, Any]]:
    """Reader options of a recipe's switches: dataset -> options.

    Those of switches that are off are stated, too, so that records built otherwise are refused.
    """
    return {
        "pascal_part": {"parts": "full" if pascal_part_tree else "merged"},
        "ade20k": {"parts": ade20k_parts},
    }


def custom_classes(
    dataset: str,
    root: str | os.PathLike,
    split: str,
    *,
    annotations: str | None = None,
    is_native: bool = False,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns (object names, part names) of a custom dataset, for `build_vocabulary(extra=)`.

    Args:
        dataset: the user's name for it.
        root: its folder, with records or in one of the layouts of `sources.layouts`.
        split: which part of it.
        annotations: the file below `root`; by default where `CocoFolder` looks.
        is_native: do not look for records.

    Raises:
        DataError: neither is there.
    """
    records = None if is_native else find_records(root, split)
    if records is not None:
        return read_classes(records)
    folder = pathlib.Path(root)
    if not folder.is_dir():
        raise DataError(
            f"{dataset}: root {root} is not a folder; {dataset} is none of {list(DATASETS)}, so "
            "expected the folder of your own dataset"
        )
    layout = find_layout(folder, split, annotations=annotations)
    if layout is None:
        raise layout_error(dataset, folder, split)
    if layout.kind == COCOTREE:
        return read_labels(layout.file)
    return read_class_names(layout.file) if layout.kind == COCO else own_names(layout)
