"""Box and class terms of a loss, and the settings that all of the criterion shares."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from semsam_jax.core.structs import Batch, Predictions
from semsam_jax.criterion.points import PointPlan
from semsam_jax.ops.boxes import cxcywh_to_xyxy, generalized_iou
from semsam_jax.ops.losses import sigmoid_focal


@dataclasses.dataclass(frozen=True)
class LossWeights:
    """Weight of each term, the same for every layer, and of its matching cost.

    Source: SPEC (viii), (xiii).
    """

    mask_bce: float = 5.0
    dice: float = 5.0
    l1: float = 5.0
    giou: float = 2.0
    iou: float = 1.0
    object_class: float = 4.0
    part_class: float = 4.0


@dataclasses.dataclass(frozen=True)
class CriterionConfig:
    """How losses are taken.

    Attributes:
        weights: of the terms.
        num_points: points per pair that count in mask losses.
        match_points: points at which mask costs are taken (read by the training step).
        oversample_ratio: candidates per counting point.
        importance_ratio: share of counting points that are chosen for uncertainty.
        many_to_one: SAM's rule: of a prompt's tokens only the best one learns.
        detach_iou_target: no gradient from the IoU loss into the masks; the released
            training code lets it through (SPEC xii, 8).
        denoising_by_slots: class loss of the denoising slots by the number of slots; the
            released generic code divides by the number of classes instead, which would
            all but silence it for a vocabulary of thousands.
        score_all_tokens: the predicted quality of every token learns the IoU of its mask with
            the prompt's best fitting target, so that tokens without a target of their own
            learn to score low. Off in the paper, where only matched tokens learn a quality.
        near_prompts: share of an image's points that lie near its prompts (`near_points`), for
            the losses and the matching costs of prompts. 0 in the paper.
        interactive, generic: weight of each stream's sum.
    """

    weights: LossWeights = LossWeights()
    num_points: int = 12544
    match_points: int = 12544
    oversample_ratio: float = 3.0
    importance_ratio: float = 0.75
    many_to_one: bool = False
    detach_iou_target: bool = True
    score_all_tokens: bool = False
    denoising_by_slots: bool = True
    near_prompts: float = 0.0
    interactive: float = 1.0
    generic: float = 1.0

    @property
    def plan(self) -> PointPlan:
        """The number of points of each kind."""
        return PointPlan.of(self.num_points, self.oversample_ratio, self.importance_ratio)


@dataclasses.dataclass(frozen=True)
class ClassHead:
    """One of the two class heads, with the part of the vocabulary that it speaks.

    Attributes:
        name: of its loss term.
        logits: [..., v] float32.
        first: index of its first class in the union vocabulary.
        label: int32 [b, n] index within the head, -1 none or not annotated.
        vocab_valid: bool [b, v] classes that the row's data set annotates.
    """

    name: str
    logits: Array
    first: int
    label: Array
    vocab_valid: Array


def class_heads(predictions: Predictions, rows: Batch) -> list[ClassHead]:
    """The heads that have any class to say; none without text."""
    heads = []
    size = rows.vocab_valid.shape[1]
    if predictions.object_logits is not None:
        heads.append(("object_class", predictions.object_logits, 0, rows.object_id))
    if predictions.part_logits is not None:
        first = size - predictions.part_logits.shape[-1]
        heads.append(("part_class", predictions.part_logits, first, rows.part_id))
    made = []
    for name, logits, first, union_id in heads:
        num = logits.shape[-1]
        if not num:
            continue
        valid = rows.vocab_valid[:, first : first + num]
        label = union_id - first
        is_annotated = jnp.take_along_axis(valid, jnp.clip(label, 0, num - 1), axis=1)
        label = jnp.where((label >= 0) & is_annotated, label, -1)
        made.append(ClassHead(name, logits.astype(jnp.float32), first, label, valid))
    return made


def class_term(
    logits: Float[Array, "b m v"], label: Int[Array, "b m"], vocab_valid: Bool[Array, "b v"]
) -> Float[Array, "b m"]:
    """Sigmoid focal loss of each row, summed over the annotated classes; label -1 is none."""
    truth = jax.nn.one_hot(label, logits.shape[-1], dtype=jnp.float32)
    return jnp.sum(sigmoid_focal(logits, truth) * vocab_valid[:, None, :], axis=-1)


def box_terms(
    boxes: Float[Array, "b m 4"], truth: Float[Array, "b m 4"]
) -> dict[str, Float[Array, "b m"]]:
    """L1 (sum of four) and 1 - GIoU of each pair; boxes are cxcywh, fractions of the canvas."""
    boxes = boxes.astype(jnp.float32)
    overlap = generalized_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(truth))
    return {"l1": jnp.abs(boxes - truth).sum(-1), "giou": 1.0 - overlap}
