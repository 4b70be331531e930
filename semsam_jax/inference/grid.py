"""Clicks of the mask generator: a grid of points, in the whole image and in crops of it."""

import math

import numpy as np
from jaxtyping import Float


def point_grid(points_per_side: int) -> Float[np.ndarray, "n 2"]:
    """Centres of a square grid of cells in 0..1, row by row."""
    centres = (np.arange(points_per_side) + 0.5) / points_per_side
    x, y = np.meshgrid(centres, centres)
    return np.stack([x.ravel(), y.ravel()], 1)


def crop_boxes(
    image_hw: tuple[int, int], num_layers: int, overlap_ratio: float
) -> list[tuple[tuple[int, int, int, int], int]]:
    """The whole image, then 2**i x 2**i overlapping crops for each layer i, with the layer.

    A crop is x0, y0, x1, y1. Layers whose crops would be smaller than 32 pixels are left out.
    """
    height, width = image_hw
    boxes = [((0, 0, width, height), 0)]
    for layer in range(1, num_layers + 1):
        per_side = 2**layer
        overlap = int(overlap_ratio * min(image_hw) * 2 / per_side)
        sizes = [
            math.ceil((overlap * (per_side - 1) + side) / per_side) for side in (width, height)
        ]
        if min(sizes) < 32:
            break
        for iy in range(per_side):
            for ix in range(per_side):
                x0, y0 = (sizes[0] - overlap) * ix, (sizes[1] - overlap) * iy
                crop = (x0, y0, min(x0 + sizes[0], width), min(y0 + sizes[1], height))
                boxes.append((crop, layer))
    return boxes
