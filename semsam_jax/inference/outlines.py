"""Outlines of masks as polygons along the edges of pixels, and back."""

import cv2
import numpy as np
from jaxtyping import Bool, Float

Polygon = list[list[float]]

_TOLERANCES_PX = (1.0, 0.75, 0.5)
_CHANGED_SHARE = 0.005
# Directions clockwise: right, down, left, up, as (x, y).
_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))


def mask_polygons(mask: Bool[np.ndarray, "h w"]) -> list[Polygon]:
    """Outer outlines of the pieces of a mask, large pieces first.

    A pixel is a unit square and an outline runs along its edges, so a 10x10 square gives a polygon
    of area 100, and a piece that is one pixel wide is kept. Outlines are simplified by at most
    one pixel as long as no more than 0.5 % of the piece changes. Holes are filled.

    Args:
        mask: the mask; touching corners connect pixels.

    Returns:
        Polygons as lists of (x, y) in pixels of the image, 0..w and 0..h.
    """
    count, pieces, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    polygons = []
    for piece in sorted(range(1, count), key=lambda i: -int(stats[i, cv2.CC_STAT_AREA])):
        x, y, width, height = (int(v) for v in stats[piece, : cv2.CC_STAT_AREA])
        window = pieces[y : y + height, x : x + width] == piece
        outline = _simplified(_outline(window), _filled(window))
        polygons.append((outline + np.array([x, y])).tolist())
    return polygons


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
    path = list(polygons[0])
    for other in polygons[1:]:
        points, more = np.array(path), np.array(other)
        distance = np.abs(points[:, None] - more[None]).sum(-1)
        i, j = np.unravel_index(int(distance.argmin()), distance.shape)
        path[i + 1 : i + 1] = [*other[j:], *other[: j + 1], path[i]]
    return path


def _filled(piece: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    outside = np.pad(~piece, 1, constant_values=True).astype(np.uint8)
    _, regions = cv2.connectedComponents(outside, connectivity=4)
    return (regions != regions[0, 0])[1:-1, 1:-1]


def _outline(piece: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "n 2"]:
    """Corners of the outer outline of a connected piece, clockwise on the screen."""
    padded = np.pad(piece, 1).tolist()
    start = (padded[1].index(True), 1)  # the upper left corner of the first pixel of the first row
    (x, y), direction = start, 0
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
        if (x, y) == start and direction == 0:
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
    outline: Float[np.ndarray, "n 2"], piece: Bool[np.ndarray, "h w"]
) -> Float[np.ndarray, "m 2"]:
    area = int(piece.sum())
    for tolerance in _TOLERANCES_PX:
        fewer = cv2.approxPolyDP(outline.astype(np.float32)[:, None], tolerance, True)[:, 0]
        if len(fewer) >= 3:
            changed = int((polygon_mask(fewer, *piece.shape) != piece).sum())
            if max(changed, abs(cv2.contourArea(fewer) - area)) <= _CHANGED_SHARE * area:
                return fewer.astype(np.float64)
    return outline
