"""One dataset opened by itself, as the command-line tools do: with a vocabulary of its own."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from data_pipelines.schema import DATASETS
from data_pipelines.sources import Source, open_native, open_source
from data_pipelines.sources.coco_folder import read_class_names
from data_pipelines.sources.records import find_records, read_classes
from data_pipelines.vocabulary import build_vocabulary
from semsam_jax.core.errors import DataError


def open_alone(
    dataset: str,
    root: str | os.PathLike,
    split: str,
    options: Mapping[str, Any],
    *,
    is_native: bool = False,
) -> Source:
    """Opens a dataset; a name outside `schema.DATASETS` is a user's own COCO folder.

    Args:
        dataset: its name.
        root: its folder.
        split: which part of it.
        options: of the reader; an own folder needs `annotations`, the file with its classes.
        is_native: look for the native layout only, not for records.

    Raises:
        DataError: the folder has another layout, or an own folder's file is not named.
    """
    folder = None if is_native else find_records(root, split)
    if dataset in DATASETS:
        vocabulary = build_vocabulary([dataset])
    elif folder is not None:
        vocabulary = build_vocabulary([], extra={dataset: read_classes(folder)})
    elif "annotations" in options:
        classes = read_class_names(pathlib.Path(root) / options["annotations"])
        vocabulary = build_vocabulary([], extra={dataset: classes})
    else:
        raise DataError(
            f"{dataset}: not one of {list(DATASETS)}, so a COCO folder of your own; wanted "
            'the file: --options \'{"annotations": "train.json"}\''
        )
    opener = open_native if is_native else open_source
    return opener(dataset, root, split, vocabulary, **options)
