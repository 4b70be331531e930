"""Denoising queries of the generic branch: true classes and noised true boxes.

They train box refinement without waiting for the matching to stabilise. Source: arXiv 2203.01305;
docs/reference.md, section 13.
"""

import typing

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool

from semsam_jax.core.structs import DenoisingQueries, TextTable
from semsam_jax.models.layers import parameter
from semsam_jax.ops.boxes import add_box_noise, inverse_sigmoid


@typing.no_type_check
@struct.dataclass
class DenoisingTargets:
    """Ground truth that the slots repeat; fields as in `core.structs.Batch`.

    Attributes:
        boxes: float32 [b,n,4] cxcywh, fractions of the canvas.
        object_id: int32 [b,n] row of the vocabulary, -1 none.
        part_id: int32 [b,n] row of the vocabulary (objects first), -1 none.
        instance_valid: bool [b,n], valid ones first.
        noise: float32 [b,g,4] uniform in [0,1); g is the number of slots.
    """

    boxes: jax.Array
    object_id: jax.Array
    part_id: jax.Array
    instance_valid: jax.Array
    noise: jax.Array


@typing.no_type_check
@struct.dataclass
class DenoisingTokens:
    """Decoder input of the denoising slots.

    Attributes:
        content: float32 [b,g,c].
        references: float32 [b,g,4] noised boxes in logit space.
        queries: which instance and group each slot belongs to.
    """

    content: jax.Array
    references: jax.Array
    queries: DenoisingQueries


def assign_slots(instance_valid: Bool[Array, "b n"], num_slots: int) -> DenoisingQueries:
    """Distributes the instances of each image over a fixed number of slots.

    With n valid instances, slot s holds instance s % n in group s // n, as many whole
    groups as fit. If not even one group fits, the first `num_slots` instances form one.

    Args:
        instance_valid: valid instances come first.
        num_slots: static number of slots g.
    """
    count = jnp.minimum(instance_valid.sum(-1, dtype=jnp.int32), num_slots)
    per_group = jnp.maximum(count, 1)[:, None]
    num_groups = jnp.where(count > 0, num_slots // per_group[:, 0], 0)
    slot = jnp.arange(num_slots, dtype=jnp.int32)[None, :]
    valid = slot < (num_groups * count)[:, None]
    return DenoisingQueries(
        instance=jnp.where(valid, slot % per_group, 0),
        group=jnp.where(valid, slot // per_group, 0),
        valid=valid,
        num_groups=num_groups,
    )


def attention_mask(queries: DenoisingQueries, num_queries: int) -> Bool[Array, "b m m"]:
    """Self-attention mask, with the g slots in front of the matching queries.

    Matching queries attend only to each other, since slots carry ground truth. Slots attend to
    their own group and the matching queries. An empty slot attends only to itself.

    Returns:
        [b, query, key], m = g + num_queries, True where blocked.
    """
    b, num_slots = queries.valid.shape
    same_group = queries.group[:, :, None] == queries.group[:, None, :]
    both_valid = queries.valid[:, :, None] & queries.valid[:, None, :]
    slot_to_slot = (same_group & both_valid) | jnp.eye(num_slots, dtype=bool)[None]
    slot_to_query = jnp.broadcast_to(queries.valid[:, :, None], (b, num_slots, num_queries))
    slots = jnp.concatenate([slot_to_slot, slot_to_query], axis=-1)
    matching = jnp.concatenate(
        [
            jnp.zeros((b, num_queries, num_slots), bool),
            jnp.ones((b, num_queries, num_queries), bool),
        ],
        axis=-1,
    )
    return ~jnp.concatenate([slots, matching], axis=1)


class Denoising(nn.Module):
    """Turns instances into noised tokens.

    Attributes:
        dim: channels of the decoder.
        text_dim: width of the name embeddings.
        noise_scale: box noise relative to the box.
    """

    dim: int
    text_dim: int
    noise_scale: float

    @nn.compact
    def __call__(self, targets: DenoisingTargets, text: TextTable) -> DenoisingTokens:
        """Content is the projected name of the instance (its part if it has one).

        Instances without a name have zero content; their boxes are still denoised.
        """
        lang_mapper = parameter(
            self,
            "lang_mapper",
            nn.initializers.truncated_normal(0.02),
            (self.text_dim, self.dim),
        )
        queries = assign_slots(targets.instance_valid, targets.noise.shape[1])
        name_id = jnp.where(targets.part_id >= 0, targets.part_id, targets.object_id)
        name_id = jnp.take_along_axis(name_id, queries.instance, axis=1)
        boxes = jnp.take_along_axis(targets.boxes, queries.instance[..., None], axis=1)
        names = jnp.concatenate([text.objects, text.parts], axis=0).astype(jnp.float32)
        # A product with zeros and ones instead of a lookup: its gradient is a sum over rows, where
        # that of a lookup sends the tokens of every row to other devices. -1 picks nothing.
        picked = jax.nn.one_hot(jnp.where(queries.valid, name_id, -1), len(names))
        content = jnp.matmul(picked, names @ lang_mapper, precision=jax.lax.Precision.HIGHEST)
        return DenoisingTokens(
            content=content,
            references=inverse_sigmoid(
                add_box_noise(boxes.astype(jnp.float32), targets.noise, self.noise_scale)
            ),
            queries=queries,
        )
