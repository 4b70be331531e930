"""Device half of the generic evaluations: one forward per image, masks on demand."""

import dataclasses
import functools

import cv2
import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from semsam_jax.core.structs import Predictions, Pyramid, TextTable
from semsam_jax.evals.prompt_scores import upsample_masks
from semsam_jax.evals.samples import EvalSample
from semsam_jax.models.heads import mask_logits

_MASKS_PER_CALL = 8


@dataclasses.dataclass(frozen=True)
class GenericAnswer:
    """What the last layer says of one image, in the frame of the ground truth.

    Attributes:
        object_logits: float32 [q, o] before the sigmoid.
        part_logits: float32 [q, r] before the sigmoid.
        boxes_xywh: float64 [q, 4] pixels of the truth's frame.
        size_hw: that frame.
        valid_hw: valid pixels of the canvas.
        mask_embed, features: what masks are made of, on the device.
    """

    object_logits: np.ndarray
    part_logits: np.ndarray
    boxes_xywh: np.ndarray
    size_hw: tuple[int, int]
    valid_hw: tuple[int, int]
    mask_embed: Array
    features: Array

    def mask_logits(self, queries: np.ndarray) -> np.ndarray:
        """Mask logits float32 [n, h, w] of some queries: bilinear to the canvas, the padding
        cropped off, bilinear to the frame of the ground truth (SPEC section xiii).
        """
        height, width = self.size_hw
        out = np.empty((len(queries), height, width), np.float32)
        h, w = self.valid_hw
        for first in range(0, len(queries), _MASKS_PER_CALL):
            rows = np.asarray(queries[first : first + _MASKS_PER_CALL])
            padded = np.resize(rows, _MASKS_PER_CALL)
            maps = np.asarray(_upsampled(self.mask_embed, self.features, padded))
            for slot in range(len(rows)):
                crop = maps[slot, :h, :w]
                if crop.shape != (height, width):
                    crop = cv2.resize(crop, (width, height), interpolation=cv2.INTER_LINEAR)
                out[first + slot] = crop
        return out


@dataclasses.dataclass(frozen=True)
class GenericRunner:
    """Runs the generic branch with a fixed list of names.

    Attributes:
        model: `SemanticSAM` with a generic branch.
        params: its parameters.
        text: unit embeddings of the names.
    """

    model: nn.Module
    params: dict
    text: TextTable

    def answer(self, sample: EvalSample) -> GenericAnswer:
        """One forward; masks are made later, only for the queries that need one."""
        size_hw = np.asarray([sample.size_hw], np.int32)
        last, features = _forward(self.model, self.params, sample.image[None], size_hw, self.text)
        frame = tuple(sample.truth_hw or sample.size_hw)
        boxes = np.asarray(last.boxes, np.float64)
        corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, 2:]], axis=1)
        height, width = sample.image.shape[:2]
        scale_y, scale_x = frame[0] / sample.size_hw[0], frame[1] / sample.size_hw[1]
        corners *= [width * scale_x, height * scale_y, width * scale_x, height * scale_y]
        return GenericAnswer(
            object_logits=np.asarray(last.object_logits, np.float32),
            part_logits=np.asarray(last.part_logits, np.float32),
            boxes_xywh=corners,
            size_hw=frame,
            valid_hw=tuple(sample.size_hw),
            mask_embed=last.mask_embed,
            features=features,
        )


@functools.partial(jax.jit, static_argnums=0)
def _forward(
    model: nn.Module, params: dict, image: Array, size_hw: Array, text: TextTable
) -> tuple[Predictions, Float[Array, "h w d"]]:
    variables = {"params": params}
    pyramid: Pyramid = model.apply(variables, image, size_hw, method="encode_image")
    answers = model.apply(variables, pyramid, text, method="decode_generic")
    return jax.tree.map(lambda x: x[-1, 0], answers.layers), pyramid.mask_features[0]


@jax.jit
def _upsampled(
    embed: Float[Array, "q d"], features: Float[Array, "h w d"], queries: Array
) -> Float[Array, "n h2 w2"]:
    return upsample_masks(mask_logits(embed[queries][None], features[None])[0])
