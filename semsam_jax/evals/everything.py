"""Panoptic quality without the generic branch: every mask of an image, named, without overlap.

The other way to a whole image, for a model whose generic branch is weak; PQ as in `panoptic`, so
that both ways can be compared. Masks come from the grid of clicks of the inference, with the
thresholds that the checkpoint stores.
"""

import functools
from collections.abc import Iterable, Sequence

import cv2
import numpy as np

from semsam_jax.evals.eval_loop import EvalLoop, SingleImageScorer
from semsam_jax.evals.generic import true_segments
from semsam_jax.evals.panoptic import PanopticEvaluator, PanopticResult, PanopticSegments
from semsam_jax.evals.part_ap import ClassList
from semsam_jax.evals.samples import EvalSample
from semsam_jax.inference.everything import panoptic_of_masks
from semsam_jax.inference.mask_generator import MaskGenerator


def evaluate_everything(
    generator: MaskGenerator,
    samples: Iterable[EvalSample],
    classes: ClassList,
    names: Sequence[str],
    eval_loop: EvalLoop | None = None,
) -> PanopticResult:
    """Segments and names all of each image and scores the maps.

    Args:
        generator: with the names as labels and RLE output; it sees images at its native size.
        samples: images with labelled masks; scored in the frame of the masks.
        classes: what the data set annotates.
        names: of its objects, as in `classes`.
        eval_loop: progress and records; no records by default.
    """
    evaluator = PanopticEvaluator(classes.is_thing)
    scorer = SingleImageScorer(functools.partial(_segments, generator, classes, tuple(names)))
    return (eval_loop or EvalLoop()).run("everything", evaluator, samples, scorer).result()


def _segments(
    generator: MaskGenerator, classes: ClassList, names: Sequence[str], sample: EvalSample
) -> tuple[PanopticSegments, PanopticSegments]:
    """The true and the found segments of an image."""
    height, width = sample.size_hw
    records = generator.generate(np.ascontiguousarray(sample.image[:height, :width]))
    things = set(np.flatnonzero(classes.is_thing).tolist())
    found = panoptic_of_masks(records, names, things, (height, width))
    size_hw = tuple(sample.frame_hw)
    pixels = cv2.resize(found.segment_map, size_hw[::-1], interpolation=cv2.INTER_NEAREST)
    present = set(np.unique(pixels).tolist())
    of_segment = {s.id: s.category for s in found.segments if s.id in present}
    return true_segments(sample, classes, size_hw), PanopticSegments(pixels, of_segment)
