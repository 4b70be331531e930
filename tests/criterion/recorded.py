"""The recorded criterion inputs in our own layout: rows, predictions and points."""

import jax.numpy as jnp
import numpy as np

from semsam_jax.core.structs import (
    Batch,
    DenoisingQueries,
    GenericPredictions,
    Predictions,
)
from semsam_jax.criterion.terms import CriterionConfig
from tests.golden.table import golden

NUM_POINTS = 256
LAYERS = ("aux0", "aux1", "final")
GENERIC_LAYERS = ("aux0", "aux1", "aux2", "final")
TOKENS = 6


def released_config(**changes) -> CriterionConfig:
    """The settings behind the recorded numbers."""
    return CriterionConfig(
        num_points=NUM_POINTS, detach_iou_target=False, denoising_by_slots=False, **changes
    )


def make_rows(masks, boxes, prompt_targets=None, labels=None, num_classes=0, prompt_box=None):
    """A batch of one image out of dense masks [n,h,w] and boxes cxcywh [n,4]."""
    n, h, w = masks.shape
    targets = np.zeros((1, 1), np.int32) - 1 if prompt_targets is None else prompt_targets
    p = targets.shape[0]
    return Batch(
        image=jnp.zeros((1, h, w, 3), jnp.uint8),
        size_hw=jnp.array([[h, w]], jnp.int32),
        mask_bits=jnp.asarray(np.packbits(masks, axis=-1))[None],
        boxes=jnp.asarray(boxes)[None],
        object_id=jnp.full((1, n), -1, jnp.int32)
        if labels is None
        else jnp.asarray(labels, jnp.int32)[None],
        part_id=jnp.full((1, n), -1, jnp.int32),
        instance_valid=jnp.ones((1, n), bool),
        prompt_box=jnp.zeros((1, p, 4)) if prompt_box is None else jnp.asarray(prompt_box)[None],
        prompt_is_box=jnp.zeros((1, p), bool),
        prompt_valid=jnp.ones((1, p), bool),
        prompt_targets=jnp.asarray(targets, jnp.int32)[None],
        pseudo_targets=jnp.full((1, *targets.shape), -1, jnp.int32),
        vocab_valid=jnp.ones((1, num_classes), bool),
        vocab_owned=jnp.zeros((1, num_classes), jnp.uint8),
        has_masks=jnp.ones(1, bool),
        dataset=jnp.zeros(1, jnp.int32),
    )


def padded_targets(counts, flat) -> np.ndarray:
    """[p, t] with -1 behind each prompt's own targets."""
    out = np.full((len(counts), TOKENS), -1, np.int32)
    for row, part in zip(out, np.split(flat, np.cumsum(counts)[:-1]), strict=True):
        row[: len(part)] = part
    return out


def interactive_rows(many_to_one: bool = False) -> Batch:
    """Ten instances and eight clicks."""
    data = golden("criterion")
    targets = padded_targets(data["tgt/level_target_counts"], data["tgt/level_target_inds_flat"])
    if many_to_one:
        targets = data["tgt/masks_index"][:, None].astype(np.int32)
    return make_rows(data["gt/masks"], data["tgt/ori_boxes"], targets)


def stacked_masks(arrays) -> tuple[jnp.ndarray, list[np.ndarray]]:
    """Dense masks [1,q,h,w] of several predictions as one map and one-hot embeddings.

    The dot product of an embedding with the map is then the dense mask itself.
    """
    masks = np.concatenate([a[0] for a in arrays])
    identity = np.eye(len(masks), dtype=np.float32)
    ends = np.cumsum([a.shape[1] for a in arrays])
    return jnp.asarray(np.moveaxis(masks, 0, -1))[None], np.split(identity, ends[:-1])


def interactive_predictions() -> tuple[Predictions, jnp.ndarray]:
    """[l,b,p,k] predictions in our layer order, and the map behind the masks."""
    data = golden("criterion")
    features, embeds = stacked_masks([data[f"out/{layer}/pred_masks"] for layer in LAYERS])
    p = data["tgt/points"].shape[0]
    boxes = np.stack([data[f"out/{layer}/pred_boxes"] for layer in LAYERS])
    predictions = Predictions(
        mask_embed=jnp.asarray(np.stack(embeds)).reshape(len(LAYERS), 1, p, TOKENS, -1),
        boxes=jnp.asarray(boxes).reshape(len(LAYERS), 1, p, TOKENS, 4),
        pred_ious=jnp.asarray(np.stack([data[f"out/{layer}/pred_ious"] for layer in LAYERS])),
    )
    return predictions, features


def recorded_assignment() -> jnp.ndarray:
    """token_of_target [1,p,t] of the recorded matcher."""
    data = golden("criterion")
    prompt, slot = _place_of_target()
    tokens = np.zeros((prompt.max() + 1, TOKENS), np.int32)
    for query, target in zip(data["m2m/assign_query"], data["m2m/assign_target"], strict=True):
        assert query // TOKENS == prompt[target]
        tokens[prompt[target], slot[target]] = query % TOKENS
    return jnp.asarray(tokens)[None]


def many_to_many_points(group: str, token_of_target) -> jnp.ndarray:
    """Recorded points [l,1,p*t,j,2]; padding slots get arbitrary ones.

    They were consumed pair by pair in the order of the pairs' queries.
    """
    data = golden("criterion")
    prompt, slot = _place_of_target()
    query = prompt * TOKENS + np.asarray(token_of_target)[0, prompt, slot]
    order = np.argsort(query)
    pair = (prompt * TOKENS + slot)[order]
    out = []
    for layer in LAYERS:
        own = np.concatenate(
            [data[f"{group}/rand_mask_{kind}/{layer}"] for kind in ("oversample", "random")], axis=1
        )
        points = np.full((1, (prompt.max() + 1) * TOKENS, *own.shape[1:]), 0.5, np.float32)
        points[0, pair] = own
        out.append(points)
    return jnp.asarray(np.stack(out))


def _place_of_target() -> tuple[np.ndarray, np.ndarray]:
    """Prompt and slot of each entry of the recorded flat list of targets."""
    counts = golden("criterion")["tgt/level_target_counts"]
    prompt = np.repeat(np.arange(len(counts)), counts)
    return prompt, np.concatenate([np.arange(count) for count in counts])


def many_to_one_points() -> jnp.ndarray:
    """Recorded points [l,1,p*k,j,2]."""
    data = golden("criterion")
    parts = [
        np.concatenate(
            [data[f"mo1/rand_mask_{kind}/{layer}"] for kind in ("oversample", "random")], axis=1
        )
        for layer in LAYERS
    ]
    return jnp.asarray(np.stack(parts))[:, None]


def generic_rows() -> Batch:
    """Five labelled instances."""
    data = golden("generic_openseed")
    return make_rows(
        data["gt/masks"],
        data["gt/boxes_cxcywh"],
        labels=data["gt/labels"],
        num_classes=data["text_table"].shape[0],
    )


def generic_predictions() -> tuple[GenericPredictions, jnp.ndarray]:
    """Recorded predictions of all layers, proposals and denoising; and the map."""
    data = golden("generic_openseed")
    names = [*GENERIC_LAYERS, "interm", *(f"dn_{layer}" for layer in GENERIC_LAYERS)]
    features, embeds = stacked_masks([data[f"train/{name}/pred_masks"] for name in names])
    embed = dict(zip(names, embeds, strict=True))
    num_classes = data["text_table"].shape[0]

    def predictions(wanted) -> Predictions:
        def stack(key):
            return jnp.asarray(np.stack([data[f"train/{name}/{key}"] for name in wanted]))

        logits = stack("pred_logits")
        assert logits.shape[-1] == num_classes
        return Predictions(
            mask_embed=jnp.asarray(np.stack([embed[name] for name in wanted]))[:, None],
            boxes=stack("pred_boxes"),
            object_logits=logits,
            part_logits=logits[..., :0],
        )

    proposals = predictions(["interm"])
    groups = int(data["train/dn_scalar"])
    n = data["gt/labels"].size
    slots = n * groups
    queries = DenoisingQueries(
        instance=jnp.tile(jnp.arange(n, dtype=jnp.int32), groups)[None],
        group=jnp.repeat(jnp.arange(groups, dtype=jnp.int32), n)[None],
        valid=jnp.ones((1, slots), bool),
        num_groups=jnp.array([groups], jnp.int32),
    )
    return (
        GenericPredictions(
            layers=predictions(GENERIC_LAYERS),
            proposals=Predictions(
                mask_embed=proposals.mask_embed[0],
                boxes=proposals.boxes[0],
                object_logits=proposals.object_logits[0],
                part_logits=proposals.part_logits[0],
            ),
            denoising=predictions([f"dn_{layer}" for layer in GENERIC_LAYERS]),
            denoising_queries=queries,
        ),
        features,
    )


def generic_points() -> tuple[dict[str, jnp.ndarray], jnp.ndarray]:
    """(match points of each layer [1,j,2], loss points [l+2,1,n+slots,j,2])."""
    data = golden("generic_openseed")
    rand = iter(sorted(key for key in data if key.startswith("crit/rand/")))
    match, loss = {}, {}
    for layer in ("final", "aux0", "aux1", "aux2", "interm"):
        match[layer] = jnp.asarray(data[next(rand)])
        own = np.concatenate([data[next(rand)], data[next(rand)]], axis=1)
        # Consumed pair by pair in the order of the pairs' queries.
        parts = [own[np.argsort(data[f"crit/assign_target/{layer}"])]]
        if layer != "interm":
            parts.append(np.concatenate([data[next(rand)], data[next(rand)]], axis=1))
        else:  # no denoising there: any points do
            parts.append(np.full_like(loss["final"][-10:], 0.5))
        loss[layer] = np.concatenate(parts)
    order = [*GENERIC_LAYERS, "interm"]
    return match, jnp.asarray(np.stack([loss[layer] for layer in order]))[:, None]
