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

    Attributes:
        mask_bce, dice: of masks, at sampled points.
        l1, giou: of boxes.
        iou: of the predicted IoU; no matching cost.
        object_class, part_class: of the two class heads.
        owner_class: of the object that a part belongs to.

    Source: docs/reference.md, sections 9 and 13.
    """

    mask_bce: float = 5.0
    dice: float = 5.0
    l1: float = 5.0
    giou: float = 2.0
    iou: float = 1.0
    object_class: float = 4.0
    part_class: float = 4.0
    owner_class: float = 4.0


@dataclasses.dataclass(frozen=True)
class LossConfig(LossWeights):
    """How losses are taken, beside the weights of their terms: the config group `loss`.

    Attributes:
        num_points: points per pair that count in mask losses.
        match_points: points at which mask costs are taken (read by the training step).
        oversample_ratio: candidates per counting point.
        importance_ratio: share of counting points that are chosen for uncertainty.
        many_to_one: SAM's rule: of a prompt's tokens only the best one learns.
        detach_iou_target: no gradient from the IoU loss into the masks; the released
            training code lets it through (docs/reference.md, quirk 8).
        denoising_by_slots: class loss of the denoising slots by the number of slots; the
            released generic code divides by the number of classes instead, which would
            all but silence it for a vocabulary of thousands.
        score_all_tokens: the predicted IoU of every token learns `iou_target`, so that tokens
            without a target of their own learn to score low. Off in the paper, where only
            matched tokens learn one.
        iou_target: "best": the IoU with the target that the token's mask fits best; or
            "expected": the mean over the prompt's targets, each weighted with one over its
            area: the IoU to expect for a click drawn evenly from the intended mask.
        iou_every_layer: `score_all_tokens` teaches all layers. Only the last one's prediction is
            ever read, and comparing all masks with all cells is a tenth of a step at full size.
        prompt_point_ratio: share of an image's points that lie near its prompts
            (`prompt_points`), for the losses and the matching costs of prompts. 0 in the paper.
        interactive, generic: weight of each stream's sum.
    """

    num_points: int = 12544
    match_points: int = 12544
    oversample_ratio: float = 3.0
    importance_ratio: float = 0.75
    many_to_one: bool = False
    detach_iou_target: bool = True
    score_all_tokens: bool = False
    iou_target: str = "best"
    iou_every_layer: bool = True
    denoising_by_slots: bool = True
    prompt_point_ratio: float = 0.0
    interactive: float = 1.0
    generic: float = 1.0


@dataclasses.dataclass(frozen=True)
class CriterionConfig(LossConfig):
    """What the criterion takes: the settings of the loss, and how its products are rounded.

    Attributes:
        precision: of products of mask embeddings and features. What a bfloat16 model hands over is
            exact in one pass of a TPU; only a float32 model has more digits to keep.
    """

    precision: jax.lax.Precision = jax.lax.Precision.HIGHEST

    @property
    def weights(self) -> LossWeights:
        """The weights of the terms."""
        return self

    @property
    def plan(self) -> PointPlan:
        """The number of points of each kind."""
        return PointPlan.of(self.num_points, self.oversample_ratio, self.importance_ratio)


@dataclasses.dataclass(frozen=True)
class ClassHead:
    """One of the class heads, with the part of the vocabulary that it speaks.

    An instance teaches a head or it does not: a part says nothing to the object head, and an
    instance without any name says nothing to either. At a prediction that no instance owns, the
    classes that are annotated completely are negatives, for the heads that learn there.

    Attributes:
        name: of its loss term.
        logits: [..., v] float32.
        label: int32 [b, n] index within the head, -1 where the instance is none of its classes,
            or of one that does not count in its row.
        teaches: bool [b, n] instances from which the head learns.
        valid: bool [b, v] classes that count at every prediction.
        owned: bool [b, v] classes that count at predictions that an instance owns.
        learns_unowned: whether predictions without an instance are negatives of this head.
    """

    name: str
    logits: Array
    label: Array
    teaches: Array
    valid: Array
    owned: Array
    learns_unowned: bool = True


def class_heads(predictions: Predictions, rows: Batch) -> list[ClassHead]:
    """The heads that have any class to say; none without text.

    With an owner head the object head learns from whole objects only, and the owner head from
    parts only. Without one the object head also says what a part belongs to.
    """
    is_part, has_object = rows.part_id >= 0, rows.object_id >= 0
    size = rows.vocab_valid.shape[1]
    heads = []
    if predictions.object_logits is not None:
        is_whole = has_object if predictions.owner_logits is None else has_object & ~is_part
        heads.append(("object_class", predictions.object_logits, 0, rows.object_id, is_whole))
    if predictions.part_logits is not None:
        first = size - predictions.part_logits.shape[-1]
        heads.append(
            ("part_class", predictions.part_logits, first, rows.part_id, is_part | has_object)
        )
    if predictions.owner_logits is not None:
        is_owned = is_part & has_object
        heads.append(("owner_class", predictions.owner_logits, 0, rows.object_id, is_owned))
    made = []
    for name, logits, first, union_id, teaches in heads:
        num = logits.shape[-1]
        if not num:
            continue
        valid = rows.vocab_valid[:, first : first + num]
        partly = rows.vocab_owned[:, first : first + num]
        label = union_id - first
        counts = jnp.take_along_axis(valid | (partly > 0), jnp.clip(label, 0, num - 1), axis=1)
        made.append(
            ClassHead(
                name=name,
                logits=logits.astype(jnp.float32),
                label=jnp.where((label >= 0) & counts, label, -1),
                teaches=teaches,
                valid=valid,
                owned=valid | (partly > 1),
                learns_unowned=name != "owner_class",
            )
        )
    return made


def class_term(
    head: ClassHead, label: Int[Array, "b m"], is_owned: Bool[Array, "#b #m"]
) -> Float[Array, "b m"]:
    """Sigmoid focal loss of each prediction, summed over the classes that count for it.

    Args:
        head: with logits [b, m, v].
        label: of the instance that owns the prediction, -1 none.
        is_owned: whether an instance owns it.
    """
    truth = jax.nn.one_hot(label, head.logits.shape[-1], dtype=jnp.float32)
    counts = jnp.where(is_owned[..., None], head.owned[:, None], head.valid[:, None])
    counts = counts | (truth > 0)
    return jnp.sum(sigmoid_focal(head.logits, truth) * counts, axis=-1)


def box_terms(
    boxes: Float[Array, "b m 4"], truth: Float[Array, "b m 4"]
) -> dict[str, Float[Array, "b m"]]:
    """L1 (sum of four) and 1 - GIoU of each pair; boxes are cxcywh, fractions of the canvas."""
    boxes = boxes.astype(jnp.float32)
    overlap = generalized_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(truth))
    return {"l1": jnp.abs(boxes - truth).sum(-1), "giou": 1.0 - overlap}
