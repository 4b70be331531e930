"""AR@1000 of segment-everything: how much of the ground truth do all masks of an image cover?

    AR@1000 = mean over IoU .50:.05:.95 of the share of ground-truth masks that are matched
              one-to-one by one of the 1,000 best masks, classes ignored

Source: SAM (arXiv 2304.02643), section 7.3, and COCO's average recall.
"""

import functools
from collections.abc import Callable, Iterable

import numpy as np

from semsam_jax.core.rle import encode_masks, mask_areas
from semsam_jax.evals.eval_loop import EvalLoop, SingleImageScorer
from semsam_jax.evals.instance_ap import InstanceEvaluator, InstanceResult, InstanceSet
from semsam_jax.evals.samples import EvalSample

MAX_PROPOSALS = (10, 100, 1000)


def evaluate_proposals(
    generate: Callable[[EvalSample], tuple[list[dict], np.ndarray]],
    samples: Iterable[EvalSample],
    eval_loop: EvalLoop | None = None,
) -> InstanceResult:
    """Average recall of a mask generator.

    Args:
        generate: returns the RLEs of all masks of an image, in the frame of the ground truth,
            and their scores, float [n].
        samples: images with masks; crowd regions are ignored as in COCO.
        eval_loop: progress and records; no records by default.

    Returns:
        `ar` holds AR@10, 100 and 1000, `ar_by_size` AR@1000; AP is class-agnostic.
    """
    evaluator = InstanceEvaluator(1, "mask", is_class_agnostic=True, max_detections=MAX_PROPOSALS)
    scorer = SingleImageScorer(functools.partial(_compare, generate))
    return (eval_loop or EvalLoop()).run("proposals", evaluator, samples, scorer).result()


def _compare(
    generate: Callable[[EvalSample], tuple[list[dict], np.ndarray]], sample: EvalSample
) -> tuple:
    """The input of `InstanceEvaluator.process` for one image."""
    masks = [sample.truth_mask(index) for index in range(len(sample.masks))]
    kept = [index for index, mask in enumerate(masks) if mask.any()]
    true_rles = encode_masks([masks[index] for index in kept])
    truth = InstanceSet(
        classes=np.zeros(len(kept), np.int64),
        rles=true_rles,
        is_crowd=sample.flags("is_crowd", False)[kept] if kept else None,
        areas=sample.image_area(mask_areas(true_rles)),
    )
    rles, scores = generate(sample)
    found = InstanceSet(
        classes=np.zeros(len(rles), np.int64),
        rles=rles,
        scores=np.asarray(scores),
        areas=sample.image_area(mask_areas(rles)),
    )
    return f"{sample.dataset}/{sample.image_id}", sample.frame_hw, truth, found
