"""Helpers of the notebooks in `launch/colab`: small figures, a training job."""

import io
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from semsam_jax.core.errors import SemSamError

if TYPE_CHECKING:
    from IPython.display import Image as Picture

    from semsam_jax.inference.results import Segments

_SHOWN_PX = 960


def train(flags: Sequence[str]) -> None:
    """Runs the quickstart with these flags and shows what it prints, line by line.

    Raises:
        SemSamError: the job ended with an error, which is in the lines above.
    """
    command = [sys.executable, "-m", "semsam_jax.main", *flags]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as job:
        for line in job.stdout:
            print(line, end="", flush=True)
    if job.returncode:
        raise SemSamError(f"train: the job ended with code {job.returncode}; see its last lines.")


def sample_images() -> list[Path]:
    """Held-out images of the embedded sample."""
    import data_pipelines.sample

    return sorted((data_pipelines.sample.roots()["coco"] / "val2017").glob("*.jpg"))


def show(picture: UInt8[np.ndarray, "h w 3"], max_side: int = _SHOWN_PX) -> "Picture":
    """A picture for the output of a cell, small enough to be stored in the notebook."""
    from IPython.display import Image as Picture

    from semsam_jax.inference.visualize import display_size

    buffer = io.BytesIO()
    Image.fromarray(display_size(picture, max_side)).save(buffer, "JPEG", quality=70)
    return Picture(buffer.getvalue())


def show_levels(
    image: UInt8[np.ndarray, "h w 3"],
    answer: "Segments",
    points: Sequence[Sequence[float]] = (),
    boxes: Sequence[Sequence[float]] = (),
) -> "Picture":
    """The masks of a click or box side by side, with level, predicted IoU and names.

    Args:
        image: RGB.
        answer: of `Predictor.predict`.
        points: x, y and 1 (positive) or 0 (negative), image pixels.
        boxes: x0, y0, x1, y1, image pixels.
    """
    from semsam_jax.inference.visualize import level_strip

    captions = []
    for i, level in enumerate(answer.levels):
        found = (answer.objects[i], answer.parts[i])
        names = [f"{name.name} {name.score:.2f}" for name in found if name and name.is_sure]
        captions.append(f"level {level}  {answer.scores[i]:.2f}  {' / '.join(names)}")
    marks = [(p[0], p[1], bool(p[2])) for p in points]
    strip = level_strip(image, list(answer.masks), captions, points=marks, boxes=list(boxes))
    return show(strip, 1000)


def show_records(image: UInt8[np.ndarray, "h w 3"], records: Sequence[dict]) -> "Picture":
    """All masks over the image, each with its name if it has one."""
    from semsam_jax.inference.convert_results import record_mask, record_name
    from semsam_jax.inference.visualize import distinct_colours, overlay_masks, write_labels

    masks = [record_mask(record) for record in records]
    colours = distinct_colours(len(masks))
    picture = overlay_masks(image, masks, colours)
    return show(write_labels(picture, masks, [record_name(r) or "" for r in records], colours))
