"""napari: reads result files as layers of labels.

`masks.json` of `semsam segment` and of `Segments.save`, and the files of `semsam auto`, become one
layer of labels for each level (masks of a level overlap little), with names and scores as features.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from semsam_jax.core.errors import DataError
from semsam_jax.inference.convert_results import (
    record_mask,
    record_name,
    record_score,
    to_label_map,
)

Layer = tuple[np.ndarray, dict, str]


def get_reader(path: str | list[str]) -> Callable[[str | list[str]], list[Layer]] | None:
    """Reader contribution of napari: a function for paths that are results, None for others."""
    paths = [path] if isinstance(path, str) else path
    if not paths or not all(_is_results(Path(one)) for one in paths):
        return None
    return read_layers


def read_layers(path: str | list[str]) -> list[Layer]:
    """Layers of result files.

    Args:
        path: of one file, or of several.

    Returns:
        A layer for each file and level: label map [h, w], its keywords, and `labels`.

    Raises:
        DataError: a file is damaged.
    """
    paths = [path] if isinstance(path, str) else path
    return [layer for one in paths for layer in _layers(Path(one))]


def _layers(path: Path) -> list[Layer]:
    records = _records(path)
    if records is None:
        raise DataError(f"{path}: no results of semsam_jax; expected masks.json or a file of auto.")
    levels = sorted({int(record.get("level") or 0) for record in records})
    layers = []
    for level in levels:
        rows = [record for record in records if int(record.get("level") or 0) == level]
        height, width = record_mask(rows[0]).shape
        features = {
            "index": list(range(1, len(rows) + 1)),
            "name": [record_name(record) or "" for record in rows],
            "score": [record_score(record) for record in rows],
        }
        stem = path.parent.name if path.name == "masks.json" else path.stem
        name = f"{stem} level {level}" if level else stem
        keywords = {"name": name, "features": features, "metadata": {"source": str(path)}}
        layers.append((to_label_map(rows, height, width), keywords, "labels"))
    return layers


def _is_results(path: Path) -> bool:
    return path.suffix.lower() == ".json" and path.is_file() and _records(path) is not None


def _records(path: Path) -> list[Mapping] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    rows = content.get("annotations") if isinstance(content, Mapping) else content
    is_list = isinstance(rows, list) and bool(rows)
    if not is_list or not all(
        isinstance(row, Mapping) and isinstance(row.get("segmentation"), Mapping) for row in rows
    ):
        return None
    return rows
