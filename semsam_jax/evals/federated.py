"""AP of federated datasets such as LVIS: each image is annotated for some classes only.

An image counts for the classes that it has annotations of and for those that its annotators
verified as absent. Detections of other classes are ignored. For a class that is not exhaustively
annotated in an image, unmatched detections are ignored.

Source: LVIS (arXiv 1908.03195, section 3.2); PACO (arXiv 2301.01795) is scored in the same way.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from semsam_jax.core.rle import encode_masks, mask_areas, mask_boxes
from semsam_jax.evals.instance_ap import InstanceSet
from semsam_jax.evals.samples import EvalSample

MAX_DETECTIONS = 300
"""Detections of an image that count (LVIS)."""


@dataclasses.dataclass(frozen=True)
class Annotated:
    """Local classes of one image.

    Attributes:
        complete: every instance is annotated; none included.
        partial: instances may be missing.
    """

    complete: frozenset[int]
    partial: frozenset[int]


def annotated(sample: EvalSample, index: Mapping[tuple[int, int], int]) -> Annotated | None:
    """What an image was annotated for; None for all classes.

    Args:
        sample: the image.
        index: (object, part) of the samples -> local class; others are left out.
    """
    if sample.annotated is None:
        return None
    complete, partial = (
        frozenset(index[tuple(pair)] for pair in pairs if tuple(pair) in index)
        for pairs in (sample.annotated, sample.partial)
    )
    return Annotated(complete - partial, partial)


def restrict(
    truth: InstanceSet, found: InstanceSet, classes: Annotated | None, size_hw: tuple[int, int]
) -> tuple[InstanceSet, InstanceSet]:
    """Removes what does not count in an image.

    A class that is not annotated completely gets a crowd region over the whole image: a detection
    that hits no instance lies in it and is ignored, as COCO's matching treats crowds.

    Args:
        truth: instances of the image.
        found: detections of the image.
        classes: of the image; None counts everything.
        size_hw: of the frame that is scored.
    """
    if classes is None:
        return truth, found
    kept = np.isin(found.classes, sorted(classes.complete | classes.partial))
    found = InstanceSet(
        classes=found.classes[kept],
        rles=[found.rles[i] for i in np.flatnonzero(kept)],
        boxes_xywh=found.boxes_xywh[kept],
        scores=found.scores[kept],
    )
    if not classes.partial:
        return truth, found
    partial = np.array(sorted(classes.partial), np.int64)
    regions = encode_masks([np.ones(size_hw, bool)] * len(partial))
    count = len(truth.classes)
    crowd = np.zeros(count, bool) if truth.is_crowd is None else truth.is_crowd
    truth = InstanceSet(
        classes=np.concatenate([truth.classes, partial]),
        rles=[*truth.rles, *regions],
        boxes_xywh=np.concatenate([truth.boxes_xywh.reshape(-1, 4), mask_boxes(regions)]),
        is_crowd=np.concatenate([crowd, np.ones(len(partial), bool)]),
        areas=np.concatenate([truth.areas, mask_areas(regions)]),
    )
    return truth, found
