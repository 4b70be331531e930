"""Result files: COCO RLE records and pictures, each of which appears whole or not at all."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image
from pycocotools import mask as coco_mask

from semsam_jax.core.errors import DataError


def encode_rle(mask: Bool[np.ndarray, "h w"]) -> dict:
    """Returns COCO RLE, `{"size": [h, w], "counts": ascii}`."""
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(v) for v in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode_rle(rle: dict) -> Bool[np.ndarray, "h w"]:
    """Inverse of `encode_rle`."""
    return coco_mask.decode({**rle, "counts": rle["counts"].encode("ascii")}).astype(bool)


def uncompressed_counts(mask: Bool[np.ndarray, "h w"]) -> list[int]:
    """Run lengths down the columns, starting with zeros (COCO's uncompressed RLE)."""
    flat = np.asfortranarray(mask).ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return [0, *runs] if flat[0] else runs


def box_xywh(mask: Bool[np.ndarray, "h w"]) -> list[float]:
    """Tight box x, y, width, height in pixels; zeros if the mask is empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return [0.0, 0.0, 0.0, 0.0]
    x, y = int(columns[0]), int(rows[0])
    return [float(x), float(y), float(columns[-1] - x + 1), float(rows[-1] - y + 1)]


def write_json(path: Path, content: object) -> None:
    """Writes JSON to a temporary file and renames it."""
    _write(path, lambda partial: partial.write_text(json.dumps(content, allow_nan=False)))


def write_picture(path: Path, picture: UInt8[np.ndarray, "h w 3"]) -> None:
    """Writes an image (format by suffix) to a temporary file and renames it."""
    _write(path, lambda partial: Image.fromarray(picture).save(partial, quality=92))


def write_segment_map(path: Path, segment_map: np.ndarray) -> None:
    """Writes segment ids as COCO panoptic PNG: id = R + 256 G + 65536 B."""
    ids = segment_map.astype(np.int64)
    write_picture(path, np.stack([ids >> s & 255 for s in (0, 8, 16)], -1).astype(np.uint8))


def make_folder(path: Path) -> Path:
    """Creates the output folder; DataError if that is impossible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"--out {path}: cannot make this folder ({error.strerror}); choose another."
        ) from error
    return path


def remove_partial(folder: Path, names: Sequence[str]) -> None:
    """Deletes leftovers of an interrupted write of these files."""
    for name in names:
        _partial(folder / name).unlink(missing_ok=True)


def _write(path: Path, write: Callable[[Path], object]) -> None:
    partial = _partial(path)
    try:
        write(partial)
        os.replace(partial, path)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror or error}); check the folder and the "
            f"free space."
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.stem}.partial{path.suffix}")
