"""Several clicks on one object: combine the tokens of their prompts into one mask.

The network answers every click on its own; nothing in it knows that two clicks mean the
same object, or that a click is negative. So the answers are combined:

1. Base: among the positive prompts' masks of the level that have pixels, the one that disagrees
   with the fewest clicks (a positive click outside, a negative one inside), then the one with the
   highest predicted IoU.
2. Every positive click still outside adds its own mask (the pixelwise maximum of the
   logits): of its tokens that contain the click, the one that covers the fewest negative
   clicks, of those the base's level if possible, else the highest predicted IoU.
3. Every negative click still inside carves its own mask out (the minimum with the negated
   logits): of its tokens that contain it and no positive click and leave at least half of the
   mask, the one with the highest predicted IoU; if none leaves half, the one that leaves most,
   unless that is less than a twentieth. Without such a token the mask stays as it is: a negative
   click corrects an object, it never erases it.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float

_KEPT_SHARE = 0.5
_LEAST_SHARE = 0.05


@dataclasses.dataclass(frozen=True)
class Combined:
    """One mask made of several prompts.

    Attributes:
        logits: float32 [h, w] at stride 4.
        bases: prompts whose mask of the token alone could be the base, the best first.
        score: predicted IoU of the base mask.
        prompt: index of the base mask's prompt.
        token: index of the base mask's token.
        disagreements: clicks that are still on the wrong side.
    """

    logits: Float[np.ndarray, "h w"]
    bases: tuple[int, ...]
    score: float
    prompt: int
    token: int
    disagreements: int


def combine_clicks(
    logits: Float[np.ndarray, "p k h w"],
    ious: Float[np.ndarray, "p k"],
    clicks: Float[np.ndarray, "c 2"],
    is_positive: Bool[np.ndarray, " c"],
    token: int,
) -> Combined:
    """Combines the prompts of one object at one level.

    Args:
        logits: masks at stride 4. The first `c` prompts are the clicks, in their order;
            a prompt after them is a box, which is positive and has no click to check.
        ious: predicted IoU of every mask.
        clicks: x, y as fractions of the canvas.
        is_positive: which clicks the object must contain; the others it must not.
        token: the token of the level asked for.
    """
    num_clicks = len(clicks)
    inside = logits_at(logits, clicks) > 0  # [p, k, c]
    wrong = (inside != is_positive).sum(-1)  # [p, k]
    bases = [p for p in range(len(logits)) if p >= num_clicks or is_positive[p]]
    is_empty = ~(logits[:, token] > 0).any((1, 2))
    bases.sort(key=lambda p: (is_empty[p], wrong[p, token], -ious[p, token]))
    base = bases[0]
    mask = logits[base, token]
    for c in np.flatnonzero(is_positive):
        if logits_at(mask[None, None], clicks[c : c + 1])[0, 0, 0] > 0:
            continue
        tokens = np.flatnonzero(inside[c, :, c])
        if len(tokens):
            negatives = (inside[c] & ~is_positive).sum(-1)
            best = min(tokens, key=lambda k: (negatives[k], k != token, -ious[c, k]))
            mask = np.maximum(mask, logits[c, best])
    for c in np.flatnonzero(~is_positive):
        if logits_at(mask[None, None], clicks[c : c + 1])[0, 0, 0] <= 0:
            continue
        tokens = np.flatnonzero(inside[c, :, c] & ~(inside[c] & is_positive).any(-1))
        if len(tokens):
            mask = _carve(mask, logits[c, tokens], ious[c, tokens])
    final = logits_at(mask[None, None], clicks)[0, 0] > 0
    return Combined(
        logits=mask,
        bases=tuple(bases),
        score=float(ious[base, token]),
        prompt=int(base),
        token=int(token),
        disagreements=int((final != is_positive).sum()),
    )


def _carve(
    mask: Float[np.ndarray, "h w"],
    candidates: Float[np.ndarray, "k h w"],
    ious: Float[np.ndarray, " k"],
) -> Float[np.ndarray, "h w"]:
    """Cuts one of the candidates out of a mask, if enough of it stays."""
    carved = np.minimum(mask, -candidates)
    left = (carved > 0).sum((1, 2)) / max(1, int((mask > 0).sum()))
    enough = left >= _KEPT_SHARE
    best = int(np.where(enough, ious, -np.inf).argmax()) if enough.any() else int(left.argmax())
    return carved[best] if left[best] >= _LEAST_SHARE else mask


def logits_at(
    logits: Float[np.ndarray, "p k h w"], xy: Float[np.ndarray, "c 2"]
) -> Float[np.ndarray, "p k c"]:
    """Bilinear value of every mask at every click (fractions of the canvas)."""
    height, width = logits.shape[-2:]
    x = np.clip(xy[:, 0] * width - 0.5, 0, width - 1)
    y = np.clip(xy[:, 1] * height - 0.5, 0, height - 1)
    x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
    x1, y1 = np.minimum(x0 + 1, width - 1), np.minimum(y0 + 1, height - 1)
    fx, fy = (x - x0).astype(np.float32), (y - y0).astype(np.float32)
    top = logits[..., y0, x0] * (1 - fx) + logits[..., y0, x1] * fx
    bottom = logits[..., y1, x0] * (1 - fx) + logits[..., y1, x1] * fx
    return top * (1 - fy) + bottom * fy
