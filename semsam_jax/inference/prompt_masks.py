"""Masks that answer one prompt, before they are brought to the size of the image."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float

from semsam_jax.inference.encoded_image import EncodedImage
from semsam_jax.inference.granularity import levels_by_area


@dataclasses.dataclass(frozen=True)
class PromptMask:
    """A mask of one request.

    Attributes:
        prompt: which of the request's prompts it comes from.
        token: which of the tokens of that prompt, or the nearest one to its granularity.
        logits: float32 [h, w] at stride 4.
        score: predicted IoU.
        disagreements: clicks that are on the wrong side of it.
        granularity: what was asked for, None for a level.
        name_column: token of the prediction that has its names; None is `token`.
    """

    prompt: int
    token: int
    logits: Float[np.ndarray, "h w"]
    score: float
    disagreements: int = 0
    granularity: float | None = None
    name_column: int | None = None


def best_mask(
    encoded: EncodedImage,
    masks: list[PromptMask],
    area: float | None,
    given: Bool[np.ndarray, "ih iw"] | None,
) -> list[PromptMask]:
    """The best one: nearest to an area, most like a given mask, or by predicted IoU."""
    if area is None:
        like = [0.0 if given is None else -encoded.resemblance(m.logits, given) for m in masks]
        order = [
            masks[i]
            for i in sorted(
                range(len(masks)),
                key=lambda i: (masks[i].disagreements, like[i], -masks[i].score),
            )
        ]
    else:
        areas = np.array([encoded.area_fraction(mask.logits) for mask in masks])
        order = [masks[i] for i in levels_by_area(areas, area)]
    # A level that is empty at the size of the image answers nothing.
    return [next((mask for mask in order if not encoded.is_empty(mask.logits)), order[0])]


def filled_mask(
    mask: PromptMask, singles: Float[np.ndarray, "p h w"], encoded: EncodedImage
) -> PromptMask:
    """The mask, or the first single answer that has pixels if it has none itself."""
    if not encoded.is_empty(mask.logits):
        return mask
    others = (dataclasses.replace(mask, logits=single) for single in singles)
    return next((other for other in others if not encoded.is_empty(other.logits)), mask)
