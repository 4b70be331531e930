"""Masks to COCO run-length encoding."""

from collections.abc import Sequence

import numpy as np
from pycocotools import mask as rle_codec


def encode_masks(masks: Sequence[np.ndarray]) -> list[dict]:
    """Encodes bool masks [h, w] to {"size": [h, w], "counts": bytes}."""
    return [rle_codec.encode(np.asfortranarray(mask, np.uint8)) for mask in masks]
