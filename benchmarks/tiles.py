"""Tiles against the whole: how many masks of one are in the other, and memory of a large image.

    python -m benchmarks.tiles                        # an image that fits, looked at in both ways
    python -m benchmarks.tiles --image FILE --tile 512
    python -m benchmarks.tiles --side 20000           # memory of reading and joining

A mask is found again if a mask of the other way has an IoU of at least 0.5 (0.75) with it; masks
of less than 0.1 % of the image are left out. Doubles are pairs of one way with an IoU above 0.8.
`--side` makes a TIFF file of random squares and answers each tile with the squares that it shows:
what is measured is the memory of windows, run lengths and seams, not that of a network, which is
that of one tile.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from semsam_jax import load_model
from semsam_jax.core import rle
from semsam_jax.inference.found import FoundMask
from semsam_jax.inference.images import load_image
from semsam_jax.inference.large_images import open_large
from semsam_jax.inference.mask_generator import MaskGenerator
from semsam_jax.inference.mask_selection import inclusive_box
from semsam_jax.inference.tiles import SeamMerger, join_pieces, tile_boxes

_LEAST_AREA = 0.001


def main() -> None:
    """Prints a table, or the memory."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--image", default="tests/data/coffee.jpg")
    parser.add_argument("--tile", type=int, default=256)
    parser.add_argument("--overlap", type=int, default=64)
    parser.add_argument("--points-per-side", type=int, default=16)
    parser.add_argument("--checkpoint")
    parser.add_argument(
        "--quality", type=float, help="least predicted IoU and stability (default: the model's)"
    )
    parser.add_argument("--side", type=int, help="measure the memory of an image of this side")
    args = parser.parse_args()
    if args.side:
        measure_memory(args.side)
    else:
        compare(args)


def compare(args: argparse.Namespace) -> None:
    """Looks at one image as a whole and in tiles."""
    image, model = load_image(args.image), load_model(args.checkpoint)
    found = {}
    for way, tiles in (("whole", {}), ("tiles", {"tile": args.tile, "tile_overlap": args.overlap})):
        generator = MaskGenerator(
            model,
            points_per_side=args.points_per_side,
            pred_iou_thresh=args.quality,
            stability_score_thresh=args.quality,
            output_mode="coco_rle",
            **tiles,
        )
        start = time.perf_counter()
        records = generator.generate(image)
        seconds = time.perf_counter() - start
        large = [r for r in records if r["area"] >= _LEAST_AREA * image[..., 0].size]
        found[way] = [r["segmentation"] for r in large]
        doubles = int((np.triu(ious(found[way], found[way]), 1) > 0.8).sum())
        print(
            f"{way}: {len(records)} masks, {len(large)} of size, {doubles} doubles, {seconds:.1f} s"
        )
    for way, other in (("whole", "tiles"), ("tiles", "whole")):
        best = ious(found[way], found[other]).max(1, initial=0)
        print(
            f"of {way} in {other}: {100 * (best >= 0.5).mean():.0f} % at 0.5, "
            f"{100 * (best >= 0.75).mean():.0f} % at 0.75"
        )


def ious(first: list, second: list) -> np.ndarray:
    """IoU of every pair, float64 [n, m].

    Args:
        first: n masks as COCO RLE.
        second: m masks.
    """
    if not first or not second:
        return np.zeros((len(first), len(second)))
    return coco_mask.iou(first, second, [0] * len(second))


def measure_memory(side: int, tile: int = 1024, overlap: int = 128) -> None:
    """Prints the peak memory of windows, run lengths and seams for squares in a large TIFF file.

    Args:
        side: of the square image, pixels.
        tile: side of a tile, pixels.
        overlap: what neighbouring tiles share, pixels.
    """
    import rasterio

    rng = np.random.default_rng(0)
    squares = [
        (*rng.integers(0, side - 400, 2).tolist(), int(rng.integers(20, 400)))
        for _ in range(side * side // 80_000)
    ]
    squares.append((0, 0, side))  # one mask as large as the image
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.tif"
        about = {"width": side, "height": side, "count": 3, "dtype": "uint8", "tiled": True}
        with rasterio.open(path, "w", compress="deflate", **about) as file:
            row = np.zeros((3, 256, side), np.uint8)
            for y in range(0, side, 256):
                h = min(256, side - y)
                file.write(row[:, :h], window=((y, y + h), (0, side)))
        start, merger = time.perf_counter(), SeamMerger()
        with open_large(path) as source:
            for box in tile_boxes(source.image_hw, tile, overlap):
                merger.add(box, _squares_in(source.read(*box), squares, box))
        joined = [join_pieces(group, (side, side)) for group in merger.groups()]
        packed = [rle.compress(mask.runs, (side, side)) for mask in joined]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    whole = max(mask.area for mask in joined) == side * side
    print(
        f"{side}x{side}: {len(squares)} objects, {len(packed)} masks, the largest is "
        f"{'whole' if whole else 'cut'}; peak {peak:.2f} GB, {time.perf_counter() - start:.0f} s"
    )


def _squares_in(pixels: np.ndarray, squares: list, box: tuple[int, int, int, int]) -> list:
    x0, y0, x1, y1 = box
    assert pixels.shape == (y1 - y0, x1 - x0, 3)
    found = []
    for x, y, size in squares:
        left, top = max(x, x0) - x0, max(y, y0) - y0
        right, bottom = min(x + size, x1) - x0, min(y + size, y1) - y0
        if left >= right or top >= bottom:
            continue
        window = np.ones((bottom - top, right - left), bool)
        runs = rle.run_lengths(window, (top, left), (y1 - y0, x1 - x0))
        clean = inclusive_box(window) + np.array([left, top] * 2)
        found.append(
            FoundMask(
                runs=runs,
                area=window.size,
                clean_box=clean,
                changed=False,
                box=clean,
                iou=0.9,
                stability=0.9,
                point=(0.0, 0.0),
                token=size % 6,
                crop=(0, 0, x1 - x0, y1 - y0),
                object=None,
                part=None,
            )
        )
    return found


if __name__ == "__main__":
    main()
