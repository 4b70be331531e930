"""The figure of a run: ground truth next to predictions, and one click at every level."""

import io
from collections.abc import Iterable

import jax
import numpy as np
from PIL import Image

from semsam_jax.core.paths import AnyPath
from semsam_jax.evals.clicks import centre_click
from semsam_jax.evals.evaluator import exact_mean
from semsam_jax.evals.samples import ClassNames, EvalSample
from semsam_jax.inference.loading import model_from_params
from semsam_jax.inference.predictor import Predictor
from semsam_jax.inference.requests import Request
from semsam_jax.inference.visualize import level_strip, side_by_side

_NUM_IMAGES = 6
_MAX_CLICKS = 16


def draw_predictions(
    params: dict,
    meta: dict,
    samples: Iterable[EvalSample],
    names: ClassNames | None = None,
) -> np.ndarray | None:
    """Draws a row for each of some images: the annotated instances, the masks predicted for a
    click on each of them with their IoU, and the six levels of a click on the largest object with
    the IoU that the model predicts.

    Args:
        params: as inference uses them.
        meta: of the run.
        samples: held-out images; no picture without any.
        names: of the classes that the model can name; without them masks stay without names.

    Returns:
        The picture, uint8 [h,w,3], or None.
    """
    predictor, rows = None, []
    for sample in samples:
        clicked = _clicked(sample)
        if not clicked:
            continue
        if predictor is None:
            # From the host to one device, as from a file, so that a later `segment` finds its
            # programs traced and compiled.
            model = model_from_params(jax.device_get(params), meta, cache_programs=True)
            predictor = Predictor(model)
        rows.append(_row(predictor, sample, clicked, names))
        if len(rows) == _NUM_IMAGES:
            break
    if not rows:
        return None
    return _stack(rows)


def save_figure(workdir: AnyPath, picture: np.ndarray) -> None:
    """Writes WORKDIR/predictions.png atomically."""
    content = io.BytesIO()
    Image.fromarray(picture).save(content, format="PNG")
    partial = workdir / ".predictions.png"
    partial.write_bytes(content.getvalue())
    partial.replace(workdir / "predictions.png")


def _row(
    predictor: Predictor,
    sample: EvalSample,
    clicked: list[tuple[int, np.ndarray, tuple[float, float]]],
    names: ClassNames | None,
) -> np.ndarray:
    height, width = sample.size_hw
    image = sample.image[:height, :width]
    predictor.set_image(image)
    _, _, click = clicked[0]
    found = predictor.predict(point_coords=[click])
    captions = [
        f"level {level}  pred. IoU {score:.2f}"
        for level, score in enumerate(np.asarray(found.scores), start=1)
    ]
    strip = level_strip(image, list(found.masks), captions, points=[(*click, True)])
    objects, parts = sample.classes("object_ids"), sample.classes("part_ids")
    labels = None
    if names and (names.objects or names.parts):
        labels = {
            "objects": list(dict.fromkeys(names.objects.values())),
            "parts": list(dict.fromkeys(names.parts.values())),
        }
    answers = predictor.predict_many(
        [Request(point_coords=[xy]) for _, _, xy in clicked],
        multimask_output=False,
        labels=labels,
    )
    true_texts, texts, ious = [], [], []
    for (index, mask, _), answer in zip(clicked, answers, strict=True):
        is_part, known = parts[index] >= 0, names or ClassNames()
        true_texts.append(
            known.parts.get(int(parts[index]), "")
            if is_part
            else known.objects.get(int(objects[index]), "")
        )
        best = answer.parts[0] if is_part else answer.objects[0]
        union = int((mask | answer.masks[0]).sum())
        ious.append(int((mask & answer.masks[0]).sum()) / max(1, union))
        texts.append(f"{best.name} {ious[-1]:.2f}" if best is not None else f"{ious[-1]:.2f}")
    panels = [
        ("ground truth", [mask for _, mask, _ in clicked], true_texts),
        (
            f"prediction, mean IoU {exact_mean(ious):.2f}",
            [answer.masks[0] for answer in answers],
            texts,
        ),
    ]
    return np.concatenate([side_by_side(image, panels, height=len(strip)), strip], axis=1)


def _clicked(sample: EvalSample) -> list[tuple[int, np.ndarray, tuple[float, float]]]:
    """Index, mask and click of the largest things (not stuff), largest first."""
    things = sample.flags("is_thing", True) & ~sample.flags("is_crowd", False)
    found = []
    for index in range(len(sample.masks)):
        mask = sample.mask(index)
        click = centre_click(mask) if things[index] else None
        if click is not None:
            found.append((index, mask, (float(click[0]), float(click[1]))))
    found.sort(key=lambda one: -np.count_nonzero(one[1]))
    return found[:_MAX_CLICKS]


def _stack(rows: list[np.ndarray]) -> np.ndarray:
    """Stacks images vertically, padded to the widest."""
    width = max(row.shape[1] for row in rows)
    scaled = [
        Image.fromarray(s).resize((width, round(len(s) * width / s.shape[1])), Image.LANCZOS)
        for s in rows
    ]
    return np.concatenate([np.asarray(row) for row in scaled])
