"""Scaling an image and its annotations together, for the builder of the embedded sample."""

import dataclasses
import io
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from data_pipelines.sources.outlines import to_rle
from semsam_jax.core.rle import encode_mask


@dataclasses.dataclass(frozen=True)
class Shrink:
    """The change of size of one image.

    Attributes:
        old_hw: rows and columns of the source.
        new_hw: rows and columns in the sample.
    """

    old_hw: tuple[int, int]
    new_hw: tuple[int, int]

    def box_xywh(self, box: Sequence[float | int]) -> list[float]:
        """Returns a box (x, y, width, height) in pixels of the small image."""
        sy, sx = (new / old for new, old in zip(self.new_hw, self.old_hw, strict=True))
        return [round(v * s, 2) for v, s in zip(box, (sx, sy, sx, sy), strict=True)]

    def mask(self, mask: np.ndarray) -> np.ndarray:
        """Returns a mask [h,w], 0/1: a pixel is inside if at least half of it was."""
        image = Image.fromarray((mask != 0).astype(np.uint8) * 255)
        small = image.resize(self.new_hw[::-1], Image.Resampling.BOX)
        return (np.asarray(small) >= 128).astype(np.uint8)

    def labels(self, labels: np.ndarray) -> np.ndarray:
        """Returns a label image (ids, classes) by nearest neighbour."""
        rows = _centres(self.old_hw[0], self.new_hw[0])
        columns = _centres(self.old_hw[1], self.new_hw[1])
        return labels[rows][:, columns]

    def segmentation(self, segmentation: list | dict) -> dict | None:
        """Returns a COCO segmentation as RLE with text counts; None if nothing is left."""
        rle = to_rle(segmentation, *self.old_hw)
        if rle is None:
            return None
        small = self.mask(coco_mask.decode(rle))
        return text_rle(small) if small.any() else None


def text_rle(mask: np.ndarray) -> dict:
    """Returns COCO RLE with counts as text, ready for JSON."""
    rle = encode_mask(mask)
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def rle_box(rle: dict) -> list[int]:
    """Returns the box (x, y, width, height) of an RLE with text counts."""
    binary = {"size": rle["size"], "counts": rle["counts"].encode("ascii")}
    return [int(value) for value in coco_mask.toBbox(binary)]


def rle_area(rle: dict) -> int:
    """Returns the number of pixels of an RLE with text counts."""
    return int(coco_mask.area({"size": rle["size"], "counts": rle["counts"].encode("ascii")}))


def shrink_image(source: pathlib.Path, target: pathlib.Path, side: int, quality: int) -> Shrink:
    """Writes an image as RGB JPEG with its long side at most `side` pixels."""
    with Image.open(source) as image:
        image = image.convert("RGB")
    scale = min(1.0, side / max(image.size))
    size = tuple(max(1, round(length * scale)) for length in image.size)
    buffer = io.BytesIO()
    image.resize(size, Image.Resampling.LANCZOS).save(
        buffer, "JPEG", quality=quality, optimize=True, progressive=True
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(buffer.getvalue())
    return Shrink((image.height, image.width), (size[1], size[0]))


def _centres(old: int, new: int) -> np.ndarray:
    return np.minimum((np.arange(new) + 0.5) * old / new, old - 1).astype(np.int64)
