"""Masks of one crop in the mask generator: measured, drawn, cleaned and named.

A mask is an embedding until it has passed the filters; only then is it drawn at full size.
"""

import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from semsam_jax.core import rle
from semsam_jax.core.structs import Predictions
from semsam_jax.inference.guided import GuidedUpsampler
from semsam_jax.inference.labels import LabelSet, object_logits
from semsam_jax.inference.loading import low_res_logits
from semsam_jax.inference.mask_selection import clean_mask, inclusive_box, measure_masks
from semsam_jax.inference.preprocess import Frame
from semsam_jax.inference.results import ScoredName
from semsam_jax.inference.upsample import chunk_size, upsample_masks

_MEASURE_CHUNK = 64
_RENDER_CHUNK = 16


def measure_embeddings(
    embed: Float[np.ndarray, "n d"], features: Float[Array, "h w d"], frame: Frame, offset: float
) -> tuple[Float[np.ndarray, " n"], Int[np.ndarray, "n 4"]]:
    """Stability and boxes of masks at the size the network sees, in chunks of one static size.

    Args:
        embed: mask embeddings.
        features: mask features of the crop.
        frame: how the crop was shown to the network.
        offset: shift of the threshold for the stability, in logits.

    Returns:
        See `mask_selection.measure_masks`.
    """
    valid_hw = np.array(frame.resized_hw, np.int32)
    stride = frame.canvas_hw[0] // features.shape[0]
    stability, boxes = [], []
    for start in range(0, len(embed), _MEASURE_CHUNK):
        part = embed[start : start + _MEASURE_CHUNK]
        padded = np.pad(part, ((0, _MEASURE_CHUNK - len(part)), (0, 0)))
        logits = low_res_logits(padded, features)
        found = measure_masks(logits, valid_hw, offset, stride)
        stability.append(np.asarray(found[0])[: len(part)])
        boxes.append(np.asarray(found[1])[: len(part)])
    return np.concatenate(stability), np.concatenate(boxes)


def render_masks(
    embeds: Float[np.ndarray, "n d"],
    features: Float[Array, "h w d"],
    frame: Frame,
    image: UInt8[np.ndarray, "ih iw 3"] | None,
) -> Iterator[Bool[np.ndarray, "ih iw"]]:
    """Yields masks at the size of the crop, a few at a time.

    Args:
        embeds: mask embeddings.
        features: mask features of the crop.
        frame: how the crop was shown to the network.
        image: the crop, whose edges the masks follow; None upsamples without it.
    """
    guide = None if image is None else GuidedUpsampler(image, frame)
    step = chunk_size(_RENDER_CHUNK, frame.image_hw)
    for start in range(0, len(embeds), step):
        part = embeds[start : start + step]
        padded = np.pad(part, ((0, step - len(part)), (0, 0)))
        logits = low_res_logits(padded, features)
        if guide is None:
            yield from upsample_masks(logits, frame, frame.image_hw)[: len(part)]
        else:
            yield from guide.masks(np.asarray(logits)[: len(part)])


def clean_and_pack(
    mask: Bool[np.ndarray, "h w"],
    crop: tuple[int, int, int, int],
    image_hw: tuple[int, int],
    min_area: float | int,
) -> dict:
    """Removes small regions of a crop's mask; run lengths and boxes in image pixels.

    Only a window around the mask is processed. Its margin is as wide as the largest region that
    counts as small, so that no region is cut to below that size.

    Args:
        mask: in pixels of the crop.
        crop: x0, y0, x1, y1 of the crop in the image.
        image_hw: height and width of the image.
        min_area: smaller holes and islands are removed, pixels; 0 off.

    Returns:
        `runs`, `area`, `box`, `clean_box` and `changed` of a `FoundMask`.
    """
    margin = math.ceil(min_area)
    inner = inclusive_box(mask)
    box = inner + np.array([crop[0], crop[1]] * 2)
    left, top = (int(v) for v in np.maximum(box[:2] - margin, 0))
    right = min(int(box[2]) + 1 + margin, image_hw[1])
    bottom = min(int(box[3]) + 1 + margin, image_hw[0])
    window, changed = np.zeros((bottom - top, right - left), bool), False
    window[box[1] - top : box[3] + 1 - top, box[0] - left : box[2] + 1 - left] = mask[
        inner[1] : inner[3] + 1, inner[0] : inner[2] + 1
    ]
    if margin:
        window, changed = clean_mask(window, margin)
    return {
        "runs": rle.run_lengths(window, (top, left), image_hw),
        "area": int(window.sum()),
        "box": box,
        "clean_box": inclusive_box(window) + np.array([left, top] * 2) if changed else box,
        "changed": changed,
    }


def best_names(
    names: LabelSet | None,
    answer: Predictions,
    rows: Int[np.ndarray, " n"],
    tokens: Int[np.ndarray, " k"],
) -> list[tuple[ScoredName | None, ScoredName | None]]:
    """Best object and part name of masks, each None without names of its kind.

    Args:
        names: to choose from; None gives none.
        answer: of the decoder, for one image.
        rows: masks, counted [click, level].
        tokens: token of each level.
    """
    if names is None or names.is_empty:
        return [(None, None)] * len(rows)
    where = (0, rows // len(tokens), tokens[rows % len(tokens)])
    objects = np.asarray(object_logits(answer, len(names.parts)))[where]
    parts = np.asarray(answer.part_logits)[where]
    return [(names.best_object(o), names.best_part(p)) for o, p in zip(objects, parts, strict=True)]
