"""Device half of every prompt evaluation: decode, upsample, threshold, count pixels.

Masks never leave the device: what comes back are pixel counts per prompt and token, or,
where an evaluation needs the shapes themselves, masks packed to bits.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, UInt8

from semsam_jax.core.structs import Prompts, Pyramid
from semsam_jax.evals.samples import EvalSample
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
    """

    pred_ious: np.ndarray
    intersection: np.ndarray
    pred_area: np.ndarray
    target_area: np.ndarray

    @property
    def iou(self) -> np.ndarray:
        """IoU float64 [p, k, t]; 0 where prediction and target are both empty."""
        union = self.pred_area[..., None] + self.target_area[:, None, :] - self.intersection
        return self.intersection / np.maximum(union, 1.0)


@dataclasses.dataclass(frozen=True)
class PromptMasks:
    """Answers to `p` prompts as shapes.

    Attributes:
        pred_ious: float32 [p, k].
        masks: bool [p, k, h, w], valid pixels of the canvas.
    """

    pred_ious: np.ndarray
    masks: np.ndarray


@dataclasses.dataclass(frozen=True)
class PromptRunner:
    """Answers prompts on one image after the other with one compiled program per canvas.

    Attributes:
        model: `SemanticSAM` (or any linen module with its two methods).
        params: its parameters.
        prompts_per_call: prompts are padded to a multiple of this; it does not change a
            result, only speed and memory.
        masks_per_chunk: prompts whose full-size masks are alive at the same time.
        isolate: whether prompts of a call see each other (False: the released demo).
    """

    model: nn.Module
    params: dict
    prompts_per_call: int = 16
    masks_per_chunk: int = 4
    isolate: bool = True

    def encode(self, sample: EvalSample) -> Pyramid:
        """Runs the image half once; the pyramid stays on the device."""
        size_hw = np.asarray([sample.size_hw], np.int32)
        return _encode(self.model, self.params, sample.image[None], size_hw)

    def score(
        self,
        pyramid: Pyramid,
        sample: EvalSample,
        boxes: np.ndarray,
        type_index: np.ndarray,
        targets: list[list[np.ndarray]],
        max_targets: int = 1,
    ) -> PromptScores:
        """Counts pixels between every token's mask and every target of its prompt.

        Args:
            pyramid: result of `encode` for the same sample.
            sample: gives canvas and valid size.
            boxes: float32 [p, 4] cxcywh, fractions of the canvas.
            type_index: int [p].
            targets: per prompt at most `max_targets` masks, bool [h, w] of the valid size.
            max_targets: static width of the target axis.
        """
        if len(boxes) == 0:
            zero = np.zeros((0, 0, max_targets))
            return PromptScores(zero[..., 0].astype(np.float32), zero, zero[..., 0], zero[:, 0])
        height, width = sample.image.shape[:2]
        parts = []
        for first in range(0, len(boxes), self.prompts_per_call):
            rows = slice(first, first + self.prompts_per_call)
            bits = np.zeros((self.prompts_per_call, max_targets, height, width // 8), np.uint8)
            for row, masks in enumerate(targets[rows]):
                for column, mask in enumerate(masks[:max_targets]):
                    bits[row, column] = pack_on_canvas(mask, (height, width))
            parts.append(
                _score(
                    self.model,
                    self.params,
                    pyramid,
                    self._prompts(boxes[rows], type_index[rows]),
                    np.asarray(sample.size_hw, np.int32),
                    bits,
                    self._chunk(),
                    self.isolate,
                )
            )
        pred_ious, inter, pred, target = (np.concatenate(x) for x in zip(*parts, strict=True))
        count = len(boxes)
        as_float = [x[:count].astype(np.float64) for x in (inter, pred, target)]
        return PromptScores(pred_ious[:count], *as_float)

    def masks(
        self, pyramid: Pyramid, sample: EvalSample, boxes: np.ndarray, type_index: np.ndarray
    ) -> PromptMasks:
        """Returns the thresholded masks themselves, for clicks that depend on them."""
        size = self.prompts_per_call
        h, w = sample.size_hw
        ious, shapes = [], []
        for first in range(0, len(boxes), size):
            rows = slice(first, first + size)
            prompts = self._prompts(boxes[rows], type_index[rows])
            valid_hw = np.asarray(sample.size_hw, np.int32)
            got_ious, bits = _masks(
                self.model, self.params, pyramid, prompts, valid_hw, self._chunk(), self.isolate
            )
            count = len(boxes[rows])
            ious.append(np.asarray(got_ious)[:count])
            unpacked = np.unpackbits(np.asarray(bits)[:count, :, :h], axis=-1)
            shapes.append(unpacked[..., :w].astype(bool))
        return PromptMasks(np.concatenate(ious), np.concatenate(shapes))

    def _prompts(self, boxes: np.ndarray, type_index: np.ndarray) -> Prompts:
        size = self.prompts_per_call
        padded = np.full((1, size, 4), 0.5, np.float32)
        padded[0, : len(boxes)] = boxes
        types = np.zeros((1, size), np.int32)
        types[0, : len(boxes)] = type_index
        return Prompts(boxes=padded, type_index=types, valid=np.arange(size)[None] < len(boxes))

    def _chunk(self) -> int:
        """Largest divisor of `prompts_per_call` not above `masks_per_chunk`."""
        limit = min(self.masks_per_chunk, self.prompts_per_call)
        return next(n for n in range(limit, 0, -1) if self.prompts_per_call % n == 0)


def pack_on_canvas(mask: np.ndarray, canvas_hw: tuple[int, int]) -> np.ndarray:
    """Packs a bool mask of the valid size along x, zero-padded to the canvas: uint8 [H, W/8]."""
    height, width = canvas_hw
    bits = np.zeros((height, width // 8), np.uint8)
    packed = np.packbits(mask, axis=-1)
    bits[: packed.shape[0], : packed.shape[1]] = packed
    return bits


def upsample_masks(logits: Float[Array, "*n h w"]) -> Float[Array, "*n h2 w2"]:
    """Bilinear upsampling by 4 with half-pixel centres and clamped borders.

    The four phases between two samples have fixed weights, so no gather and no dense
    resize matrix is needed.
    """
    return _upsample_axis(_upsample_axis(logits, -2), -1)


def _upsample_axis(x: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
    axis = x.ndim + axis
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
    stacked = jnp.stack(phases, axis=axis + 1)
    return stacked.reshape(*x.shape[:axis], size * MASK_STRIDE, *x.shape[axis + 1 :])


@functools.partial(jax.jit, static_argnums=0)
def _encode(
    model: nn.Module, params: dict, image: UInt8[Array, "1 h w 3"], size_hw: Int[Array, "1 2"]
) -> Pyramid:
    return model.apply({"params": params}, image, size_hw, method="encode_image")


@functools.partial(jax.jit, static_argnums=(0, 6, 7))
def _score(
    model: nn.Module,
    params: dict,
    pyramid: Pyramid,
    prompts: Prompts,
    size_hw: Int[Array, "2"],
    bits: UInt8[Array, "p t h w8"],
    chunk: int,
    isolate: bool,
) -> tuple[Float[Array, "p k"], Float[Array, "p k t"], Float[Array, "p k"], Float[Array, "p t"]]:
    embed, pred_ious = _decode(model, params, pyramid, prompts, isolate)

    def count(block):
        embed, bits = block
        predicted = _thresholded(embed, pyramid, size_hw)
        truth = jnp.unpackbits(bits, axis=-1).astype(bool)
        flat = predicted.reshape(*predicted.shape[:2], -1).astype(jnp.float32)
        target = truth.reshape(*truth.shape[:2], -1).astype(jnp.float32)
        # Sums of zeros and ones below 2^24 are exact in float32.
        inter = jnp.einsum("ckx,ctx->ckt", flat, target, preferred_element_type=jnp.float32)
        return inter, flat.sum(-1), target.sum(-1)

    blocks = jax.tree.map(lambda x: x.reshape(-1, chunk, *x.shape[1:]), (embed, bits))
    counts = jax.lax.map(count, blocks)
    return pred_ious, *(x.reshape(-1, *x.shape[2:]) for x in counts)


@functools.partial(jax.jit, static_argnums=(0, 5, 6))
def _masks(
    model: nn.Module,
    params: dict,
    pyramid: Pyramid,
    prompts: Prompts,
    size_hw: Int[Array, "2"],
    chunk: int,
    isolate: bool,
) -> tuple[Float[Array, "p k"], UInt8[Array, "p k h w8"]]:
    embed, pred_ious = _decode(model, params, pyramid, prompts, isolate)
    blocks = embed.reshape(-1, chunk, *embed.shape[1:])
    bits = jax.lax.map(
        lambda block: jnp.packbits(_thresholded(block, pyramid, size_hw), axis=-1), blocks
    )
    return pred_ious, bits.reshape(-1, *bits.shape[2:])


def _decode(
    model: nn.Module, params: dict, pyramid: Pyramid, prompts: Prompts, isolate: bool
) -> tuple[Float[Array, "p k d"], Float[Array, "p k"]]:
    answers = model.apply(
        {"params": params}, pyramid, prompts, isolate=isolate, method="decode_prompts"
    )
    return answers.mask_embed[-1, 0], answers.pred_ious[-1, 0].astype(jnp.float32)


def _thresholded(
    embed: Float[Array, "c k d"], pyramid: Pyramid, size_hw: Int[Array, "2"]
) -> Bool[Array, "c k h w"]:
    logits = mask_logits(embed[None], pyramid.mask_features)[0]
    on = upsample_masks(logits) > 0
    height, width = on.shape[-2:]
    rows = jnp.arange(height)[:, None] < size_hw[0]
    columns = jnp.arange(width)[None, :] < size_hw[1]
    return on & (rows & columns)[None, None]
