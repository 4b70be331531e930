"""Result files: COCO RLE records and pictures, each of which appears whole or not at all."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int, UInt8
from PIL import Image
from pycocotools import mask as coco_mask

from semsam_jax.core.errors import DataError

_EXIF_ORIENTATION = 0x0112


def encode_rle(mask: Bool[np.ndarray, "h w"]) -> dict:
    """Returns COCO RLE, `{"size": [h, w], "counts": ascii}`."""
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(v) for v in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode_rle(rle: dict) -> Bool[np.ndarray, "h w"]:
    """Inverse of `encode_rle`."""
    return coco_mask.decode({**rle, "counts": rle["counts"].encode("ascii")}).astype(bool)


def run_lengths(
    window: Bool[np.ndarray, "h w"], top_left: tuple[int, int], image_hw: tuple[int, int]
) -> Int[np.ndarray, " m"]:
    """Run lengths of a mask down the columns, starting with zeros (COCO's uncompressed RLE).

    Args:
        window: the part of the mask that is not empty.
        top_left: row and column of the window in the image.
        image_hw: height and width of the whole mask.
    """
    height = image_hw[0]
    columns = np.zeros((window.shape[1], window.shape[0] + 2), bool)
    columns[:, 1:-1] = window.T
    column, row = np.nonzero(columns[:, 1:] != columns[:, :-1])
    edges = (column + top_left[1]) * height + row + top_left[0]
    starts, ends = edges[::2], edges[1::2]
    # A run down to the last row goes on in the first row of the next column.
    is_cut = starts[1:] != ends[:-1]
    bounds = np.empty(2 * (int(is_cut.sum()) + bool(len(starts))), np.int64)
    bounds[::2] = starts[np.concatenate([np.ones(len(starts[:1]), bool), is_cut])]
    bounds[1::2] = ends[np.concatenate([is_cut, np.ones(len(ends[:1]), bool)])]
    runs = np.diff(np.concatenate([[0], bounds, [height * image_hw[1]]]))
    return runs[:-1] if runs[-1] == 0 else runs


def compress_runs(runs: Int[np.ndarray, " m"], image_hw: tuple[int, int]) -> dict:
    """Run lengths as COCO RLE, the same as `encode_rle` of the mask."""
    rle = coco_mask.frPyObjects({"size": list(image_hw), "counts": runs.tolist()}, *image_hw)
    return {"size": [int(v) for v in rle["size"]], "counts": rle["counts"].decode("ascii")}


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
    """Writes an image (format by suffix) to a temporary file and renames it.

    PNG is packed at level 3: a third of the time of the default, for a tenth more bytes.
    """
    options = {"quality": 92, "compress_level": 3}
    _write(path, lambda partial: Image.fromarray(picture).save(partial, **options))


def link_jpeg(source: Path, pixels: UInt8[np.ndarray, "h w 3"], target: Path) -> None:
    """Puts an image at `target` as a JPEG whose stored pixels are the displayed ones.

    A plain JPEG is hard-linked, or copied to another disk; anything else is encoded again.

    Args:
        source: the file as the user gave it.
        pixels: the image as displayed.
        target: the new file; replaced if it exists.
    """
    with Image.open(source) as image:
        is_plain = image.format == "JPEG" and image.mode in ("RGB", "L")
        is_plain = is_plain and image.getexif().get(_EXIF_ORIENTATION, 1) == 1
    if not is_plain:
        _write(target, lambda partial: Image.fromarray(pixels).save(partial, quality=95))
        return

    def link(partial: Path) -> None:
        try:
            os.link(source.resolve(), partial)
        except OSError:  # another disk, or one without hard links
            shutil.copyfile(source, partial)

    _write(target, link)


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


def _write(path: Path, write: Callable[[Path], object]) -> None:
    partial = _partial(path)
    try:
        partial.unlink(missing_ok=True)  # never write into what a stopped run has linked
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
