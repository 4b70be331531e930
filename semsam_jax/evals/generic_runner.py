"""Device half of the generic evaluations: one forward per image, masks on demand."""

import dataclasses
import functools
from collections.abc import Sequence

import cv2
import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from semsam_jax.core.structs import Predictions, Pyramid, TextTable
from semsam_jax.evals.prompt_scores import upsample_masks
from semsam_jax.evals.samples import EvalSample
from semsam_jax.models.heads import mask_logits
from semsam_jax.parallel.mesh import batch_sharding, build_mesh, replicated

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


class GenericRunner:
    """Runs the generic branch with a fixed list of names, a group of photos at a time.

    Args:
        model: `SemanticSAM` with a generic branch.
        params: its parameters.
        text: unit embeddings of the names.
        devices: of this process; its first one by default.
        photos_per_device: photos that a device works on at a time.
    """

    def __init__(
        self,
        model: nn.Module,
        params: dict,
        text: TextTable,
        devices: Sequence[jax.Device] | None = None,
        photos_per_device: int = 1,
    ):
        devices = jax.local_devices()[:1] if devices is None else list(devices)
        mesh = build_mesh(devices=devices)
        self._model, self._rows = model, batch_sharding(mesh)
        self._params, self._text = jax.device_put((params, text), replicated(mesh))
        self.batch_size = len(devices) * photos_per_device

    def key(self, sample: EvalSample) -> tuple[int, int]:
        """Photos of one canvas share a program."""
        return tuple(sample.image.shape[:2])

    def prepare(self, sample: EvalSample) -> EvalSample:
        """Nothing to prepare."""
        return sample

    def score(self, prepared: list[EvalSample]) -> list[tuple]:
        """Photos with their answers, as `generic.GenericEvaluator.process` takes them."""
        return list(zip(prepared, self.answer(prepared), strict=True))

    def answer(self, samples: list[EvalSample]) -> list["GenericAnswer"]:
        """One forward of at most `batch_size` photos of one canvas; masks are made later, only
        for the queries that need one, each on the device that holds its photo.
        """
        height, width = samples[0].image.shape[:2]
        image = np.zeros((self.batch_size, height, width, 3), np.uint8)
        size_hw = np.full((self.batch_size, 2), (height, width), np.int32)
        for row, sample in enumerate(samples):
            image[row], size_hw[row] = sample.image, sample.size_hw
        image, size_hw = jax.device_put((image, size_hw), self._rows)
        last, features = _forward(self._model, self._params, image, size_hw, self._text)
        # The compiler may choose to leave an output whole on every device.
        on_rows = jax.device_put((last.mask_embed, features), self._rows)
        embeds, features = (_by_photo(array) for array in on_rows)
        objects, parts, boxes = (
            np.asarray(x, np.float32) for x in (last.object_logits, last.part_logits, last.boxes)
        )
        return [
            GenericAnswer(
                object_logits=objects[row],
                part_logits=parts[row],
                boxes_xywh=_boxes_xywh(boxes[row], sample),
                size_hw=sample.frame_hw,
                valid_hw=tuple(sample.size_hw),
                mask_embed=embeds[row],
                features=features[row],
            )
            for row, sample in enumerate(samples)
        ]


def _by_photo(array: Array) -> list[Array]:
    """Rows of an array that is split over devices, each on its own device."""
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return [shard.data[row] for shard in shards for row in range(shard.data.shape[0])]


def _boxes_xywh(boxes: np.ndarray, sample: EvalSample) -> np.ndarray:
    """Boxes cxcywh in fractions of the canvas as pixels of the scored frame, float64."""
    boxes = np.asarray(boxes, np.float64)
    corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, 2:]], axis=1)
    share = np.asarray(sample.frame_hw) / sample.size_hw * sample.image.shape[:2]
    return corners * np.tile(share[::-1], 2)


@functools.partial(jax.jit, static_argnums=0)
def _forward(
    model: nn.Module, params: dict, image: Array, size_hw: Array, text: TextTable
) -> tuple[Predictions, Float[Array, "b h w d"]]:
    variables = {"params": params}
    pyramid: Pyramid = model.apply(variables, image, size_hw, method="encode_image")
    answers = model.apply(variables, pyramid, text, method="decode_generic")
    return jax.tree.map(lambda x: x[-1], answers.layers), pyramid.mask_features


@jax.jit
def _upsampled(
    embed: Float[Array, "q d"], features: Float[Array, "h w d"], queries: Array
) -> Float[Array, "n h2 w2"]:
    return upsample_masks(mask_logits(embed[queries][None], features[None])[0])
