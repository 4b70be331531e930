"""Device part of the generic evaluations: a forward pass per group of images, then their maps."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from semsam_jax.core.structs import Predictions, Pyramid, TextTable
from semsam_jax.evals.generic_maps import ImageMaps, draw_maps
from semsam_jax.evals.prompt_runner import frame_key
from semsam_jax.evals.samples import EvalSample
from semsam_jax.ops import panoptic as maps
from semsam_jax.parallel.mesh import batch_sharding, build_mesh, in_use, replicated


@dataclasses.dataclass(frozen=True)
class GenericProtocol:
    """Thresholds of inference (defaults as published for OpenSeeD).

    Attributes:
        score_threshold, overlap_threshold, temperature: see `ops.panoptic.panoptic_map`.
        max_instances: detections per image.
    """

    score_threshold: float = 0.25
    overlap_threshold: float = 0.8
    temperature: float = 0.06
    max_instances: int = 100


@dataclasses.dataclass(frozen=True)
class GenericAnswer:
    """Predictions of the last layer for one image, in the frame of the ground truth.

    Attributes:
        object_logits: float32 [q, o] before the sigmoid.
        part_logits: float32 [q, r] before the sigmoid.
        owner_logits: float32 [q, o] before the sigmoid: what a query's part belongs to.
        boxes_xywh: float64 [q, 4] pixels of the truth's frame.
        maps: its masks; queries compete with their sharpened class scores, and those below the
            score threshold never win.
    """

    object_logits: np.ndarray
    part_logits: np.ndarray
    owner_logits: np.ndarray
    boxes_xywh: np.ndarray
    maps: ImageMaps

    @property
    def size_hw(self) -> tuple[int, int]:
        """Size of the truth's frame."""
        return self.maps.semantic.shape


class GenericRunner:
    """Runs the generic branch with a fixed list of names, a group of images at a time.

    Args:
        model: `SemanticSAM` with a generic branch.
        params: its parameters.
        text: unit embeddings of the names.
        protocol: thresholds; the published ones by default.
        devices: of this process; its first one by default.
        images_per_device: images that a device works on at a time.
    """

    def __init__(
        self,
        model: nn.Module,
        params: dict,
        text: TextTable,
        protocol: GenericProtocol | None = None,
        devices: Sequence[jax.Device] | None = None,
        images_per_device: int = 1,
    ):
        devices = jax.local_devices()[:1] if devices is None else list(devices)
        self._mesh = mesh = build_mesh(devices=devices)
        self._model, self._rows = model, batch_sharding(mesh)
        self._protocol = protocol or GenericProtocol()
        self._params, self._text = jax.device_put((params, text), replicated(mesh))
        self.batch_size = len(devices) * images_per_device

    def key(self, sample: EvalSample) -> tuple[int, int]:
        """Images of one canvas share a program."""
        return tuple(sample.image.shape[:2])

    def prepare(self, sample: EvalSample) -> EvalSample:
        """Nothing to prepare."""
        return sample

    def score(self, prepared: list[EvalSample]) -> list[tuple]:
        """Images with their answers, as `generic.GenericEvaluator.process` takes them."""
        return list(zip(prepared, self.answer(prepared), strict=True))

    def answer(self, samples: list[EvalSample]) -> list[GenericAnswer]:
        """One forward of at most `batch_size` images of one canvas, then the maps of each on
        the device that holds it.
        """
        height, width = samples[0].image.shape[:2]
        image = np.zeros((self.batch_size, height, width, 3), np.uint8)
        size_hw = np.full((self.batch_size, 2), (height, width), np.int32)
        for row, sample in enumerate(samples):
            image[row], size_hw[row] = sample.image, sample.size_hw
        image, size_hw = jax.device_put((image, size_hw), self._rows)
        with in_use(self._mesh):
            last, features = _forward(self._model, self._params, image, size_hw, self._text)
        # The compiler may replicate an output on every device.
        on_rows = jax.device_put((last.mask_embed, features), self._rows)
        embeds, features = (_by_image(array) for array in on_rows)
        owners = last.object_logits if last.owner_logits is None else last.owner_logits
        objects, parts, owners, boxes = (
            np.asarray(x, np.float32)
            for x in (last.object_logits, last.part_logits, owners, last.boxes)
        )
        return [
            GenericAnswer(
                object_logits=objects[row],
                part_logits=parts[row],
                owner_logits=owners[row],
                boxes_xywh=_boxes_xywh(boxes[row], sample),
                maps=self._maps(embeds[row], features[row], objects[row], sample),
            )
            for row, sample in enumerate(samples)
        ]

    def _maps(
        self, embed: Array, features: Array, logits: np.ndarray, sample: EvalSample
    ) -> ImageMaps:
        sharp = maps.sharpened_probabilities(logits, self._protocol.temperature)
        kept = maps.confident_queries(logits, self._protocol.score_threshold)
        weights = np.full(len(logits), -1.0, np.float32)
        weights[kept] = sharp[kept].max(1)
        canvas, frame = frame_key(sample)
        valid_hw, size_hw = tuple(sample.size_hw), sample.frame_hw
        return draw_maps(embed, features, sharp, weights, valid_hw, size_hw, frame or canvas)


def _by_image(array: Array) -> list[Array]:
    """Rows of a sharded array, each on its own device."""
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
