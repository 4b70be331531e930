"""Masks to COCO run-length encoding."""

from collections.abc import Sequence

import numpy as np
from pycocotools import mask as rle_codec


def encode_masks(masks: Sequence[np.ndarray]) -> list[dict]:
    """Encodes bool masks [h, w] to {"size": [h, w], "counts": bytes}."""
    return [rle_codec.encode(np.asfortranarray(mask, np.uint8)) for mask in masks]


def mask_areas(rles: Sequence[dict]) -> np.ndarray:
    """Pixels of each mask, float64 [n]."""
    # pycocotools holds the number of masks in a uint8 for a moment: NumPy 2 refuses 256.
    parts = [rle_codec.area(list(rles[k : k + 255])) for k in range(0, len(rles), 255)]
    return np.concatenate([np.zeros(0), *parts])


def mask_boxes(rles: Sequence[dict]) -> np.ndarray:
    """Tight box of each mask, xywh in pixels, float64 [n, 4]."""
    return rle_codec.toBbox(list(rles)).reshape(-1, 4) if len(rles) else np.zeros((0, 4))
