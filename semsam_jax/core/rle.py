"""Masks as COCO run-length encoding (RLE): runs down the columns, zeros first.

Compressed RLE packs the runs six bits a character; `counts` is text in files and results, bytes in
memory, as pycocotools takes it. Untrusted RLE is validated here before it reaches its C code.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Int
from pycocotools import mask as coco_mask

from semsam_jax.core.errors import DataError

MAX_PIXELS = 1 << 31


def encode(mask: Bool[np.ndarray, "h w"]) -> dict:
    """Returns COCO RLE, `{"size": [h, w], "counts": text}`."""
    return _with_text(encode_mask(mask))


def decode(rle: Mapping) -> Bool[np.ndarray, "h w"]:
    """Mask of an RLE whose counts are text, bytes or a list of run lengths.

    Raises:
        DataError: it is no RLE, or its runs do not add up to its size.
    """
    height, width = _size(rle)
    runs = runs_of(rle)
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return np.ascontiguousarray(flat.reshape((height, width), order="F"))


def decode_window(rle: Mapping, x0: int, y0: int, x1: int, y1: int) -> Bool[np.ndarray, "h w"]:
    """A window of a mask, without the rest: what is decoded are its columns only."""
    height, width = _size(rle)
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise DataError(f"RLE: no window {x0},{y0},{x1},{y1} in a mask of {width}x{height}.")
    runs = runs_of(rle)
    ends = np.cumsum(runs)
    low, high = x0 * height, x1 * height
    first, last = np.searchsorted(ends, [low, high - 1], side="right")
    lengths = runs[first : last + 1].copy()
    lengths[-1] -= ends[last] - high
    lengths[0] -= low - (ends[first] - runs[first])
    flat = np.repeat(np.arange(first, last + 1) % 2 == 1, lengths)
    return np.ascontiguousarray(flat.reshape((height, x1 - x0), order="F")[y0:y1])


def runs_of(rle: Mapping) -> Int[np.ndarray, " m"]:
    """Run lengths of an RLE, checked; see `decode`."""
    height, width = _size(rle)
    counts = rle.get("counts")
    if isinstance(counts, str | bytes):
        runs = _unpacked(counts)
    elif isinstance(counts, list | tuple) and all(type(n) is int for n in counts):
        if any(not 0 <= n <= MAX_PIXELS for n in counts):
            raise DataError("RLE: a run length is negative or too large; expected pixels.")
        runs = np.array(counts, np.int64)
    else:
        raise DataError(f"RLE: counts are {type(counts).__name__}; expected text or whole numbers.")
    if len(runs) and (runs.min() < 0 or runs.max() > MAX_PIXELS):
        raise DataError("RLE: a run length is negative or too large; the text is damaged.")
    if int(runs.sum()) != height * width:
        raise DataError(
            f"RLE: runs of {int(runs.sum())} pixels for a mask of {width}x{height}; expected "
            f"{height * width}."
        )
    return runs


def run_lengths(
    window: Bool[np.ndarray, "h w"], top_left: tuple[int, int], image_hw: tuple[int, int]
) -> Int[np.ndarray, " m"]:
    """Run lengths of a mask down the columns, starting with zeros (COCO's uncompressed RLE).

    Args:
        window: the part of the mask that is not empty.
        top_left: row and column of the window in the image.
        image_hw: height and width of the whole mask.
    """
    return runs_of_edges(run_edges(window, top_left, image_hw[0]), image_hw)


def run_edges(
    window: Bool[np.ndarray, "h w"], top_left: tuple[int, int], height: int
) -> Int[np.ndarray, " e"]:
    """Where runs of ones start and end in each column: positions down the columns of the image.

    Args:
        window: a part of the mask, all of its rows that are not empty.
        top_left: row and column of the window in the image.
        height: of the image.
    """
    columns = np.zeros((window.shape[1], window.shape[0] + 2), bool)
    columns[:, 1:-1] = window.T
    column, row = np.nonzero(columns[:, 1:] != columns[:, :-1])
    return (column + top_left[1]) * height + row + top_left[0]


def runs_of_edges(edges: Int[np.ndarray, " e"], image_hw: tuple[int, int]) -> Int[np.ndarray, " m"]:
    """Run lengths from starts and ends, in the order of their positions."""
    starts, ends = edges[::2], edges[1::2]
    # A run that reaches the last row continues in the first row of the next column.
    is_cut = starts[1:] != ends[:-1]
    bounds = np.empty(2 * (int(is_cut.sum()) + bool(len(starts))), np.int64)
    bounds[::2] = starts[np.concatenate([np.ones(len(starts[:1]), bool), is_cut])]
    bounds[1::2] = ends[np.concatenate([is_cut, np.ones(len(ends[:1]), bool)])]
    runs = np.diff(np.concatenate([[0], bounds, [image_hw[0] * image_hw[1]]]))
    return runs[:-1] if runs[-1] == 0 else runs


def compress(runs: Int[np.ndarray, " m"], image_hw: tuple[int, int]) -> dict:
    """Run lengths as compressed COCO RLE, equal to `encode` of the mask."""
    return _with_text(compress_runs(runs.tolist(), image_hw))


def compress_runs(runs: Sequence[int], image_hw: tuple[int, int]) -> dict:
    """`compress` with counts as bytes; the runs must add up to the size."""
    return coco_mask.frPyObjects({"size": list(image_hw), "counts": list(runs)}, *image_hw)


def box_xywh(mask: Bool[np.ndarray, "h w"]) -> list[float]:
    """Tight box x, y, width, height in pixels; zeros if the mask is empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return [0.0, 0.0, 0.0, 0.0]
    x, y = int(columns[0]), int(rows[0])
    return [float(x), float(y), float(columns[-1] - x + 1), float(rows[-1] - y + 1)]


def encode_mask(mask: np.ndarray) -> dict:
    """Encodes a mask [h, w], inside where it is not zero, to {"size": [h, w], "counts": bytes}."""
    return coco_mask.encode(np.asfortranarray(mask, bool).view(np.uint8))


def encode_masks(masks: Sequence[np.ndarray]) -> list[dict]:
    """`encode_mask` of each."""
    return [encode_mask(mask) for mask in masks]


def draw_polygons(polygons: Sequence[Sequence[float]], image_hw: tuple[int, int]) -> dict:
    """Union of polygons, each x, y, x, y, ... in pixels, as RLE with counts as bytes.

    The rasteriser trusts its input: coordinates must be finite and near the image.
    """
    return merge_masks(coco_mask.frPyObjects(list(polygons), *image_hw))


def merge_masks(rles: Sequence[dict]) -> dict:
    """Union of masks of one image."""
    return coco_mask.merge(list(rles))


def mask_ious(first: Sequence[dict], second: Sequence[dict]) -> np.ndarray:
    """IoU of each mask of `first` with each of `second`, float64 [n, m]."""
    return coco_mask.iou(list(first), list(second), [0] * len(second))


def mask_coverage(first: Sequence[dict], second: Sequence[dict]) -> np.ndarray:
    """Share of each mask of `first` that lies inside each of `second`, float64 [n, m]."""
    # For a crowd region pycocotools divides by the area of the first mask.
    return coco_mask.iou(list(first), list(second), [1] * len(second))


def mask_areas(rles: Sequence[dict]) -> np.ndarray:
    """Pixels of each mask, float64 [n]."""
    # pycocotools casts the number of masks to uint8, which NumPy 2 refuses for 256.
    parts = [coco_mask.area(list(rles[k : k + 255])) for k in range(0, len(rles), 255)]
    return np.concatenate([np.zeros(0), *parts])


def mask_boxes(rles: Sequence[dict]) -> np.ndarray:
    """Tight box of each mask, xywh in pixels, float64 [n, 4]."""
    return coco_mask.toBbox(list(rles)).reshape(-1, 4) if len(rles) else np.zeros((0, 4))


def _with_text(rle: dict) -> dict:
    return {"size": [int(v) for v in rle["size"]], "counts": rle["counts"].decode("ascii")}


def _size(rle: Mapping) -> tuple[int, int]:
    size = rle.get("size") if isinstance(rle, Mapping) else None
    is_pair = isinstance(size, list | tuple) and len(size) == 2
    if not is_pair or not all(isinstance(n, int) and 0 < n <= MAX_PIXELS for n in size):
        raise DataError(f"RLE: size is {str(size)[:60]}; expected [height, width].")
    if size[0] * size[1] > MAX_PIXELS:
        raise DataError(f"RLE: size {list(size)} is larger than {MAX_PIXELS} pixels.")
    return int(size[0]), int(size[1])


def _unpacked(counts: str | bytes) -> Int[np.ndarray, " m"]:
    """Runs of compressed counts.

    A number is a run of characters from 48 on, five bits each, lowest first; 32 says that another
    follows, 16 in the last one that it is negative. From the fourth on, a number is the
    difference to the one two before.
    """
    try:
        data = counts.encode("ascii") if isinstance(counts, str) else counts
    except UnicodeEncodeError as error:
        raise DataError(
            "RLE: counts hold a letter that is not ASCII; the text is damaged."
        ) from error
    codes = np.frombuffer(data, np.uint8).astype(np.int64) - 48
    if len(codes) and (codes.min() < 0 or codes.max() > 63):
        raise DataError("RLE: counts hold a letter that no RLE has; the text is damaged.")
    if not len(codes):
        return np.zeros(0, np.int64)
    is_last = (codes & 32) == 0
    if not is_last[-1]:
        raise DataError("RLE: counts end in the middle of a number; the text is cut short.")
    ends = np.flatnonzero(is_last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 8:
        raise DataError("RLE: counts hold a number of more than 8 digits; the text is damaged.")
    place = np.arange(len(codes)) - np.repeat(starts, lengths)
    values = np.add.reduceat((codes & 31) << (5 * place), starts)
    values -= np.where(codes[ends] & 16, np.int64(1) << (5 * lengths), 0)
    for first in (1, 2):  # differences: sums over every second number
        values[first::2] = np.cumsum(values[first::2])
    return values
