"""A model that reads its answers off the picture: exact arithmetic for evaluations.

Segments are vertical strips, since bilinear upsampling would round corners. The red channel
holds a segment number 0..7 per 4x4 block. A click returns, per token, the union of segments
that `TOKEN_SEGMENTS` says, relative to the clicked segment.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from semsam_jax.core.structs import GenericPredictions, Predictions, Pyramid
from semsam_jax.evals.samples import EvalSample

NUM_SEGMENTS = 8
TOKEN_SEGMENTS = ((0,), (0, 1), (0, 1, 2))  # token k: clicked segment plus these offsets
TOKEN_QUALITY = (0.2, 0.9, 0.5)


def read_segments(image) -> Pyramid:
    """One-hot segment numbers at stride 4."""
    segment = image[:, ::4, ::4, 0].astype(jnp.int32)
    features = jax.nn.one_hot(segment, NUM_SEGMENTS)
    return Pyramid(levels=(features,), mask_features=features)


class ReadingModel(nn.Module):
    """Answers from the picture; ignores its parameters."""

    token_segments: tuple = TOKEN_SEGMENTS
    token_quality: tuple = TOKEN_QUALITY

    def encode_image(self, image, size_hw, *, train=False):
        return read_segments(image)

    def decode_prompts(self, pyramid, prompts, text=None, *, all_layers=False, isolate=True):
        features = pyramid.mask_features
        height, width = features.shape[1:3]
        x = jnp.floor(prompts.boxes[..., 0] * width).astype(jnp.int32)
        y = jnp.floor(prompts.boxes[..., 1] * height).astype(jnp.int32)
        image = jnp.arange(len(features))[:, None]
        clicked = features[image, y, x].argmax(-1)
        embeds = []
        for offsets in self.token_segments:
            on = sum(jax.nn.one_hot((clicked + o) % NUM_SEGMENTS, NUM_SEGMENTS) for o in offsets)
            embeds.append(jnp.where(on > 0, 1.0, -1.0))
        embed = jnp.stack(embeds, axis=2)[None]
        quality = jnp.broadcast_to(jnp.asarray(self.token_quality), embed.shape[:-1])
        # The best token names strip s as class s - 1, any other token as the class after that.
        wrong = jnp.arange(len(self.token_quality)) != np.argmax(self.token_quality)
        classes = (clicked - 1)[None, ..., None] + wrong[None, None, None]
        objects, parts = (
            (None, None)
            if text is None
            else (
                6.0 * jax.nn.one_hot(classes, rows.shape[0]) for rows in (text.objects, text.parts)
            )
        )
        return Predictions(
            mask_embed=embed,
            boxes=jnp.zeros((*embed.shape[:-1], 4)),
            pred_ious=quality,
            object_logits=objects,
            part_logits=parts,
        )


def reading_sample(segments: np.ndarray, **fields) -> EvalSample:
    """Sample of an int map [h/4, w/4] of segment numbers, canvas padded to 32."""
    blocks = np.kron(segments, np.ones((4, 4), np.int64))
    h, w = blocks.shape
    padding = ((0, -h % 32), (0, -w % 32))
    # Segments go on through the padding, so that only the crop to the valid size ends them.
    canvas = np.pad(blocks, padding, mode="edge").astype(np.uint8)[..., None].repeat(3, axis=2)
    present = [s for s in np.unique(segments) if s > 0]
    fields.setdefault("masks", [blocks == s for s in present])
    fields.setdefault("image_id", "a")
    return EvalSample(image=canvas, size_hw=(h, w), **fields)


class ReadingGeneric(nn.Module):
    """Generic branch that reads the strips: query s is strip s, of object class s - 1.

    With `swapped`, strips 1 and 2 get each other's class. Parts: strip s is part s - 1.
    """

    swapped: bool = False

    def encode_image(self, image, size_hw, *, train=False):
        return read_segments(image)

    def decode_generic(self, pyramid, text):
        answers = jax.vmap(lambda features: self._read(features, text))(pyramid.mask_features)
        return GenericPredictions(layers=jax.tree.map(lambda x: x[None], answers), proposals=None)

    def _read(self, features, text):
        width = features.shape[1]
        numbers = jnp.arange(NUM_SEGMENTS)
        classes = numbers - 1
        if self.swapped:
            classes = jnp.where(numbers == 1, 1, jnp.where(numbers == 2, 0, classes))

        def logits(rows):
            is_own = classes[:, None] == jnp.arange(rows.shape[0])[None]
            is_there = features.any((0, 1))[:, None]
            return jnp.where(is_own & is_there, 6.0, -6.0)

        columns = features.any(0).T  # [segments, width]
        x0 = columns.argmax(-1)
        x1 = width - columns[:, ::-1].argmax(-1)
        full = jnp.ones_like(x0 / width)
        boxes = jnp.stack([(x0 + x1) / 2 / width, full / 2, (x1 - x0) / width, full], axis=-1)
        return Predictions(
            mask_embed=20.0 * (2 * jnp.eye(NUM_SEGMENTS) - 1),
            boxes=boxes,
            object_logits=logits(text.objects),
            part_logits=logits(text.parts),
        )
