"""Images of any size in tiles: where the tiles are, and masks merged across their seams.

Neighbours see the same pixels in the strip that they share. Two of their masks are one object if
they agree there: an IoU of at least one half within the strip, each with at most one of the
neighbour's, those of one level first. What is found to be one object is joined; all others stay.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool

from semsam_jax.core import rle
from semsam_jax.core.errors import PromptError
from semsam_jax.inference.found import FoundMask

TILE_OVERLAP = 128
"""Pixels that neighbouring tiles share by default."""

SAME = 0.5
"""IoU within a shared strip from which two masks are one object."""

_SAME_LEVEL_BONUS = 1.0
_SLAB = 2048
Box = tuple[int, int, int, int]


def checked_overlap(tile: int | None, overlap: int | None) -> int:
    """The overlap of tiles in pixels: the one asked for, or the default, at most half a tile.

    Raises:
        PromptError: tiles without meaning, or an overlap without tiles.
    """
    if tile is None:
        if overlap is not None:
            raise PromptError(
                f"tile_overlap: an overlap of {str(overlap)[:60]} has no effect without tile."
            )
        return TILE_OVERLAP
    if not _is_whole(tile) or not 128 <= tile <= 8192:
        raise PromptError(f"tile: got {str(tile)[:60]}; expected 128..8192 pixels.")
    if overlap is None:
        return min(TILE_OVERLAP, tile // 2)
    if not _is_whole(overlap) or not 16 <= overlap <= tile // 2:
        raise PromptError(
            f"tile_overlap: an overlap of {str(overlap)[:60]}; expected 16..{tile // 2} pixels, at "
            f"most half a tile."
        )
    return overlap


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def tile_boxes(image_hw: tuple[int, int], tile: int, overlap: int) -> list[Box]:
    """Tiles x0, y0, x1, y1 that cover an image, row by row; the last ones end at its border.

    All have the size of a tile, so that one program serves them, unless the image is smaller.
    """

    def starts(side: int) -> list[int]:
        if side <= tile:
            return [0]
        count = -(-(side - overlap) // (tile - overlap))
        return [min(i * (tile - overlap), side - tile) for i in range(count)]

    height, width = image_hw
    return [
        (x, y, min(x + tile, width), min(y + tile, height))
        for y in starts(height)
        for x in starts(width)
    ]


@dataclasses.dataclass(frozen=True, eq=False)
class _Piece:
    """A mask of one tile."""

    tile: Box
    mask: FoundMask  # in pixels of the tile
    packed: dict  # COCO RLE of the tile
    number: int


class SeamMerger:
    """Joins masks of tiles that come row by row.

    Memory: run lengths of every mask, and those of the strips of one row of tiles.
    """

    def __init__(self) -> None:
        self._pieces: list[_Piece] = []
        self._above: list[int] = []  # root of each piece, by union and find
        self._near: list[tuple[Box, list[_Piece]]] = []  # tiles that later ones can touch

    def add(self, tile: Box, masks: Sequence[FoundMask]) -> None:
        """Adds the masks of a tile, in its pixels, and joins them to those of its neighbours."""
        size = (tile[3] - tile[1], tile[2] - tile[0])
        pieces = []
        for mask in masks:
            number = len(self._pieces)
            piece = _Piece(tile, mask, rle.compress(mask.runs, size), number)
            self._pieces.append(piece)
            self._above.append(number)
            pieces.append(piece)
        # Tiles come row by row: one that ends above this one touches none of the later ones.
        self._near = [(box, rows) for box, rows in self._near if box[3] > tile[1]]
        for other, rows in self._near:
            strip = _common(tile, other)
            if strip is not None:
                self._join(_within(rows, strip), _within(pieces, strip))
        self._near.append((tile, pieces))

    def groups(self) -> Iterator[list[tuple[Box, FoundMask, dict]]]:
        """The pieces of each object: tile, mask and its COCO RLE, the largest piece first."""
        found: dict[int, list[_Piece]] = {}
        for piece in self._pieces:
            found.setdefault(self._root(piece.number), []).append(piece)
        for pieces in found.values():
            pieces.sort(key=lambda piece: -piece.mask.area)
            yield [(piece.tile, piece.mask, piece.packed) for piece in pieces]

    def _join(self, first: list[tuple[_Piece, dict]], second: list[tuple[_Piece, dict]]) -> None:
        if not first or not second:
            return
        ious = rle.mask_ious([m for _, m in first], [m for _, m in second])
        rank = ious.copy()
        for i, (a, _) in enumerate(first):
            for j, (b, _) in enumerate(second):
                rank[i, j] += _SAME_LEVEL_BONUS * (a.mask.token == b.mask.token)
        rank[ious < SAME] = -1
        for flat in np.argsort(-rank, axis=None, kind="stable"):
            i, j = divmod(int(flat), len(second))
            if rank[i, j] < 0:
                continue
            one, other = self._root(first[i][0].number), self._root(second[j][0].number)
            self._above[max(one, other)] = min(one, other)
            rank[i, :] = rank[:, j] = -1

    def _root(self, number: int) -> int:
        while self._above[number] != number:
            self._above[number] = self._above[self._above[number]]
            number = self._above[number]
        return number


def join_pieces(
    group: Sequence[tuple[Box, FoundMask, dict]], image_hw: tuple[int, int]
) -> FoundMask:
    """One mask in pixels of the image; its names, level and click are those of the largest piece.

    Predicted IoU and stability are means, weighted by area.
    """
    boxes = [mask.clean_box + np.array([tile[0], tile[1]] * 2) for tile, mask, _ in group]
    low = np.min([box[:2] for box in boxes], axis=0)
    high = np.max([box[2:] for box in boxes], axis=0)
    edges = []
    # Slab by slab: a mask as large as the image is never there as pixels.
    for x0 in range(int(low[0]), int(high[0]) + 1, _SLAB):
        x1 = min(x0 + _SLAB, int(high[0]) + 1)
        slab = np.zeros((int(high[1] - low[1]) + 1, x1 - x0), bool)
        for (tile, _, packed), box in zip(group, boxes, strict=True):
            left, right = max(int(box[0]), x0), min(int(box[2]) + 1, x1)
            if left < right:
                part = rle.decode_window(
                    packed,
                    left - tile[0],
                    int(box[1]) - tile[1],
                    right - tile[0],
                    int(box[3]) + 1 - tile[1],
                )
                top = int(box[1] - low[1])
                slab[top : top + len(part), left - x0 : right - x0] |= part
        edges.append(rle.run_edges(slab, (int(low[1]), x0), image_hw[0]))
    runs = rle.runs_of_edges(np.concatenate(edges), image_hw)
    weights = np.array([mask.area for _, mask, _ in group], np.float64)
    tile, largest, _ = group[0]
    tiles = np.array([tile for tile, _, _ in group])
    box = np.concatenate([low, high])
    return dataclasses.replace(
        largest,
        runs=runs,
        area=int(runs[1::2].sum()),
        clean_box=box,
        box=box,
        iou=float(np.average([mask.iou for _, mask, _ in group], weights=weights)),
        stability=float(np.average([mask.stability for _, mask, _ in group], weights=weights)),
        point=(largest.point[0] + tile[0], largest.point[1] + tile[1]),
        crop=(*tiles[:, :2].min(0).tolist(), *tiles[:, 2:].max(0).tolist()),
    )


def _common(a: Box, b: Box) -> Box | None:
    x0, y0, x1, y1 = max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def _within(pieces: Sequence[_Piece], strip: Box) -> list[tuple[_Piece, dict]]:
    """The pieces with pixels in a strip, with what of them lies there."""
    found = []
    for piece in pieces:
        x, y = piece.tile[:2]
        box = piece.mask.clean_box + np.array([x, y, x + 1, y + 1])  # ends exclusive
        common = _common((int(box[0]), int(box[1]), int(box[2]), int(box[3])), strip)
        if common is None:
            continue
        x0, y0, x1, y1 = common
        part: Bool[np.ndarray, "h w"] = np.zeros((strip[3] - strip[1], strip[2] - strip[0]), bool)
        part[y0 - strip[1] : y1 - strip[1], x0 - strip[0] : x1 - strip[0]] = rle.decode_window(
            piece.packed, x0 - x, y0 - y, x1 - x, y1 - y
        )
        if part.any():
            found.append((piece, rle.encode_mask(part)))
    return found
