"""Outlines of masks as polygons along the edges of pixels, and back."""

from collections.abc import Iterator

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int

Polygon = list[list[float]]

_TOLERANCES_PX = (1.0, 0.75, 0.5)
_CHANGED_SHARE = 0.005
# Directions clockwise: right, down, left, up, as (x, y).
_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))


def mask_polygons(mask: Bool[np.ndarray, "h w"]) -> list[Polygon]:
    """Outer outlines of the pieces of a mask, large pieces first; `joined_polygon` keeps holes.

    A pixel is a unit square and an outline runs along its edges, so a 10x10 square gives a polygon
    of area 100, and a piece that is one pixel wide is kept. Outlines are simplified by at most
    one pixel as long as no more than 0.5 % of the piece changes. Holes are filled.

    Args:
        mask: the mask; touching corners connect pixels.

    Returns:
        Polygons as lists of (x, y) in pixels of the image, 0..w and 0..h.
    """
    polygons = []
    for window, corner in _pieces(mask):
        outline = _simplified(_outline(window), _filled(window))
        polygons.append((outline + corner).tolist())
    return polygons


def joined_polygon(mask: Bool[np.ndarray, "h w"]) -> Polygon:
    """One polygon around all pieces of a mask that leaves its holes out, as YOLO wants it.

    Outlines of pieces and of holes are joined by bridges of zero width. Outlines of holes run
    counter-clockwise, so that the even-odd rule and the winding number both fill exactly the mask.

    Returns:
        (x, y) in pixels as from `mask_polygons`; empty for an empty mask.
    """
    rings = []
    for window, corner in _pieces(mask):
        filled = _filled(window)
        area = int(window.sum())
        rings.append((_simplified(_outline(window), filled, area) + corner).tolist())
        count, holes, stats, _ = cv2.connectedComponentsWithStats(
            (filled & ~window).astype(np.uint8), connectivity=4
        )
        for hole in range(1, count):
            x, y, width, height = (int(v) for v in stats[hole, : cv2.CC_STAT_AREA])
            inside = holes[y : y + height, x : x + width] == hole
            around = _simplified(_outline(inside, is_hole=True), inside, area)
            rings.append((around + corner + (x, y)).tolist())
    return joined(rings) if rings else []


def polygon_mask(
    polygon: Polygon | Float[np.ndarray, "n 2"], height: int, width: int
) -> Bool[np.ndarray, "h w"]:
    """Pixels whose centres are inside a polygon, bool [h, w]."""
    x, y = np.asarray(polygon, np.float64).T
    x1, y1 = np.roll(x, -1), np.roll(y, -1)
    flips = np.zeros((height, width + 1), np.int32)
    for row in range(max(0, int(np.floor(y.min() - 0.5))), min(height, int(np.ceil(y.max())))):
        centre = row + 0.5
        crossing = (y <= centre) != (y1 <= centre)
        if crossing.any():
            share = (centre - y[crossing]) / (y1[crossing] - y[crossing])
            at = x[crossing] + share * (x1[crossing] - x[crossing])
            columns = np.clip(np.ceil(at - 0.5), 0, width).astype(int)
            np.add.at(flips[row], columns, 1)
    return (np.cumsum(flips[:, :-1], axis=1) % 2).astype(bool)


def joined(polygons: list[Polygon]) -> Polygon:
    """Joins polygons into one by bridges of zero width (YOLO allows one polygon per object)."""
    path = np.array(polygons[0])
    for polygon in polygons[1:]:
        ring = np.array(polygon)
        # A short bridge; the shortest would take a distance for every pair of corners.
        start = _nearest(path, ring[0])
        end = _nearest(ring, path[start])
        start = _nearest(path, ring[end])
        path = np.concatenate([path[: start + 1], ring[end:], ring[: end + 1], path[start:]])
    return path.tolist()


def _nearest(points: Float[np.ndarray, "n 2"], place: Float[np.ndarray, "2"]) -> int:
    return int(np.abs(points - place).sum(1).argmin())


def _pieces(
    mask: Bool[np.ndarray, "h w"],
) -> Iterator[tuple[Bool[np.ndarray, "h2 w2"], Int[np.ndarray, "2"]]]:
    """The connected pieces of a mask, large ones first: window and its upper left corner (x, y)."""
    count, pieces, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    for piece in sorted(range(1, count), key=lambda i: -int(stats[i, cv2.CC_STAT_AREA])):
        x, y, width, height = (int(v) for v in stats[piece, : cv2.CC_STAT_AREA])
        yield pieces[y : y + height, x : x + width] == piece, np.array([x, y])


def _filled(piece: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    outside = np.pad(~piece, 1, constant_values=True).astype(np.uint8)
    _, regions = cv2.connectedComponents(outside, connectivity=4)
    return (regions != regions[0, 0])[1:-1, 1:-1]


def _outline(piece: Bool[np.ndarray, "h w"], is_hole: bool = False) -> Float[np.ndarray, "n 2"]:
    """Corners of the outer outline of a connected piece, clockwise on the screen.

    With `is_hole` the piece is a hole, connected by edges, whose outline runs counter-clockwise.
    """
    padded = np.pad(piece, 1)
    # The upper left corner of the first pixel of the first row; right of the path is the mask.
    (x, y), direction = start = (int(padded[1].argmax()), 1), int(is_hole)
    padded = (padded ^ is_hole).tolist()
    corners = []
    while True:
        corners.append((x - 1, y - 1))
        # Along an edge, with the piece on the right hand, until the direction changes.
        turn = 0
        while not turn:
            dx, dy = _STEPS[direction]
            x, y = x + dx, y + dy
            right, left = _ahead(padded, x, y, direction)
            if left:
                turn = -1
            elif not right:
                turn = 1
        direction = (direction + turn) % 4
        if ((x, y), direction) == start:
            return np.array(corners, np.float64)


def _ahead(padded: list[list[bool]], x: int, y: int, direction: int) -> tuple[bool, bool]:
    """The pixels ahead of a corner, to the right and to the left of the direction."""
    upper_left, upper_right = padded[y - 1][x - 1], padded[y - 1][x]
    lower_left, lower_right = padded[y][x - 1], padded[y][x]
    if direction == 0:
        return lower_right, upper_right
    if direction == 1:
        return lower_left, lower_right
    if direction == 2:
        return upper_left, lower_left
    return upper_right, upper_left


def _simplified(
    outline: Float[np.ndarray, "n 2"], piece: Bool[np.ndarray, "h w"], most: int | None = None
) -> Float[np.ndarray, "m 2"]:
    """Fewer corners; `most` bounds the area of which a share may change, in pixels."""
    area = int(piece.sum())
    limit = _CHANGED_SHARE * (area if most is None else min(area, most))
    for tolerance in _TOLERANCES_PX:
        fewer = cv2.approxPolyDP(outline.astype(np.float32)[:, None], tolerance, True)[:, 0]
        if len(fewer) >= 3:
            changed = int((polygon_mask(fewer, *piece.shape) != piece).sum())
            if max(changed, abs(cv2.contourArea(fewer) - area)) <= limit:
                return fewer.astype(np.float64)
    return outline
