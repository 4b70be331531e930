"""Thresholds that suit a checkpoint: measured once, stored with it, used by default.

A model that was trained for minutes is less confident than one trained for weeks: with the
thresholds of the latter it finds and names nothing.
"""

from collections.abc import Iterable, Mapping
from itertools import islice

import numpy as np

from semsam_jax.evals.class_embeddings import known_classes
from semsam_jax.evals.eval_loop import EvalLoop
from semsam_jax.evals.names import MIN_IOU, NameTable, calibrations, evaluate_names
from semsam_jax.evals.part_ap import ClassList
from semsam_jax.evals.samples import EvalSample
from semsam_jax.inference.loading import LoadedModel
from semsam_jax.inference.predictor import Predictor
from semsam_jax.inference.requests import Request

MAX_IMAGES = 24
GRID = 8
_IOU_SHARE, _STABILITY_SHARE = 0.6, 0.3
_STEP = 0.05


def measure_thresholds(
    model: LoadedModel,
    samples: Iterable[EvalSample],
    object_names: Mapping[int, str] | None = None,
    part_names: Mapping[int, str] | None = None,
    max_images: int = MAX_IMAGES,
) -> dict[str, dict]:
    """What `mask_thresholds` and `name_thresholds` give, by this process alone.

    Args:
        model: the checkpoint.
        samples: images with masks on the canvas.
        object_names: names by the `object_ids` of the samples.
        part_names: names by their `part_ids`.
        max_images: how many of the images are used, from the first on.
    """
    found: dict[str, dict] = dict(mask_thresholds(model, samples, max_images))
    objects, parts = dict(object_names or {}), dict(part_names or {})
    if not model.meta.get("parts_trained", True):
        parts = {}
    if model.meta.get("class_heads_trained") and (objects or parts):
        ids = [np.array(list(names), np.int64) for names in (objects, parts)]
        known = known_classes(
            model.module,
            model.params,
            model.meta,
            ClassList(ids[0], np.ones(len(objects), bool), ids[1]),
            list(objects.values()),
            list(parts.values()),
        )
        table = evaluate_names(
            model.module,
            model.params,
            known,
            islice(samples, max_images),
            box_type=0 if model.prompt_preset == "released_v1" else 1,
            eval_loop=EvalLoop(process_index=0, process_count=1),
        )
        found |= name_thresholds(table)
    return found


def mask_thresholds(
    model: LoadedModel, samples: Iterable[EvalSample], max_images: int = MAX_IMAGES
) -> dict[str, dict[str, float]]:
    """`mask_thresholds` of a checkpoint's config, or nothing without images.

    Of the best masks of an 8x8 grid of clicks on each image: the predicted IoU that two fifths of
    them reach, and the stability that seven tenths of those reach.

    Args:
        model: the checkpoint.
        samples: images.
        max_images: how many of them are used, from the first on.
    """
    best, stability = [], []
    for sample in islice(samples, max_images):
        height, width = sample.size_hw
        predictor = Predictor(model)
        predictor.set_image(np.ascontiguousarray(sample.image[:height, :width]))
        x, y = np.meshgrid(*[(np.arange(GRID) + 0.5) / GRID] * 2)
        grid = [Request([[a * width, b * height]]) for a, b in zip(x.flat, y.flat, strict=True)]
        for answer in predictor.predict_many(grid, multimask_output=False):
            logits = answer.low_res_logits[0]
            best.append(float(answer.scores[0]))
            stability.append(float((logits > 1).sum() / max(1, (logits > -1).sum())))
    if not best:
        return {}
    iou = _rounded(np.quantile(best, _IOU_SHARE), 0.88)
    good = [s for s, b in zip(stability, best, strict=True) if b >= iou] or stability
    stable = _rounded(np.quantile(good, _STABILITY_SHARE), 0.92)
    return {"mask_thresholds": {"pred_iou": iou, "stability": stable}}


def name_thresholds(table: NameTable) -> dict[str, dict]:
    """`name_thresholds` of a checkpoint's config, and `name_calibration` beside it.

    The score that gives the best F1 of "named, and rightly", over masks that the model finds (IoU
    at least 0.5); of the calibration the number of such names, the share that is right, and the
    expected calibration error. A kind of names that nothing could be measured for is left out.

    Args:
        table: of `names.evaluate_names`.
    """
    thresholds, measured = {}, {}
    for kind, bins in calibrations(table).items():
        own = table.of(kind)
        own = own.select(own.iou >= MIN_IOU)
        thresholds[kind] = best_threshold(own.score, own.is_right)
        right = float(own.is_right.mean())
        measured[kind] = {"names": len(own), "right": right, "error": bins.error}
    return {"name_thresholds": thresholds, "name_calibration": measured} if thresholds else {}


def best_threshold(scores: np.ndarray, is_right: np.ndarray) -> float:
    """The score that gives the best F1 of names that are right; 1 if none ever is.

    Args:
        scores: float [n] of the best name of each mask.
        is_right: bool [n] whether it is right.
    """
    order = np.argsort(-np.asarray(scores), kind="stable")
    ranked, right = np.asarray(scores)[order], np.cumsum(np.asarray(is_right)[order])
    f1 = 2 * right / (np.arange(1, len(ranked) + 1) + len(ranked))
    # A threshold takes all names of its score.
    f1[:-1][ranked[:-1] == ranked[1:]] = -1.0
    # Of equal values the lowest threshold, which names most.
    best = len(f1) - 1 - int(np.argmax(f1[::-1]))
    return float(ranked[best]) if f1[best] > 0 else 1.0


def _rounded(value: float, top: float) -> float:
    return round(float(np.clip(np.floor(value / _STEP) * _STEP, _STEP, top)), 2)
