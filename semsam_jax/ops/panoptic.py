"""Semantic, panoptic and instance maps from the queries of the generic branch.

Source: docs/reference.md, section 13, inference. All functions take class logits [q, v] and mask
logits [q, h, w] at the output size, and run on the host, since sizes depend on the image.
"""

import dataclasses
from collections.abc import Collection

import numpy as np
from jaxtyping import Bool, Float, Int


@dataclasses.dataclass(frozen=True)
class Segment:
    """One segment of a panoptic map.

    Attributes:
        id: value in the map, from 1.
        category: index in the vocabulary.
        is_thing: countable object; all stuff of one category is one segment.
        score: class score of the query, 0..1.
    """

    id: int
    category: int
    is_thing: bool
    score: float


@dataclasses.dataclass(frozen=True)
class PanopticMap:
    """Segment id of each pixel (0 none) and what the segments are."""

    segment_map: Int[np.ndarray, "h w"]
    segments: tuple[Segment, ...]


class PanopticBuilder:
    """Builds a map mask by mask; all stuff of one category becomes one segment.

    Args:
        image_hw: size of the map.
        things: categories whose masks stay apart; other categories are merged.
    """

    def __init__(self, image_hw: tuple[int, int], things: Collection[int]) -> None:
        self.segment_map = np.zeros(image_hw, np.int32)
        self._things = things
        self._segments: list[Segment] = []
        self._stuff_ids: dict[int, int] = {}

    def add(self, mask: Bool[np.ndarray, "h w"], category: int, score: float) -> None:
        """Paints pixels that no segment has yet."""
        is_thing = category in self._things
        if not is_thing and category in self._stuff_ids:
            self.segment_map[mask] = self._stuff_ids[category]
            return
        number = len(self._segments) + 1
        if not is_thing:
            self._stuff_ids[category] = number
        self.segment_map[mask] = number
        self._segments.append(Segment(number, category, is_thing, score))

    def result(self) -> PanopticMap:
        """The map so far."""
        return PanopticMap(self.segment_map, tuple(self._segments))


@dataclasses.dataclass(frozen=True)
class Instances:
    """Instances, best score first.

    Attributes:
        masks: bool [i, h, w].
        scores: class score times mean mask probability.
        categories: index in the vocabulary.
        queries: which query each instance came from.
    """

    masks: Bool[np.ndarray, "i h w"]
    scores: Float[np.ndarray, " i"]
    categories: Int[np.ndarray, " i"]
    queries: Int[np.ndarray, " i"]


def sharpened_probabilities(
    class_logits: Float[np.ndarray, "q v"], temperature: float = 0.06
) -> Float[np.ndarray, "q v"]:
    """softmax(sigmoid(logits) / temperature) over the classes, float32."""
    scores = sigmoid(class_logits) / np.float32(temperature)
    weights = np.exp(scores - scores.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)


def semantic_map(
    class_logits: Float[np.ndarray, "q v"],
    mask_logits: Float[np.ndarray, "q h w"],
    temperature: float = 0.06,
) -> Float[np.ndarray, "v h w"]:
    """Score of each class at each pixel: mask probabilities weighted by class scores."""
    q, h, w = mask_logits.shape
    scores = sharpened_probabilities(class_logits, temperature)
    return (scores.T @ sigmoid(mask_logits).reshape(q, h * w)).reshape(-1, h, w)


def confident_queries(
    class_logits: Float[np.ndarray, "q v"], score_threshold: float
) -> Int[np.ndarray, " m"]:
    """Queries whose best class score is above the threshold; only these need masks."""
    return np.flatnonzero(sigmoid(class_logits).max(1) > score_threshold)


def panoptic_map(
    class_logits: Float[np.ndarray, "q v"],
    mask_logits: Float[np.ndarray, "q h w"],
    things: Collection[int],
    *,
    score_threshold: float = 0.25,
    overlap_threshold: float = 0.8,
    temperature: float = 0.06,
) -> PanopticMap:
    """Assigns every pixel to one query, then drops queries that lost most of their mask.

    Args:
        class_logits: before the sigmoid.
        mask_logits: at the output size.
        things: categories whose segments are kept apart; those of other categories are merged.
        score_threshold: on the best sigmoid class score, before sharpening.
        overlap_threshold: smallest share of a mask (probability >= 0.5) that must be won.
        temperature: of the sharpening.
    """
    kept = confident_queries(class_logits, score_threshold)
    if not len(kept):
        return PanopticMap(np.zeros(mask_logits.shape[1:], np.int32), ())
    sharp = sharpened_probabilities(class_logits[kept], temperature)
    scores = sharp.max(1)
    masks = sigmoid(mask_logits[kept])
    winner = (scores[:, None, None] * masks).argmax(0)
    return segments_of(winner, masks >= 0.5, scores, sharp.argmax(1), things, overlap_threshold)


def segments_of(
    winner: Int[np.ndarray, "h w"],
    masks: Bool[np.ndarray, "m h w"],
    scores: Float[np.ndarray, " m"],
    categories: Int[np.ndarray, " m"],
    things: Collection[int],
    overlap_threshold: float,
) -> PanopticMap:
    """Segments of the queries that won pixels.

    Args:
        winner: query 0..m-1 that won each pixel.
        masks: where each query is present.
        scores: of each query.
        categories: of each query.
        things: see `panoptic_map`.
        overlap_threshold: see `panoptic_map`.
    """
    builder = PanopticBuilder(winner.shape, things)
    for i, category in enumerate(categories.tolist()):
        present = masks[i]
        won = winner == i
        mask = won & present
        if mask.any() and won.sum() / present.sum() >= overlap_threshold:
            builder.add(mask, category, float(scores[i]))
    return builder.result()


def top_instances(
    class_logits: Float[np.ndarray, "q v"],
    mask_logits: Float[np.ndarray, "q h w"],
    *,
    max_instances: int = 100,
    things: Collection[int] | None = None,
) -> Instances:
    """The best pairs of query and class, scored by class score times mask quality.

    Args:
        class_logits: before the sigmoid.
        mask_logits: at the output size.
        max_instances: pairs considered, before `things` are selected.
        things: categories to keep; None keeps all.
    """
    scores = sigmoid(class_logits)
    num_classes = scores.shape[1]
    order = np.argsort(-scores, axis=None, kind="stable")[:max_instances]
    queries, categories = order // num_classes, order % num_classes
    if things is not None:
        is_thing = np.isin(categories, list(things))
        queries, categories = queries[is_thing], categories[is_thing]
    quality = {int(q): _mask_quality(mask_logits[q]) for q in np.unique(queries)}
    final = scores[queries, categories] * np.array([quality[int(q)] for q in queries], np.float32)
    best = np.argsort(-final, kind="stable")
    return Instances(mask_logits[queries[best]] > 0, final[best], categories[best], queries[best])


def sigmoid(x: Float[np.ndarray, "*s"]) -> Float[np.ndarray, "*s"]:
    """Logistic function in float32 without overflow."""
    x = x.astype(np.float32)
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, small) / (1 + small)


def _mask_quality(logits: np.ndarray) -> np.float32:
    mask = logits > 0
    return np.float32(sigmoid(logits[mask]).sum() / (mask.sum() + 1e-6))
