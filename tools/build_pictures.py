"""Draws the README's picture with the shipped model: python -m tools.build_pictures

`docs/levels.jpg` shows the six masks of one click on held-out images of the embedded sample, which
the model was not trained on. `docs/gallery.jpg`, the best, median and worst clicks on all of them,
is the gallery of `semsam evaluate --suite one_click`, as a JPEG.
"""

import sys
from pathlib import Path

import cv2
import numpy as np

from data_pipelines import sample
from semsam_jax import Predictor, load_model
from semsam_jax.inference.images import load_image
from semsam_jax.inference.visualize import level_strip

DOCS = Path(__file__).parents[1] / "docs"
IMAGES = Path(sample.__file__).parent / "data" / "coco" / "val2017"
CLICKS = (
    ("000000000785.jpg", 267, 107),
    ("000000007991.jpg", 206, 141),
    ("000000001993.jpg", 313, 195),
    ("000000003553.jpg", 191, 54),
)
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


def _wide(picture: np.ndarray, width: int) -> np.ndarray:
    height = round(picture.shape[0] * width / picture.shape[1])
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)


def main() -> int:
    """Writes the picture."""
    picture = levels(Predictor(load_model()))
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    cv2.imwrite(str(DOCS / "levels.jpg"), bgr, [cv2.IMWRITE_JPEG_QUALITY, 82])
    print(f"wrote {DOCS / 'levels.jpg'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
