"""Box and class loss terms, and the settings of the criterion."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from semsam_jax.core.structs import Batch, Predictions
from semsam_jax.criterion.points import PointPlan
from semsam_jax.ops.boxes import cxcywh_to_xyxy, generalized_iou
from semsam_jax.ops.losses import sigmoid_focal


@dataclasses.dataclass(frozen=True)
class LossWeights:
    """Weights of the loss terms and of their matching costs, the same in every layer.

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
    """Settings of the losses and the weights of their terms: the config group `loss`.

    Attributes:
        num_points: points per pair in the mask losses.
        match_points: points at which mask costs are computed (used by the training step).
        oversample_ratio: candidates per point.
        importance_ratio: fraction of the points that are chosen for uncertainty.
        many_to_one: SAM's rule: only the best token of a prompt is trained.
        detach_iou_target: no gradient from the IoU loss into the masks; the released training code
            does not detach it (docs/reference.md, quirk 8).
        denoising_by_slots: divide the class loss of denoising slots by the number of slots; the
            released generic code divides by the number of classes, which makes it negligible for a
            vocabulary of thousands.
        score_all_tokens: train the predicted IoU of every token on `iou_target`, so that tokens
            without a target of their own score low. Off in the paper, which trains matched tokens
            only.
        iou_target: "best": the IoU with the target that the mask fits best; or "expected": the mean
            over the prompt's targets weighted by inverse area, which is the expected IoU for a
            click drawn uniformly from the intended mask.
        iou_every_layer: apply `score_all_tokens` in all layers. Only the last layer's prediction is
            used for inference, and comparing all masks with all cells takes a tenth of a step at
            full size.
        prompt_point_ratio: fraction of an image's points that are drawn near its prompts
            (`prompt_points`), for the losses and matching costs of prompts. 0 in the paper.
        class_balance: weight the names of prompts by the frequency of their class to the power of
            minus this (0: equal weights, 0.5: inverse square root), see `balanced_weights`.
        interactive, generic: weights of the streams.
        granularity: weight of the loss of the granularity token (`criterion.granularity_loss`),
            for models with `DecoderConfig.granularity_token`.
        nesting: weight, within that loss, of the share of a mask that lies outside the mask for a
            larger granularity.
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
    class_balance: float = 0.0
    interactive: float = 1.0
    generic: float = 1.0
    granularity: float = 0.0
    nesting: float = 2.0


@dataclasses.dataclass(frozen=True)
class CriterionConfig(LossConfig):
    """Settings of the criterion: those of the loss, and the precision of its matrix products.

    Attributes:
        precision: of products of mask embeddings and features. Values of a bfloat16 model are exact
            in a single TPU pass; only float32 models need more.
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
    """A class head and its part of the vocabulary.

    Parts do not train the object head, and instances without a label train no head. For unmatched
    predictions the exhaustively annotated classes are negatives, in heads with `learns_unowned`.

    Attributes:
        name: of its loss term.
        logits: [..., v] float32.
        label: int32 [b, n] index within the head, -1 where the instance has none of its classes, or
            one that is not annotated in its row.
        teaches: bool [b, n] instances that train the head.
        valid: bool [b, v] classes that count for every prediction.
        owned: bool [b, v] classes that count for predictions matched to an instance.
        first: index of its first class in the vocabulary.
        learns_unowned: whether unmatched predictions are negatives of this head.
    """

    name: str
    logits: Array
    label: Array
    teaches: Array
    valid: Array
    owned: Array
    first: int = 0
    learns_unowned: bool = True


def class_heads(predictions: Predictions, rows: Batch) -> list[ClassHead]:
    """The class heads with a non-empty vocabulary; none without text.

    With an owner head, the object head is trained on whole objects only and the owner head on parts
    only. Without one, the object head also predicts what a part belongs to.
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
                first=first,
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
        label: of the matched instance, -1 for none.
        is_owned: whether the prediction is matched.
    """
    truth = jax.nn.one_hot(label, head.logits.shape[-1], dtype=jnp.float32)
    counts = jnp.where(is_owned[..., None], head.owned[:, None], head.valid[:, None])
    counts = counts | (truth > 0)
    return jnp.sum(sigmoid_focal(head.logits, truth) * counts, axis=-1)


MAX_CLASS_WEIGHT = 10.0
"""Of a rare class, in units of the mean over instances."""


def balanced_weights(counts: np.ndarray, power: float) -> np.ndarray:
    """Weights of classes whose mean over all instances is about 1, and which are at most 10.

    Args:
        counts: int [v] instances of each class.
        power: 0 for equal weights, 1 for as much weight on each class.

    Returns:
        float32 [v]; 1 for a class without instances.
    """
    counts = np.asarray(counts, np.float64)
    raw = np.where(counts > 0, np.maximum(counts, 1.0) ** -power, 0.0)
    mean = (raw * counts).sum() / max(counts.sum(), 1.0)
    scaled = np.minimum(raw / max(mean, 1e-12), MAX_CLASS_WEIGHT)
    return np.where(counts > 0, scaled, 1.0).astype(np.float32)


def box_terms(
    boxes: Float[Array, "b m 4"], truth: Float[Array, "b m 4"]
) -> dict[str, Float[Array, "b m"]]:
    """L1 (sum of four) and 1 - GIoU of each pair; boxes are cxcywh, fractions of the canvas."""
    boxes = boxes.astype(jnp.float32)
    overlap = generalized_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(truth))
    return {"l1": jnp.abs(boxes - truth).sum(-1), "giou": 1.0 - overlap}
