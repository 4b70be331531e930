"""The figure of a run: one click at every level, on held-out images."""

import io
from collections.abc import Iterable

import jax
import numpy as np
from PIL import Image

from semsam_jax.core.paths import AnyPath
from semsam_jax.evals.clicks import centre_click
from semsam_jax.evals.samples import EvalSample
from semsam_jax.inference.loading import model_from_params
from semsam_jax.inference.predictor import Predictor
from semsam_jax.inference.visualize import level_strip

_NUM_IMAGES = 6


def draw_predictions(params: dict, meta: dict, samples: Iterable[EvalSample]) -> np.ndarray | None:
    """Draws one click at all levels for some images.

    The clicked instance is the largest countable one of each image.

    Args:
        params: as inference uses them.
        meta: of the run.
        samples: held-out images; without any there is no picture.

    Returns:
        The picture, uint8 [h,w,3], or None.
    """
    predictor, strips = None, []
    for sample in samples:
        click = _largest_thing_click(sample)
        if click is None:
            continue
        if predictor is None:
            # From the host to one device, as from a file: so `segment` finds its programs traced
            # and compiled when it follows the run.
            model = model_from_params(jax.device_get(params), meta, cache_programs=True)
            predictor = Predictor(model)
        height, width = sample.size_hw
        image = sample.image[:height, :width]
        predictor.set_image(image)
        found = predictor.predict(point_coords=[click])
        captions = [
            f"level {level}  IoU {score:.2f}"
            for level, score in enumerate(np.asarray(found.scores), start=1)
        ]
        strips.append(level_strip(image, list(found.masks), captions, points=[(*click, True)]))
        if len(strips) == _NUM_IMAGES:
            break
    if not strips:
        return None
    return _stack(strips)


def save_figure(workdir: AnyPath, picture: np.ndarray) -> None:
    """Writes WORKDIR/predictions.png, whole or not at all."""
    content = io.BytesIO()
    Image.fromarray(picture).save(content, format="PNG")
    partial = workdir / ".predictions.png"
    partial.write_bytes(content.getvalue())
    partial.replace(workdir / "predictions.png")


def _largest_thing_click(sample: EvalSample) -> tuple[float, float] | None:
    things = sample.flags("is_thing", True)
    masks = [sample.mask(index) for index in range(len(sample.masks)) if things[index]]
    if not masks:
        return None
    click = centre_click(max(masks, key=np.count_nonzero))
    return None if click is None else (float(click[0]), float(click[1]))


def _stack(strips: list[np.ndarray]) -> np.ndarray:
    """One above the other, all as wide as the widest."""
    width = max(strip.shape[1] for strip in strips)
    rows = [
        Image.fromarray(s).resize((width, round(len(s) * width / s.shape[1])), Image.LANCZOS)
        for s in strips
    ]
    return np.concatenate([np.asarray(row) for row in rows])
