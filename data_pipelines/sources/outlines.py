"""Converts COCO masks of any notation to compressed RLE, validated before pycocotools sees them.

Its C code trusts the input: a coordinate of 1e8 takes gigabytes, NaN is undefined, a negative run
length overflows. So numbers must be finite, outlines are clipped to the image, and runs must fill
the mask exactly.
"""

from typing import Any

import numpy as np

from data_pipelines.decode import MAX_PIXELS
from data_pipelines.sources.values import finite, parse_int, short
from semsam_jax.core import rle

_MAX_LENGTH = 2_000_000
"""Maximum length of an outline in pixels: the rasteriser needs some 100 bytes for each."""


def to_rle(segmentation: Any, height: int, width: int) -> dict | None:
    """Converts COCO's three notations of a mask to compressed RLE.

    Args:
        segmentation: polygons [[x, y, ...], ...] (or one of them alone, or points as pairs),
            uncompressed RLE (counts is a list), or compressed RLE (counts is text).
        height: rows of the image, for polygons.
        width: columns of the image, for polygons.

    Returns:
        RLE with counts as bytes, or None if there is no outline (no polygon with three points).

    Raises:
        ValueError: the value has another type or is damaged; the message says where.
    """
    if isinstance(segmentation, list):
        polygons = [_polygon(points, place) for place, points in enumerate(_listed(segmentation))]
        wide = [_cut(polygon, height, width) for polygon in polygons if len(polygon) >= 3]
        if not wide:
            return None
        flat = [polygon.reshape(-1).tolist() for polygon in wide if len(polygon) >= 3]
        if not flat:  # it lies outside the image
            return rle.encode_mask(np.zeros((height, width), np.bool_))
        return rle.draw_polygons(flat, (height, width))
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= set(segmentation):
        raise ValueError(f"segmentation is {short(segmentation)}, expected polygons or COCO RLE")
    size = segmentation["size"]
    sides = [parse_int(side) for side in size] if isinstance(size, list) else []
    if len(sides) != 2 or None in sides or not all(0 < side < 2**31 for side in sides):
        raise ValueError(f"RLE size is {short(size)}, expected [height, width]")
    rows, columns = sides
    if rows * columns > MAX_PIXELS:
        raise ValueError(
            f"RLE size is {rows}x{columns}, expected at most {MAX_PIXELS // 10**6} million pixels"
        )
    counts = segmentation["counts"]
    if isinstance(counts, list):
        return {"size": [rows, columns], "counts": _compressed(counts, rows, columns)}
    if not isinstance(counts, (str, bytes)):
        raise ValueError(f"RLE counts are {short(counts)}, expected text or a list of run lengths")
    try:
        data = counts.encode("ascii") if isinstance(counts, str) else counts
    except UnicodeEncodeError as error:
        raise ValueError(f"RLE counts hold {counts[error.start]!a}, expected ASCII") from error
    packed = {"size": [rows, columns], "counts": data}
    rle.runs_of(packed)
    return packed


def is_in_fractions(segmentation: Any) -> bool:
    """Whether every coordinate of the polygons, which `to_rle` accepts, lies between 0 and 1.

    In pixels that is less than the first one; tools that count in fractions write it.
    """
    if not isinstance(segmentation, list):
        return False
    polygons = [_polygon(points, place) for place, points in enumerate(_listed(segmentation))]
    values = np.concatenate([polygon.reshape(-1) for polygon in polygons])
    return bool(values.min() >= 0 and 0 < values.max() <= 1)


def _listed(segmentation: list) -> list:
    """A list of polygons, also if the file has a single one without the outer list."""
    is_flat = bool(segmentation) and not isinstance(segmentation[0], (list, dict))
    is_pairs = len(segmentation) >= 3 and all(_is_pair(point) for point in segmentation)
    return [segmentation] if is_flat or is_pairs else segmentation


def _is_pair(point: Any) -> bool:
    return isinstance(point, list) and len(point) == 2 and not isinstance(point[0], (list, dict))


def _polygon(points: Any, place: int) -> np.ndarray:
    """One polygon as float64 [n,2].

    Raises:
        ValueError: names the coordinate that is invalid.
    """
    if not isinstance(points, list):
        raise ValueError(f"polygon {place} is {short(points)}, expected a list of x, y, x, y, ...")
    if points and all(_is_pair(point) for point in points):
        points = [value for pair in points for value in pair]
    numbers = [finite(value) for value in points]
    if None in numbers:
        at = numbers.index(None)
        raise ValueError(
            f"coordinate {at} of polygon {place} is {short(points[at])}, expected a finite number"
        )
    if len(numbers) % 2:
        raise ValueError(f"polygon {place} has {len(numbers)} numbers, expected pairs of x and y")
    return np.array(numbers, np.float64).reshape(-1, 2)


def _cut(polygon: np.ndarray, height: int, width: int) -> np.ndarray:
    """Clips a polygon far outside the image; its inside does not change.

    Raises:
        ValueError: the outline is too long to be drawn.
    """
    # Small excesses are not clipped, so that edges are rounded as by pycocotools.
    margin = 100.0 + max(height, width)
    low = np.array([-margin, -margin])
    high = np.array([width + margin, height + margin])
    for axis in (0, 1):
        if (polygon[:, axis] < low[axis]).any():
            polygon = _half_plane(polygon, axis, low[axis], 1.0)
        if len(polygon) and (polygon[:, axis] > high[axis]).any():
            polygon = _half_plane(polygon, axis, high[axis], -1.0)
        if len(polygon) < 3:
            return polygon[:0]
    length = float(np.abs(polygon - np.roll(polygon, 1, axis=0)).max(axis=1).sum())
    if length > _MAX_LENGTH:
        raise ValueError(
            f"the outline has {len(polygon)} points and is {length:.0f} pixels long, expected at "
            f"most {_MAX_LENGTH} pixels"
        )
    return polygon


def _half_plane(polygon: np.ndarray, axis: int, bound: float, sign: float) -> np.ndarray:
    """Sutherland-Hodgman clipping at one line: keeps sign * coordinate >= sign * bound."""
    before = np.roll(polygon, 1, axis=0)
    inside = sign * polygon[:, axis] >= sign * bound
    crosses = inside != np.roll(inside, 1)
    # Halved, since the difference of two huge numbers would overflow.
    start, end = before[:, axis] / 2, polygon[:, axis] / 2
    span = np.where(crosses, end - start, 1.0)
    share = np.where(crosses, (bound / 2 - start) / span, 0.0)[:, None]
    crossing = before * (1 - share) + polygon * share
    crossing[:, axis] = bound
    pairs = np.stack([crossing, polygon], axis=1).reshape(-1, 2)
    return pairs[np.stack([crosses, inside], axis=1).reshape(-1)]


def _compressed(counts: list, rows: int, columns: int) -> bytes:
    """Compresses run lengths that fill the mask.

    Raises:
        ValueError: names the invalid run length, or the wrong sum.
    """
    lengths = [parse_int(value) for value in counts]
    for at, length in enumerate(lengths):
        if length is None or length < 0:
            raise ValueError(f"run length {at} is {short(counts[at])}, expected 0 or more pixels")
    if sum(lengths) != rows * columns:
        raise ValueError(f"RLE counts add up to {sum(lengths)}, expected {rows}x{columns} pixels")
    return rle.compress_runs(lengths, (rows, columns))["counts"]
