"""Thresholds that suit a checkpoint: measured once, stored with it, used by default.

A model that was trained for minutes is less confident than one trained for weeks: with the
thresholds of the latter it finds and names nothing.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from semsam_jax.evals.clicks import centre_click
from semsam_jax.evals.samples import EvalSample
from semsam_jax.inference.loading import LoadedModel
from semsam_jax.inference.predictor import Predictor
from semsam_jax.inference.requests import Request

MAX_IMAGES = 24
GRID = 8
_IOU_SHARE, _STABILITY_SHARE = 0.8, 0.5
_STEP = 0.05
_PER_IMAGE = 12
_MIN_IOU = 0.5


def measure_thresholds(
    model: LoadedModel,
    samples: Iterable[EvalSample],
    object_names: Mapping[int, str] | None = None,
    part_names: Mapping[int, str] | None = None,
    max_images: int = MAX_IMAGES,
) -> dict[str, dict[str, float]]:
    """Values for `mask_thresholds` and `name_thresholds` of a checkpoint's config.

    Masks: an 8x8 grid of clicks on each image; of the best masks of the clicks, the predicted IoU
    that a fifth of them reach, and the stability that half of those reach. Names: the score that
    gives the best F1 of "named, and rightly", over annotated masks that the model finds (IoU at
    least 0.5). A kind of names that nothing could be measured for is left out.

    Args:
        model: the checkpoint.
        samples: images with masks.
        object_names: names by the `object_ids` of the samples.
        part_names: names by their `part_ids`.
        max_images: how many of the images are used, from the first on.
    """
    best, stability = [], []
    named: dict[str, list[tuple[float, bool]]] = {"object": [], "part": []}
    names = {"object": dict(object_names or {}), "part": dict(part_names or {})}
    has_names = bool(model.meta.get("class_heads_trained")) and any(names.values())
    for number, sample in enumerate(samples):
        if number == max_images:
            break
        height, width = sample.size_hw
        predictor = Predictor(model)
        predictor.set_image(np.ascontiguousarray(sample.image[:height, :width]))
        x, y = np.meshgrid(*[(np.arange(GRID) + 0.5) / GRID] * 2)
        grid = [Request([[a * width, b * height]]) for a, b in zip(x.flat, y.flat, strict=True)]
        for answer in predictor.predict_many(grid, multimask_output=False):
            logits = answer.low_res_logits[0]
            best.append(float(answer.scores[0]))
            stability.append(float((logits > 1).sum() / max(1, (logits > -1).sum())))
        if has_names:
            _name_masks(predictor, sample, names, named)
    found: dict[str, dict[str, float]] = {}
    if best:
        iou = _rounded(np.quantile(best, _IOU_SHARE), 0.88)
        good = [s for s, b in zip(stability, best, strict=True) if b >= iou] or stability
        stable = _rounded(np.quantile(good, _STABILITY_SHARE), 0.92)
        found["mask_thresholds"] = {"pred_iou": iou, "stability": stable}
    thresholds = {kind: best_threshold(rows) for kind, rows in named.items() if rows}
    if thresholds:
        found["name_thresholds"] = thresholds
    return found


def best_threshold(rows: Sequence[tuple[float, bool]]) -> float:
    """The score that gives the best F1 of names that are right; 1 if none ever is.

    Args:
        rows: score of the best name of a mask, and whether it is right.
    """
    scores = np.array([score for score, _ in rows])
    is_right = np.array([right for _, right in rows])
    candidates = np.unique(scores)
    f1 = [
        2 * (is_right & (scores >= value)).sum() / ((scores >= value).sum() + len(rows))
        for value in candidates
    ]
    return float(candidates[int(np.argmax(f1))]) if max(f1) > 0 else 1.0


def _name_masks(
    predictor: Predictor,
    sample: EvalSample,
    names: Mapping[str, Mapping[int, str]],
    named: Mapping[str, list[tuple[float, bool]]],
) -> None:
    truths = {"object": sample.classes("object_ids"), "part": sample.classes("part_ids")}
    labels = {f"{kind}s": list(some.values()) for kind, some in names.items()}
    for index in range(min(len(sample.masks), _PER_IMAGE)):
        mask = sample.mask(index)
        if not mask.any():
            continue
        x, y = centre_click(mask)
        answer = predictor.predict([[x + 0.5, y + 0.5]], labels=labels)
        found = answer.masks
        ious = (found & mask).sum((1, 2)) / np.maximum(1, (found | mask).sum((1, 2)))
        level = int(ious.argmax())
        if ious[level] < _MIN_IOU:
            continue
        for kind, name in (("object", answer.objects[level]), ("part", answer.parts[level])):
            truth = int(truths[kind][index])
            if name is not None and truth in names[kind]:
                named[kind].append((name.score, name.name == names[kind][truth]))


def _rounded(value: float, top: float) -> float:
    return round(float(np.clip(np.floor(value / _STEP) * _STEP, _STEP, top)), 2)
