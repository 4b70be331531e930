"""Panoptic, semantic, instance, box and part scores of the generic branch.

One forward pass per image serves all tasks. The vocabulary is the list of names of the evaluated
dataset, whether the model was trained on it or not: open-vocabulary ADE20k is this evaluation with
ADE20k's 150 names on a model that never saw ADE20k.

Source: docs/reference.md, section 13, inference; arXiv 2307.04767, section 4.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from flax import linen as nn

from semsam_jax.core.rle import encode_masks, mask_areas, mask_boxes
from semsam_jax.core.structs import TextTable
from semsam_jax.evals import federated
from semsam_jax.evals.eval_loop import EvalLoop
from semsam_jax.evals.evaluator import Evaluator
from semsam_jax.evals.generic_runner import GenericAnswer, GenericProtocol, GenericRunner
from semsam_jax.evals.instance_ap import InstanceEvaluator, InstanceResult, InstanceSet
from semsam_jax.evals.panoptic import PanopticEvaluator, PanopticResult, PanopticSegments
from semsam_jax.evals.part_ap import ClassList, pair_scores, top_pairs
from semsam_jax.evals.samples import EvalSample
from semsam_jax.evals.semantic import SemanticEvaluator, SemanticResult
from semsam_jax.ops import panoptic as maps

TASKS = ("panoptic", "semantic", "instance", "part")


@dataclasses.dataclass(frozen=True)
class GenericResult:
    """Results of the tasks that were asked for, None for the others."""

    panoptic: PanopticResult | None = None
    semantic: SemanticResult | None = None
    mask_ap: InstanceResult | None = None
    box_ap: InstanceResult | None = None
    part_mask_ap: InstanceResult | None = None
    part_box_ap: InstanceResult | None = None

    def scalars(self) -> dict[str, float]:
        """Flat numbers for a log: "task/name", percent."""
        out = {}
        for field in dataclasses.fields(self):
            result = getattr(self, field.name)
            if result is not None:
                out |= {f"{field.name}/{name}": v for name, v in result.scalars().items()}
        return out


class GenericEvaluator(Evaluator):
    """Scores predictions of the generic branch, for all tasks at once.

    Args:
        classes: what the dataset annotates.
        tasks: some of `TASKS`.
        protocol: thresholds.
    """

    def __init__(
        self, classes: ClassList, tasks: Sequence[str], protocol: GenericProtocol | None = None
    ) -> None:
        self._classes, self._tasks = classes, tuple(tasks)
        self._protocol = protocol or GenericProtocol()
        self._object_index = {int(u): i for i, u in enumerate(classes.object_ids)}
        self._part_index = {int(u): i for i, u in enumerate(classes.part_ids)}
        self._parts = {}
        num_objects = len(classes.object_ids)
        self._limit, limits = self._protocol.max_instances, {}
        if classes.is_federated:
            self._limit = federated.MAX_DETECTIONS
            limits = {"max_detections": (1, 10, self._limit)}
        if "panoptic" in tasks:
            self._parts["panoptic"] = PanopticEvaluator(classes.is_thing)
        if "semantic" in tasks:
            self._parts["semantic"] = SemanticEvaluator(num_objects)
        if "instance" in tasks:
            self._parts["mask_ap"] = InstanceEvaluator(num_objects, "mask", **limits)
            self._parts["box_ap"] = InstanceEvaluator(num_objects, "box", **limits)
        if "part" in tasks:
            num_pairs = len(classes.pairs)
            self._parts["part_mask_ap"] = InstanceEvaluator(num_pairs, "mask", **limits)
            self._parts["part_box_ap"] = InstanceEvaluator(num_pairs, "box", **limits)

    def reset(self) -> None:
        """Forgets everything that was processed."""
        for part in self._parts.values():
            part.reset()

    def process(self, sample: EvalSample, answer: GenericAnswer) -> None:
        """Scores one image."""
        if "panoptic" in self._tasks:
            segments = true_segments(sample, self._classes, answer.size_hw)
            self._parts["panoptic"].process(segments, self._predicted_segments(answer))
        if "semantic" in self._tasks:
            truth = self._true_semantic(sample, answer.size_hw)
            self._parts["semantic"].process(truth, answer.maps.semantic)
        if "instance" in self._tasks:
            truth, found = self._true_instances(sample), self._instances(answer)
            truth, found = federated.restrict(
                truth, found, self._object_classes(sample), answer.size_hw
            )
            self._add("mask_ap", "box_ap", sample, answer, truth, found)
        if "part" in self._tasks:
            truth, found = self._true_parts(sample), self._part_instances(answer)
            truth, found = federated.restrict(
                truth, found, self._pair_classes(sample), answer.size_hw
            )
            self._add("part_mask_ap", "part_box_ap", sample, answer, truth, found)

    def state(self) -> dict:
        """The state of every task's evaluator."""
        return {name: part.state() for name, part in self._parts.items()}

    def add(self, state: Mapping) -> None:
        """Adds what another evaluator has processed, task by task."""
        for name, part in self._parts.items():
            part.add(state[name])

    def result(self) -> GenericResult:
        """Computes the results of everything processed so far."""
        return GenericResult(**{name: part.result() for name, part in self._parts.items()})

    def _add(
        self,
        mask_name: str,
        box_name: str,
        sample: EvalSample,
        answer: GenericAnswer,
        truth: InstanceSet,
        found: InstanceSet,
    ) -> None:
        image = f"{sample.dataset}/{sample.image_id}"
        with_masks = [dataclasses.replace(one, boxes_xywh=None) for one in (truth, found)]
        with_boxes = [dataclasses.replace(one, rles=None) for one in (truth, found)]
        self._parts[mask_name].process(image, answer.size_hw, *with_masks)
        self._parts[box_name].process(image, answer.size_hw, *with_boxes)

    def _true_semantic(self, sample: EvalSample, size_hw: tuple[int, int]) -> np.ndarray:
        pixels = np.full(size_hw, -1, np.int64)
        for index, local in self._objects(sample):
            pixels[sample.truth_mask(index)] = local
        return pixels

    def _true_instances(self, sample: EvalSample) -> InstanceSet:
        things = [(i, c) for i, c in self._objects(sample) if self._classes.is_thing[c]]
        return self._truth_set(sample, things)

    def _true_parts(self, sample: EvalSample) -> InstanceSet:
        objects, parts = sample.classes("object_ids"), sample.classes("part_ids")
        rows = [
            i
            for i in range(len(sample.masks))
            if int(objects[i]) in self._object_index and int(parts[i]) in self._part_index
        ]
        local_objects = np.asarray([self._object_index[int(objects[i])] for i in rows], np.int64)
        local_parts = np.asarray([self._part_index[int(parts[i])] for i in rows], np.int64)
        pairs = self._classes.pairs.index(local_objects, local_parts)
        return self._truth_set(sample, list(zip(rows, pairs.tolist(), strict=True)))

    def _objects(self, sample: EvalSample) -> list[tuple[int, int]]:
        return _whole_objects(sample, self._object_index)

    def _truth_set(self, sample: EvalSample, rows: list[tuple[int, int]]) -> InstanceSet:
        masks = [sample.truth_mask(index) for index, _ in rows]
        kept = [k for k, mask in enumerate(masks) if mask.any()]
        crowd = sample.flags("is_crowd", False)
        rles = encode_masks([masks[k] for k in kept])
        # As in COCO's files, the size class of a true box is that of its mask.
        return InstanceSet(
            classes=np.asarray([rows[k][1] for k in kept], np.int64),
            rles=rles,
            boxes_xywh=mask_boxes(rles),
            is_crowd=crowd[[rows[k][0] for k in kept]] if kept else None,
            areas=mask_areas(rles),
        )

    def _predicted_segments(self, answer: GenericAnswer) -> PanopticSegments:
        protocol = self._protocol
        kept = maps.confident_queries(answer.object_logits, protocol.score_threshold)
        if not len(kept):
            return PanopticSegments(np.zeros(answer.size_hw, np.int32), {})
        sharp = maps.sharpened_probabilities(answer.object_logits[kept], protocol.temperature)
        slot = np.zeros(len(answer.object_logits), np.int64)
        slot[kept] = np.arange(len(kept))
        found = maps.segments_of(
            slot[answer.maps.winner],
            answer.maps.masks(kept),
            sharp.max(1),
            sharp.argmax(1),
            set(np.flatnonzero(self._classes.is_thing).tolist()),
            protocol.overlap_threshold,
        )
        return PanopticSegments(found.segment_map, {s.id: s.category for s in found.segments})

    def _object_classes(self, sample: EvalSample) -> federated.Annotated | None:
        """Which objects an image was annotated for, as local classes."""
        index = {(union, -1): local for union, local in self._object_index.items()}
        return federated.annotated(sample, index)

    def _pair_classes(self, sample: EvalSample) -> federated.Annotated | None:
        """Which pairs an image was annotated for, as local classes."""
        pairs, objects = self._classes.pairs, self._classes.object_ids
        unions = zip(objects[pairs.objects], self._classes.part_ids[pairs.parts], strict=True)
        return federated.annotated(sample, {(int(o), int(p)): i for i, (o, p) in enumerate(unions)})

    def _instances(self, answer: GenericAnswer) -> InstanceSet:
        things = np.flatnonzero(self._classes.is_thing)
        limit = self._limit
        probabilities = maps.sigmoid(answer.object_logits)
        # Ranked over all classes, then things are picked, as `ops.panoptic.top_instances`.
        queries, classes, scores = top_pairs(probabilities, limit)
        is_thing = np.isin(classes, things)
        return _detections(answer, queries[is_thing], classes[is_thing], scores[is_thing])

    def _part_instances(self, answer: GenericAnswer) -> InstanceSet:
        scores = pair_scores(
            maps.sigmoid(answer.owner_logits),
            maps.sigmoid(answer.part_logits),
            self._classes.pairs,
        )
        return _detections(answer, *top_pairs(scores, self._limit))


def true_segments(
    sample: EvalSample, classes: ClassList, size_hw: tuple[int, int]
) -> PanopticSegments:
    """The whole objects of an image as a panoptic map of a size; later masks lie on top, all of
    them on crowd regions.
    """
    pixels, of_segment, crowd = np.zeros(size_hw, np.int32), {}, set()
    is_crowd = sample.flags("is_crowd", False)
    local_index = {int(u): i for i, u in enumerate(classes.object_ids)}
    for index, local in _whole_objects(sample, local_index):
        mask = sample.truth_mask(index)
        if mask.any():
            pixels[mask] = index + 1
            of_segment[index + 1] = local
            if is_crowd[index]:
                crowd.add(index + 1)
    present = set(np.unique(pixels).tolist())
    of_segment = {segment: c for segment, c in of_segment.items() if segment in present}
    return PanopticSegments(pixels, of_segment, frozenset(crowd & present))


def _whole_objects(sample: EvalSample, local_index: Mapping[int, int]) -> list[tuple[int, int]]:
    """(index, local class) of the instances that are whole objects of the dataset.

    Crowd regions come first: a map that is drawn in this order keeps the instances in them.
    """
    objects, parts = sample.classes("object_ids"), sample.classes("part_ids")
    order = np.argsort(~sample.flags("is_crowd", False), kind="stable").tolist()
    return [
        (i, local_index[int(objects[i])])
        for i in order
        if parts[i] < 0 and int(objects[i]) in local_index
    ]


def _detections(
    answer: GenericAnswer, queries: np.ndarray, classes: np.ndarray, scores: np.ndarray
) -> InstanceSet:
    """Masks, boxes and final scores (class score times mean mask probability)."""
    unique, slot = np.unique(queries, return_inverse=True)
    rles = encode_masks(list(answer.maps.masks(unique)))
    return InstanceSet(
        classes=classes,
        rles=[rles[s] for s in slot],
        boxes_xywh=answer.boxes_xywh[queries],
        scores=scores * answer.maps.quality[queries].astype(np.float64),
    )


def evaluate_generic(
    model: nn.Module,
    params: dict,
    text: TextTable,
    samples: Iterable[EvalSample],
    classes: ClassList,
    *,
    tasks: Sequence[str] = ("panoptic", "semantic", "instance"),
    protocol: GenericProtocol | None = None,
    eval_loop: EvalLoop | None = None,
    name: str = "generic",
) -> GenericResult:
    """Runs the generic branch over all images and scores it.

    Args:
        model: `SemanticSAM` with a generic branch.
        params: its parameters.
        text: unit embeddings of the dataset's names, rows as in `classes`.
        samples: images with labelled masks; scored in the frame of the masks.
        classes: what the dataset annotates.
        tasks: some of `TASKS`.
        protocol: thresholds.
        eval_loop: devices, progress and records; one device and no records by default.
        name: of the eval_loop's records.
    """
    eval_loop = eval_loop or EvalLoop()
    runner = GenericRunner(
        model, params, text, protocol, eval_loop.devices, eval_loop.images_per_device
    )
    evaluator = GenericEvaluator(classes, tasks, protocol)
    return eval_loop.run(name, evaluator, samples, runner).result()
