"""Converts RLE masks to packed bits without an image-sized byte mask.

A COCO RLE is a list of positions, in column order, at which the value toggles. Each toggle is
mapped to the canvas by two lookup tables and drawn as one bit, and a cumulative XOR over the rows
fills the mask, so that the cost depends on the outline and the mask's box, not on the image.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Int64, UInt8

from data_pipelines.transforms.geometry import Placement
from semsam_jax.core.errors import DataError
from semsam_jax.core.rle import runs_of


@dataclasses.dataclass(frozen=True)
class PackedMask:
    """A non-empty mask on the canvas, cropped to its pixels.

    Attributes:
        bits: uint8 [rows, bytes], eight columns a byte, most significant bit first.
        top: canvas row of `bits[0]`.
        left_byte: canvas column / 8 of `bits[:, 0]`.
        box_px: (x0, y0, x1, y1) tight, x1 and y1 exclusive, canvas pixels.
        row_ends: int64 [rows] foreground pixels up to and including each row.
    """

    bits: UInt8[np.ndarray, "rows bytes"]
    top: int
    left_byte: int
    box_px: tuple[int, int, int, int]
    row_ends: Int64[np.ndarray, " rows"]

    @property
    def area_px(self) -> int:
        """Number of foreground pixels."""
        return int(self.row_ends[-1])

    def contains(self, x: int, y: int) -> bool:
        """Whether canvas pixel (x, y) is foreground."""
        row, byte = y - self.top, (x >> 3) - self.left_byte
        if not (0 <= row < self.bits.shape[0] and 0 <= byte < self.bits.shape[1]):
            return False
        return bool((self.bits[row, byte] >> (7 - (x & 7))) & 1)

    def pixel(self, rank: int) -> tuple[int, int]:
        """Returns (x, y) of the rank-th foreground pixel, counted row by row."""
        row = int(np.searchsorted(self.row_ends, rank, side="right"))
        before = int(self.row_ends[row - 1]) if row else 0
        columns = np.flatnonzero(np.unpackbits(self.bits[row]))
        return int(columns[rank - before]) + 8 * self.left_byte, row + self.top

    def paste(self, canvas_bits: UInt8[np.ndarray, "h bytes"]) -> None:
        """Writes the mask into a zeroed canvas of packed rows."""
        rows, width = self.bits.shape
        canvas_bits[self.top : self.top + rows, self.left_byte : self.left_byte + width] = self.bits


@dataclasses.dataclass(frozen=True)
class DrawTables:
    """Lookup tables of one placement, shared by all masks of an image."""

    height: int
    width: int
    flip: bool
    columns: np.ndarray  # image column of each canvas column, unflipped frame
    first_column: np.ndarray  # [width + 1] first canvas column at or right of an image column
    first_row: np.ndarray  # [height + 1] first canvas row at or below an image row
    num_rows: int


def draw_tables(placement: Placement) -> DrawTables:
    """Builds the tables that `draw_mask` reads."""
    rows, columns = placement.source_rows(), placement.source_columns()
    image_columns = placement.width - 1 - columns if placement.flip else columns
    return DrawTables(
        height=placement.height,
        width=placement.width,
        flip=placement.flip,
        columns=image_columns,
        first_column=np.searchsorted(columns, np.arange(placement.width + 1)),
        first_row=np.searchsorted(rows, np.arange(placement.height + 1)),
        num_rows=len(rows),
    )


def rle_toggles(rle: dict, height: int, width: int) -> Int64[np.ndarray, " toggles"]:
    """Reads a compressed COCO RLE as the sorted positions x * height + y where it toggles.

    The first toggle starts foreground. A toggle at the end is dropped.

    Raises:
        DataError: the size is not the image's, or the counts do not add up to it.
    """
    if tuple(rle["size"]) != (height, width):
        raise DataError(
            f"mask: size {tuple(rle['size'])} differs from the image's {(height, width)}; "
            f"mask and image must share one frame."
        )
    return np.cumsum(runs_of(rle))[:-1]


def toggles_area(toggles: Int64[np.ndarray, " toggles"], total: int) -> int:
    """Foreground pixels of a toggle list; `total` is height * width of the image."""
    ends = np.append(toggles, total) if len(toggles) % 2 else toggles
    return int((ends[1::2] - ends[::2]).sum())


def draw_mask(toggles: Int64[np.ndarray, " toggles"], tables: DrawTables) -> PackedMask | None:
    """Draws a mask on the canvas, nearest neighbour; None if it has no pixel there."""
    if not len(toggles) or not len(tables.columns):
        return None
    column, row = np.divmod(toggles, tables.height)
    unfinished = len(toggles) % 2 == 1
    left, right = int(column[0]), tables.width - 1 if unfinished else int(column[-1])
    # A run that leaves its column reaches the last row there, whatever the rows of its toggles.
    crosses = unfinished or bool((column[1::2] != column[::2]).any())
    if tables.flip:
        column = tables.width - 1 - column
        left, right = tables.width - 1 - right, tables.width - 1 - left
    begin, end = int(tables.first_column[left]), int(tables.first_column[right + 1])
    if begin >= end:
        return None
    starts = _column_starts(toggles, tables, begin, end)
    x, y = _carry(column, row, tables)
    inside = y < tables.num_rows
    full = crosses or not inside.all()
    x, y = x[inside], y[inside]
    if not full and not len(y):
        return None
    top = 0 if full else int(y.min())
    bottom = tables.num_rows if full else int(y.max())
    left_byte, right_byte = begin >> 3, ((end - 1) >> 3) + 1
    bits = np.zeros(
        (max(bottom, int(y.max(initial=0)) + 1) - top, right_byte - left_byte), np.uint8
    )
    _toggle(bits, x - 8 * left_byte, y - top)
    started = np.flatnonzero(starts) + begin
    _toggle(bits, started - 8 * left_byte, np.zeros_like(started))
    np.bitwise_xor.accumulate(bits, axis=0, out=bits)
    return _trim(bits, top, left_byte)


def subsample(mask: PackedMask, stride: int) -> PackedMask | None:
    """Keeps the pixel nearest each cell's centre, (i * stride + stride // 2); None if empty."""
    if stride == 1:
        return mask
    half = stride // 2
    rows = np.arange(mask.bits.shape[0]) + mask.top
    rows = rows[rows % stride == half]
    if not len(rows):
        return None
    pixels = np.unpackbits(mask.bits[rows - mask.top], axis=1)
    columns = np.arange(pixels.shape[1]) + 8 * mask.left_byte
    columns = columns[columns % stride == half]
    if not len(columns):
        return None
    cells = pixels[:, columns - 8 * mask.left_byte]
    first = int(columns[0]) // stride
    cells = np.pad(cells, ((0, 0), (first % 8, 0)))
    return _trim(np.packbits(cells, axis=1), int(rows[0]) // stride, first // 8)


def unpack_bits(bits: UInt8[np.ndarray, "*n bytes"]) -> Bool[np.ndarray, "*n pixels"]:
    """Packed rows to booleans."""
    return np.unpackbits(bits, axis=-1).astype(bool)


def _column_starts(toggles: np.ndarray, tables: DrawTables, begin: int, end: int) -> np.ndarray:
    """Whether a canvas column is already foreground when its image column begins."""
    heads = tables.columns[begin:end] * tables.height
    return np.searchsorted(toggles, heads, side="left") % 2 == 1


def _carry(
    column: np.ndarray, row: np.ndarray, tables: DrawTables
) -> tuple[np.ndarray, np.ndarray]:
    """Maps toggles in the image to the canvas; an image column may appear many times."""
    first = tables.first_column[column]
    copies = tables.first_column[column + 1] - first
    y = tables.first_row[row]
    if int(copies.max()) <= 1:
        shown = copies > 0
        return first[shown], y[shown]
    before = np.cumsum(copies) - copies
    within = np.arange(int(copies.sum())) - np.repeat(before, copies)
    return np.repeat(first, copies) + within, np.repeat(y, copies)


def _toggle(bits: np.ndarray, x: np.ndarray, y: np.ndarray) -> None:
    flat = bits.reshape(-1)
    weight = (128 >> (x & 7)).astype(np.uint8)
    np.bitwise_xor.at(flat, y * bits.shape[1] + (x >> 3), weight)


def _trim(bits: np.ndarray, top: int, left_byte: int) -> PackedMask | None:
    """Crops empty rows and bytes, and measures the rest."""
    row_counts = np.bitwise_count(bits).sum(axis=1, dtype=np.int64)
    rows = np.flatnonzero(row_counts)
    if not len(rows):
        return None
    y0, y1 = int(rows[0]), int(rows[-1]) + 1
    columns = np.flatnonzero(np.unpackbits(np.bitwise_or.reduce(bits, axis=0)))
    x0, x1 = int(columns[0]), int(columns[-1]) + 1
    byte0, byte1 = x0 >> 3, ((x1 - 1) >> 3) + 1
    shift = 8 * left_byte
    return PackedMask(
        bits=np.ascontiguousarray(bits[y0:y1, byte0:byte1]),
        top=top + y0,
        left_byte=left_byte + byte0,
        box_px=(x0 + shift, y0 + top, x1 + shift, y1 + top),
        row_ends=np.cumsum(row_counts[y0:y1]),
    )
