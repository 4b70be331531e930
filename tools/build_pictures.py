"""Draws the pictures of the README with the shipped model: python -m tools.build_pictures

All images are held-out ones of the embedded sample, which no model of this project was trained on.
`docs/levels.jpg` shows the six masks of one click, `docs/everything.jpg` all masks of two images at
one level, with names. `docs/gallery.png`, the best, median and worst clicks, is a product of
`semsam evaluate --suite one_click`.
"""

import sys
from pathlib import Path

import cv2
import numpy as np

from data_pipelines import sample
from semsam_jax import MaskGenerator, Predictor, load_model
from semsam_jax.inference.images import load_image
from semsam_jax.inference.visualize import (
    distinct_colours,
    level_strip,
    overlay_masks,
    write_labels,
)

DOCS = Path(__file__).parents[1] / "docs"
IMAGES = Path(sample.__file__).parent / "data" / "coco" / "val2017"
CLICKS = (
    ("000000000785.jpg", 267, 107),
    ("000000007991.jpg", 206, 141),
    ("000000001993.jpg", 313, 195),
    ("000000003553.jpg", 191, 54),
)
EVERYTHING = ("000000007991.jpg", "000000000785.jpg")
NAMES = {
    "objects": ["person", "ski", "snow", "bowl", "carrot", "oven", "knife", "plate", "cucumber"]
}
_WIDTH = 1600


def levels(predictor: Predictor) -> np.ndarray:
    """A row of six masks per click."""
    rows = []
    for name, x, y in CLICKS:
        image = load_image(IMAGES / name)
        predictor.set_image(image)
        found = predictor.predict([[x, y]])
        captions = [
            f"level {level}, IoU {score:.2f}"
            for level, score in zip(found.levels, found.scores, strict=True)
        ]
        rows.append(level_strip(image, found.masks, captions, points=[(x, y, True)]))
    return np.concatenate([_wide(row, _WIDTH) for row in rows])


def everything(model) -> np.ndarray:
    """All masks of level 3 that do not overlap, with their names."""
    panels = []
    for name in EVERYTHING:
        image = load_image(IMAGES / name)
        generator = MaskGenerator(
            model, level=3, overlap="none", labels=NAMES, points_per_side=24, size=None
        )
        records = generator.generate(image)
        masks = [np.asarray(record["segmentation"], bool) for record in records]
        texts = [record["object"]["name"] if "object" in record else "" for record in records]
        colours = distinct_colours(len(masks), start=0.33)
        picture = overlay_masks(image, masks, colours)
        panels.append(cv2.resize(write_labels(picture, masks, texts, colours), (800, 450)))
    return np.concatenate(panels, axis=1)


def _wide(picture: np.ndarray, width: int) -> np.ndarray:
    height = round(picture.shape[0] * width / picture.shape[1])
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)


def main() -> int:
    """Writes both pictures."""
    model = load_model()
    for name, picture in (
        ("levels.jpg", levels(Predictor(model))),
        ("everything.jpg", everything(model)),
    ):
        bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(DOCS / name), bgr, [cv2.IMWRITE_JPEG_QUALITY, 82])
        print(f"wrote {DOCS / name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
