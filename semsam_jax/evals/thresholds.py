"""Thresholds of a checkpoint: measured once, stored with it, used by default.

A barely trained model has lower scores than a fully trained one; with the thresholds of the latter
it would find and name nothing.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from scipy.optimize import minimize
from scipy.special import logit

from data_pipelines.sources.subset import spread
from semsam_jax.evals.class_embeddings import known_classes
from semsam_jax.evals.eval_loop import EvalLoop, SampleSource
from semsam_jax.evals.names import MIN_IOU, NameTable, calibrations, evaluate_names, reliability
from semsam_jax.evals.part_ap import ClassList
from semsam_jax.evals.prompt_scores import MASK_STRIDE
from semsam_jax.inference.loading import LoadedModel
from semsam_jax.inference.name_scores import ScoreScale
from semsam_jax.inference.predictor import Predictor
from semsam_jax.inference.requests import Request

MAX_IMAGES = 24
GRID = 8
MIN_NAMES = 50
_IOU_SHARE, _STABILITY_SHARE = 0.6, 0.3
_STEP = 0.05


def measure_thresholds(
    model: LoadedModel,
    samples: SampleSource,
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
        max_images: how many of the images are used, evenly spaced over all.
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
            samples.read(spread(len(samples), max_images)),
            box_type=0 if model.prompt_preset == "released_v1" else 1,
            eval_loop=EvalLoop(process_index=0, process_count=1),
        )
        found |= name_thresholds(table)
    return found


def with_stored(meta: Mapping, found: Mapping[str, Mapping]) -> dict[str, dict]:
    """What was measured, and what a checkpoint says of kinds of names that were not.

    Args:
        meta: of the checkpoint.
        found: of `measure_thresholds`, or a part of it.
    """
    return {key: {**(meta.get(key) or {}), **values} for key, values in found.items()}


def mask_thresholds(
    model: LoadedModel, samples: SampleSource, max_images: int = MAX_IMAGES
) -> dict[str, dict[str, float]]:
    """`mask_thresholds` of a checkpoint's config, or nothing without images.

    Of the best masks of an 8x8 grid of clicks on each image: the predicted IoU that two fifths of
    them reach, and the stability that seven tenths of those reach.

    Args:
        model: the checkpoint.
        samples: images.
        max_images: how many of them are used, evenly spaced over all.
    """
    best, stability = [], []
    for sample in samples.read(spread(len(samples), max_images)):
        height, width = sample.size_hw
        predictor = Predictor(model)
        predictor.set_image(np.ascontiguousarray(sample.image[:height, :width]))
        frame = model.frame((height, width))
        rows, columns = (-(-side // MASK_STRIDE) for side in frame.resized_hw)
        x, y = np.meshgrid(*[(np.arange(GRID) + 0.5) / GRID] * 2)
        grid = [Request([[a * width, b * height]]) for a, b in zip(x.flat, y.flat, strict=True)]
        for answer in predictor.predict_many(grid, multimask_output=False):
            logits = answer.low_res_logits[0, :rows, :columns]  # as the generator, without padding
            best.append(float(answer.scores[0]))
            stability.append(float((logits > 1).sum() / max(1, (logits > -1).sum())))
    if not best:
        return {}
    iou = _rounded(np.quantile(best, _IOU_SHARE), 0.88)
    good = [s for s, b in zip(stability, best, strict=True) if b >= iou] or stability
    stable = _rounded(np.quantile(good, _STABILITY_SHARE), 0.92)
    return {"mask_thresholds": {"pred_iou": iou, "stability": stable}}


def name_thresholds(table: NameTable) -> dict[str, dict]:
    """Measures `name_scales`, `name_thresholds` and `name_calibration` of a checkpoint's config.

    All three are measured on masks that the model finds (IoU at least 0.5), for each kind of names
    (`object`, `part`) that has any; the others are left out.

    Args:
        table: of `names.evaluate_names`, with uncalibrated scores.

    Returns:
        Empty if nothing could be measured, else by kind of names:
        `name_scales`: gain and offset that calibrate the scores (`fit_scale`).
        `name_thresholds`: the calibrated score, 0..1, with the best F1 of right names
            (`best_threshold`).
        `name_calibration`: number of names, share of right ones (0..1), and expected calibration
            error without (`error_before`) and with (`error`) the scale, on the same masks.
    """
    scales, thresholds, measured = {}, {}, {}
    for kind, bins in calibrations(table).items():
        own = table.of(kind)
        own = own.select(own.iou >= MIN_IOU)
        scale = fit_scale(logit(own.score), own.is_right)
        if scale != ScoreScale():
            own = dataclasses.replace(own, score=scale.scores(logit(own.score)))
        scales[kind] = [scale.gain, scale.offset]
        thresholds[kind] = best_threshold(own.score, own.is_right)
        measured[kind] = {
            "names": len(own),
            "right": float(own.is_right.mean()),
            "error_before": bins.error,
            "error": reliability(own).error,
        }
    if not thresholds:
        return {}
    return {
        "name_scales": scales,
        "name_thresholds": thresholds,
        "name_calibration": measured,
    }


def fit_scale(logits: np.ndarray, is_right: np.ndarray) -> ScoreScale:
    """The scale with the highest likelihood; none for fewer than `MIN_NAMES` names.

    A name that is right counts as (r + 1) / (r + 2) of one, a wrong one as 1 / (w + 2), where r and
    w are the numbers of both, so that the line stays finite where all names are right (Platt,
    1999). A line that falls would turn the order around, and is none.

    Args:
        logits: float [n] of the best name of each mask.
        is_right: bool [n] whether it is right.
    """
    if len(logits) < MIN_NAMES:
        return ScoreScale()
    right = int(np.sum(is_right))
    wanted = np.where(is_right, (right + 1) / (right + 2), 1 / (len(logits) - right + 2))

    def loss(line: np.ndarray) -> float:
        x = line[0] * logits + line[1]
        return float(np.mean(np.logaddexp(0, x) - wanted * x))

    gain, offset = minimize(loss, (1.0, 0.0), method="BFGS").x
    return ScoreScale(float(gain), float(offset)) if gain > 0 else ScoreScale()


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
