"""Converts an annotated image to a fixed-shape row of `BatchShape`."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, UInt8

from data_pipelines import decode
from data_pipelines.schema import (
    EVERY_OWNED,
    NOT_OWNED,
    OWN_CLASS,
    BatchShape,
    RawExample,
    RawInstance,
)
from data_pipelines.transforms import geometry, masks, prompts, pseudo_parts
from data_pipelines.transforms.geometry import Augment, Placement
from data_pipelines.transforms.prompts import Candidate, PromptPolicy
from semsam_jax.core.errors import DataError

VIEWS = ("any", "object", "part")
"""Granularities of the data: all instances, whole objects, parts."""

NUM_ATTEMPTS = 8
"""Number of random placements that are tried before the whole image is used."""


@dataclasses.dataclass(frozen=True)
class RowMaker:
    """Makes rows; can be pickled into worker processes.

    Attributes:
        shape: sizes of a row.
        policy: how prompts are drawn.
        augments: placement policy per dataset name; others get large-scale jitter.
        vocab_valid: bool [v] per dataset name: classes that the dataset annotates.
        dataset_index: number of a dataset in the batch, per name.
        verified_classes: respect the classes that an image is annotated for, and instances that
            were dropped from it; False treats every class of the dataset as exhaustively annotated
            in every row.
        labels: int64 [2, v] per dataset name: the class that each class counts as, in rows as they
            are and in mirrored ones (`names.row_labels`); as it is where not given.
    """

    shape: BatchShape
    policy: PromptPolicy
    augments: Mapping[str, Augment]
    vocab_valid: Mapping[str, np.ndarray]
    dataset_index: Mapping[str, int]
    verified_classes: bool = True
    labels: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __call__(
        self, item: tuple[RawExample, str], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Makes the row of (example, view); `rng` is the only source of randomness.

        Raises:
            DataError: the image or an annotation is broken (dataset and id are named).
        """
        example, view = item
        where = f"{example.dataset}/{example.example_id}"
        augment = self.augments.get(example.dataset, geometry.LSJ)
        placement, candidates = self._place(example, view, rng, augment, where)
        example = self._relabelled(example, placement.flip)
        image = decode.place_image(
            example.image, placement, where=where, is_displayed=example.is_displayed
        )
        return self._fill(example, placement, candidates, image, rng)

    def without_pseudo_targets(self) -> "RowMaker":
        """The same for a stream whose prompts nothing learns from."""
        policy = dataclasses.replace(self.policy, pseudo_hierarchy=0.0)
        return dataclasses.replace(self, policy=policy)

    def _relabelled(self, example: RawExample, is_mirrored: bool) -> RawExample:
        """The example with the classes that it has in a row."""
        if example.dataset not in self.labels:
            return example
        classes = self.labels[example.dataset][int(is_mirrored)].tolist()

        def pairs(found: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
            return tuple(tuple(i if i < 0 else classes[i] for i in pair) for pair in found)

        ids = pairs([(item.object_id, item.part_id) for item in example.instances])
        return dataclasses.replace(
            example,
            instances=tuple(
                dataclasses.replace(item, object_id=object_id, part_id=part_id)
                for item, (object_id, part_id) in zip(example.instances, ids, strict=True)
            ),
            annotated=None if example.annotated is None else pairs(example.annotated),
            partial=pairs(example.partial),
        )

    def _place(
        self,
        example: RawExample,
        view: str,
        rng: np.random.Generator,
        augment: Augment,
        where: str,
    ) -> tuple[Placement, list[Candidate]]:
        """Samples placements until an instance of the view is visible."""
        height, width, canvas = example.height, example.width, self.shape.image_size
        outlines = read_outlines(example.instances, height, width, where)
        for _ in range(NUM_ATTEMPTS):
            placement = geometry.sample_placement(rng, height, width, canvas, augment)
            candidates = self._survivors(example, view, outlines, placement)
            if any(candidate.is_primary for candidate in candidates):
                return placement, candidates
        for placement in self._last_resorts(example, view, outlines):
            candidates = self._survivors(example, view, outlines, placement)
            if any(candidate.is_primary for candidate in candidates):
                return placement, candidates
        raise DataError(
            f"{where}: no instance of view {view!r} has any pixel; the index should have "
            f"dropped this example, rebuild it."
        )

    def _last_resorts(
        self, example: RawExample, view: str, outlines: list[np.ndarray | None]
    ) -> list[Placement]:
        """The whole image; then, for masks too thin to be visible in it, a close-up of each."""
        height, width, canvas = example.height, example.width, self.shape.image_size
        resorts = [geometry.fit_placement(height, width, canvas)]
        for instance, outline in zip(example.instances, outlines, strict=True):
            if not in_view(instance, view):
                continue
            if outline is None:
                x, y = int(instance.box[0]), int(instance.box[1])
            elif len(outline):
                x, y = divmod(int(outline[0]), height)
            else:
                continue
            scale = max(self.shape.mask_stride, 1)
            resorts.append(geometry.zoom_placement(height, width, canvas, scale, (y, x)))
        return resorts

    def _survivors(
        self,
        example: RawExample,
        view: str,
        outlines: list[np.ndarray | None],
        placement: Placement,
    ) -> list[Candidate]:
        tables = masks.draw_tables(placement)
        survivors = []
        for index, (instance, outline) in enumerate(zip(example.instances, outlines, strict=True)):
            if outline is None:
                mask = cells = None
                box = placement.move_box(instance.box)
                if box[2] - box[0] < 1 or box[3] - box[1] < 1:
                    continue
            else:
                mask = masks.draw_mask(outline, tables)
                cells = masks.subsample(mask, self.shape.mask_stride) if mask else None
                if not cells:
                    continue
                box = tuple(float(value) for value in mask.box_px)
            found = Candidate(
                source=index,
                box_px=box,
                mask=mask,
                cells=cells,
                is_primary=in_view(instance, view),
                kind=instance.kind,
                wholes=_wholes(example.instances, index),
            )
            survivors.append(found)
        return survivors

    def _fill(
        self,
        example: RawExample,
        placement: Placement,
        candidates: list[Candidate],
        image: np.ndarray,
        rng: np.random.Generator,
    ) -> dict[str, np.ndarray]:
        shape = self.shape
        instances = [example.instances[candidate.source] for candidate in candidates]
        labelled = any(item.object_id >= 0 or item.part_id >= 0 for item in instances)
        sampled = prompts.sample_prompts(
            rng,
            candidates,
            num_prompts=shape.num_prompts,
            max_instances=shape.max_instances,
            all_under_click=self.policy.hierarchy or not labelled,
            mask_stride=shape.mask_stride,
            canvas=shape.image_size,
            policy=self.policy,
        )
        kept = prompts.keep_instances(rng, len(candidates), sampled, shape.max_instances)
        row = {key: np.zeros(size, dtype) for key, (dtype, size) in shape.spec().items()}
        row["image"] = image
        row["size_hw"][:] = placement.size_hw
        row["object_id"][:] = row["part_id"][:] = -1
        row["prompt_targets"][:] = row["pseudo_targets"][:] = -1
        row["instance_valid"][: len(kept)] = True
        for slot, index in enumerate(kept.tolist()):
            candidate, instance = candidates[index], instances[index]
            row["boxes"][slot] = prompts.box_cxcywh(np.array(candidate.box_px), shape.image_size)
            row["object_id"][slot], row["part_id"][slot] = instance.object_id, instance.part_id
            if candidate.cells:
                candidate.cells.paste(row["mask_bits"][slot])
        row["prompt_box"][:] = sampled.boxes
        row["prompt_is_box"][:] = sampled.is_box
        row["prompt_valid"][:] = True
        slot_of = {index: slot for slot, index in enumerate(kept.tolist())}
        for prompt, under in enumerate(sampled.under):
            slots = [slot_of[index] for index in under if index in slot_of]
            first = (int(sampled.chosen[prompt]), *sampled.wholes[prompt])
            first = [slot_of[index] for index in first if index in slot_of]
            targets = prompts.cap_targets(rng, slots, first, shape.max_targets)
            row["prompt_targets"][prompt, : len(targets)] = targets
        if self.policy.pseudo_hierarchy:  # last, so that all other draws are those without it
            pseudo_parts.add_pseudo_targets(rng, row, self.policy.pseudo_hierarchy)
        cut = [item for index, item in enumerate(instances) if index not in slot_of]
        row["vocab_valid"][:], row["vocab_owned"][:] = self._classes(example, cut)
        row["has_masks"] = np.asarray(candidates[0].cells is not None)
        row["dataset"] = np.asarray(self.dataset_index[example.dataset], np.int32)
        return row

    def _classes(
        self, example: RawExample, cut: Sequence[RawInstance]
    ) -> tuple[Bool[np.ndarray, " v"], UInt8[np.ndarray, " v"]]:
        """`vocab_valid` and `vocab_owned` of a row.

        A class of the dataset is valid unless the image does not list it as annotated, lists it as
        partial, or an instance of it was dropped for lack of slots and would count as background.
        Part classes combine all owners: annotated with one owner suffices, partial with one owner
        disqualifies.

        Args:
            example: the image.
            cut: its instances that are visible but were dropped.
        """
        known = self.vocab_valid[example.dataset]
        owned = np.zeros(len(known), np.uint8)
        if not self.verified_classes:
            return known, owned
        valid = known.copy()
        if example.annotated is not None:
            valid[:] = False
            valid[_indices(example.annotated)] = True
            owned[:] = EVERY_OWNED if example.is_exclusive else NOT_OWNED
        valid[_indices(example.partial)] = False
        owned[_indices(example.partial)] = OWN_CLASS
        missing = [i for item in cut for i in _labels(item)]
        # A dropped instance says nothing about the classes of the others.
        owned[[i for i in missing if valid[i]]] = EVERY_OWNED
        valid[missing] = False
        return valid & known, np.where(known & ~valid, owned, NOT_OWNED)


def _labels(instance: RawInstance) -> list[int]:
    """The class of an instance: its part, or its object."""
    label = instance.part_id if instance.part_id >= 0 else instance.object_id
    return [label] if label >= 0 else []


def _indices(classes: Sequence[tuple[int, int]]) -> list[int]:
    """Vocabulary indices of classes given as (object, part)."""
    return [part_id if part_id >= 0 else object_id for object_id, part_id in classes]


def in_view(instance: RawInstance, view: str) -> bool:
    """Whether an instance belongs to a view; class-agnostic instances are in `any` only."""
    return view in ("any", instance.kind)


def _wholes(instances: Sequence[RawInstance], index: int) -> tuple[int, ...]:
    """The wholes of an instance, nearest first."""
    found: list[int] = []
    index = instances[index].parent
    while index >= 0 and index not in found:
        found.append(index)
        index = instances[index].parent
    return tuple(found)


def read_outlines(
    instances: Sequence[RawInstance], height: int, width: int, where: str
) -> list[np.ndarray | None]:
    """Reads the masks of an image as toggles, None for boxes.

    Raises:
        DataError: a mask is broken, or masks and boxes-only instances are mixed.
    """
    has_mask = [instance.rle is not None for instance in instances]
    if any(has_mask) and not all(has_mask):
        raise DataError(
            f"{where}: {sum(has_mask)} of {len(has_mask)} instances have masks; expected masks "
            f"for all or for none, since a row is trained either with or without mask losses."
        )
    outlines = []
    for index, instance in enumerate(instances):
        if instance.rle is None:
            outlines.append(None)
            continue
        try:
            outlines.append(masks.rle_toggles(instance.rle, height, width))
        except DataError as error:
            raise DataError(f"{where}: instance {index}: {error}") from error
    return outlines
