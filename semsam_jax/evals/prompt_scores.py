"""Device part of every prompt evaluation: decode, upsample, threshold, count pixels.

Masks stay on the device: only pixel counts per prompt and token are transferred or, if an
evaluation needs the masks themselves, bit-packed masks.

Axis letters: `b` images, `p` prompts of an image, `k` tokens, `t` targets of a prompt, `o` names
of objects, `r` names of parts, `h w` canvas, `y x` the frame that is scored: the canvas, or a
bucket that holds the stored image.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, UInt8

from semsam_jax.core.structs import Predictions, Prompts, Pyramid, TextTable
from semsam_jax.inference.labels import object_logits
from semsam_jax.models.heads import mask_logits

MASK_STRIDE = 4
"""Mask logits are predicted at a quarter of the canvas."""


@dataclasses.dataclass(frozen=True)
class PromptScores:
    """Pixel counts of the answers to `p` prompts; every count is exact.

    Attributes:
        pred_ious: float32 [p, k] quality that the model predicts for each token.
        intersection: float64 [p, k, t] pixels shared by token's mask and target.
        pred_area: float64 [p, k] pixels of each token's mask.
        target_area: float64 [p, t] pixels of each target.
        name_logits: float32 [p, k, o] and [p, k, r], how well each name of an object and of a part
            fits each token; None without names.
    """

    pred_ious: np.ndarray
    intersection: np.ndarray
    pred_area: np.ndarray
    target_area: np.ndarray
    name_logits: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def iou(self) -> np.ndarray:
        """IoU float64 [p, k, t]; 0 where prediction and target are both empty."""
        union = self.pred_area[..., None] + self.target_area[:, None, :] - self.intersection
        return self.intersection / np.maximum(union, 1.0)


@dataclasses.dataclass(frozen=True)
class PromptMasks:
    """Masks predicted for `p` prompts.

    Attributes:
        pred_ious: float32 [p, k].
        masks: bool [p, k, h, w] in the frame of the ground truth.
    """

    pred_ious: np.ndarray
    masks: np.ndarray


def upsample_by_4(logits: Float[Array, "*n h w"]) -> Float[Array, "*n h2 w2"]:
    """Bilinear upsampling by 4 with half-pixel centres and clamped borders.

    The four phases between two samples have fixed weights, so no gather and no dense
    resize matrix is needed.
    """
    return _upsample_axis(_upsample_axis(logits, -2), -1)


def _upsample_axis(x: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
    axis = x.ndim + axis
    stacked = jnp.stack(_phases(x, axis), axis=axis + 1)
    return stacked.reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])


def _phases(x: Float[Array, "..."], axis: int) -> list[Float[Array, "..."]]:
    """Every fourth sample of the upsampled axis, from the first, second, third and fourth on."""
    axis %= x.ndim
    size = x.shape[axis]
    first = jax.lax.slice_in_dim(x, 0, 1, axis=axis)
    last = jax.lax.slice_in_dim(x, size - 1, size, axis=axis)
    before = jnp.concatenate([first, jax.lax.slice_in_dim(x, 0, size - 1, axis=axis)], axis=axis)
    after = jnp.concatenate([jax.lax.slice_in_dim(x, 1, size, axis=axis), last], axis=axis)
    phases = []
    for phase in range(MASK_STRIDE):
        offset = (phase + 0.5) / MASK_STRIDE - 0.5
        other = before if offset < 0 else after
        phases.append(x * (1.0 - abs(offset)) + other * abs(offset))
    return phases


@functools.partial(jax.jit, static_argnums=0)
def encode(
    model: nn.Module, params: dict, image: UInt8[Array, "b h w 3"], size_hw: Int[Array, "b 2"]
) -> Pyramid:
    """Encodes the images."""
    return model.apply({"params": params}, image, size_hw, method="encode_image")


@dataclasses.dataclass(frozen=True)
class ScorePlan:
    """Static arguments of a program.

    Attributes:
        chunk: prompts of an image whose full-size masks are alive at the same time.
        isolate: prompts of an image do not see each other.
        frame_hw: size of the scored frame; None scores the canvas itself.
    """

    chunk: int
    isolate: bool
    frame_hw: tuple[int, int] | None


@functools.partial(jax.jit, static_argnums=(0, 7))
def count_pixels(
    model: nn.Module,
    params: dict,
    pyramid: Pyramid,
    prompts: Prompts,
    sizes: Int[Array, "2 b 2"],
    bits: UInt8[Array, "b p t y x8"],
    text: TextTable | None,
    plan: ScorePlan,
) -> tuple[
    Float[Array, "b p k"],
    Float[Array, "b p k t"],
    Float[Array, "b p k"],
    Float[Array, "b p t"],
    tuple[Float[Array, "b p k o"], Float[Array, "b p k r"]] | None,
]:
    """Pixels of every token's mask, of its targets and of what they share; and its names.

    Args:
        model: `SemanticSAM`.
        params: its parameters.
        pyramid: result of `encode`.
        prompts: [b, p].
        sizes: valid pixels of the canvas, and of the scored frame.
        bits: targets packed along x, zero outside the image.
        text: names, or None.
        plan: static arguments.

    Returns:
        Predicted quality, intersections, areas of masks, areas of targets, logits of names.
    """
    answers, names = _decode(model, params, pyramid, prompts, text, plan.isolate)

    def count(block):
        answers, bits = block
        truth = jnp.unpackbits(bits, axis=-1)
        counts = []
        for predicted, rows, columns in _pieces(answers, pyramid, sizes, plan.frame_hw):
            flat = predicted.reshape(*predicted.shape[:3], -1).astype(jnp.float32)
            target = truth[..., rows, columns]
            target = target.reshape(*target.shape[:3], -1).astype(jnp.float32)
            # Sums of zeros and ones below 2^24 are exact in float32.
            inter = jnp.einsum("bckx,bctx->bckt", flat, target, preferred_element_type=jnp.float32)
            counts.append((inter, flat.sum(-1), target.sum(-1)))
        return jax.tree.map(lambda *parts: sum(parts), *counts)

    counts = jax.lax.map(count, (_in_chunks(answers, plan.chunk), _in_chunks(bits, plan.chunk)))
    return answers.pred_ious, *(_from_chunks(x) for x in counts), names


@functools.partial(jax.jit, static_argnums=(0, 5))
def draw_masks(
    model: nn.Module,
    params: dict,
    pyramid: Pyramid,
    prompts: Prompts,
    sizes: Int[Array, "2 b 2"],
    plan: ScorePlan,
) -> tuple[Float[Array, "b p k"], UInt8[Array, "b p k y x8"]]:
    """Predicted quality and masks, packed along x; arguments as `count_pixels`."""
    answers, _ = _decode(model, params, pyramid, prompts, None, plan.isolate)

    def draw(answers):
        return jnp.packbits(_thresholded(answers, pyramid, sizes, plan.frame_hw), axis=-1)

    masks = _from_chunks(jax.lax.map(draw, _in_chunks(answers, plan.chunk)))
    return answers.pred_ious, masks


def _in_chunks(tree: Any, chunk: int) -> Any:
    """[b, p, ...] to [p / chunk, b, chunk, ...]."""
    return jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(x.shape[0], -1, chunk, *x.shape[2:]), 1, 0), tree
    )


def _from_chunks(x: Array) -> Array:
    """[p / chunk, b, chunk, ...] to [b, p, ...]."""
    return jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:])


def _decode(
    model: nn.Module,
    params: dict,
    pyramid: Pyramid,
    prompts: Prompts,
    text: TextTable | None,
    isolate: bool,
) -> tuple[Predictions, tuple[Float[Array, "b p k o"], Float[Array, "b p k r"]] | None]:
    """What masks need of the last layer, leading axes [b, p, k], and the logits of names."""
    answers = model.apply(
        {"params": params}, pyramid, prompts, text, isolate=isolate, method="decode_prompts"
    )
    last = jax.tree.map(lambda x: x[-1], answers)
    names = None
    if text is not None:
        objects, parts = object_logits(last, len(text.parts)), last.part_logits
        names = objects.astype(jnp.float32), parts.astype(jnp.float32)
    pred_ious = last.pred_ious.astype(jnp.float32)
    return Predictions(last.mask_embed, last.boxes, pred_ious, mask_limits=last.mask_limits), names


def _thresholded(
    answers: Predictions,
    pyramid: Pyramid,
    sizes: Int[Array, "2 b 2"],
    frame_hw: tuple[int, int] | None,
) -> Bool[Array, "b c k y x"]:
    logits = upsample_by_4(_logits(answers, pyramid))
    if frame_hw is not None:
        logits = jax.vmap(functools.partial(resize_valid, frame_hw=frame_hw))(logits, *sizes)
    height, width = logits.shape[-2:]
    return (logits > 0) & _valid(jnp.arange(height), jnp.arange(width), sizes[1])


def _pieces(
    answers: Predictions,
    pyramid: Pyramid,
    sizes: Int[Array, "2 b 2"],
    frame_hw: tuple[int, int] | None,
) -> Iterator[tuple[Bool[Array, "b c k _y _x"], slice, slice]]:
    """`_thresholded` in pieces, each with the rows and columns that it holds.

    On the canvas every fourth row and column is a piece, which avoids interleaving and stays in the
    cache.
    """
    if frame_hw is not None:
        yield _thresholded(answers, pyramid, sizes, frame_hw), slice(None), slice(None)
        return
    logits = _logits(answers, pyramid)
    height, width = (MASK_STRIDE * side for side in logits.shape[-2:])
    for row, of_rows in enumerate(_phases(logits, -2)):
        for column, piece in enumerate(_phases(of_rows, -1)):
            y, x = jnp.arange(row, height, MASK_STRIDE), jnp.arange(column, width, MASK_STRIDE)
            rows, columns = slice(row, None, MASK_STRIDE), slice(column, None, MASK_STRIDE)
            yield (piece > 0) & _valid(y, x, sizes[1]), rows, columns


def _logits(answers: Predictions, pyramid: Pyramid) -> Float[Array, "b c k h w"]:
    return mask_logits(answers.mask_embed, pyramid.mask_features, answers.mask_limits)


def _valid(
    y: Int[Array, " y"], x: Int[Array, " x"], size_hw: Int[Array, "b 2"]
) -> Bool[Array, "b 1 1 y x"]:
    """Which of these rows and columns lie in the image."""
    is_row = y[None, :, None] < size_hw[:, 0, None, None]
    is_column = x[None, None, :] < size_hw[:, 1, None, None]
    return (is_row & is_column)[:, None, None]


def resize_valid(
    logits: Float[Array, "*n h w"],
    from_hw: Int[Array, "2"],
    to_hw: Int[Array, "2"],
    frame_hw: tuple[int, int],
) -> Float[Array, "*n y x"]:
    """Bilinear resize of the valid pixels of a canvas to the first pixels of a frame.

    Half-pixel centres and clamped borders, no smoothing, as `cv2.resize` and PyTorch do it;
    both sizes may change without recompilation. Values beyond `to_hw` are meaningless.
    """
    for axis, size in ((-2, frame_hw[0]), (-1, frame_hw[1])):
        old, new = from_hw[axis], to_hw[axis]
        place = (jnp.arange(size) + 0.5) * (old / new) - 0.5
        place = jnp.clip(place, 0, old - 1)
        low = jnp.floor(place).astype(jnp.int32)
        high = jnp.minimum(low + 1, old - 1)
        share = place - low
        if axis == -2:
            share = share[:, None]
        share = share.reshape((1,) * (logits.ndim - share.ndim) + share.shape)
        lower, upper = jnp.take(logits, low, axis=axis), jnp.take(logits, high, axis=axis)
        logits = lower * (1 - share) + upper * share
    return logits
