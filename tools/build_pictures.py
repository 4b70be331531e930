"""Draws the README's pictures with the shipped model: python -m tools.build_pictures

`docs/levels.jpg` shows the six masks of one click on held-out images of the embedded sample, which
the model was not trained on; `docs/everything.jpg` the panoptic segments of such images, with the
names of COCO's classes. `docs/gallery.jpg`, the best, median and
worst clicks on all of them, is the gallery of `semsam evaluate --suite one_click`, as a JPEG.
"""

import sys
from pathlib import Path

import cv2
import numpy as np

from data_pipelines import sample
from semsam_jax import LoadedModel, Predictor, load_model
from semsam_jax.core import rle
from semsam_jax.inference.images import load_image
from semsam_jax.inference.visualize import level_strip, side_by_side
from semsam_jax.inference.whole_image import find_panoptic

DOCS = Path(__file__).parents[1] / "docs"
IMAGES = Path(sample.__file__).parent / "data" / "coco" / "val2017"
CLICKS = (
    ("000000000785.jpg", 267, 107),
    ("000000007991.jpg", 206, 141),
    ("000000001993.jpg", 313, 195),
    ("000000003553.jpg", 191, 54),
)
NAMED = ("000000006723.jpg", "000000002153.jpg", "000000008762.jpg", "000000008021.jpg")
_WIDTH, _HEIGHT, _TITLE = 1600, 380, 30


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


def everything(model: LoadedModel) -> np.ndarray:
    """The panoptic segments of some images, side by side."""
    panels = []
    for name in NAMED:
        image = load_image(IMAGES / name)
        records = find_panoptic(model, image, "coco").records
        texts = [record["object"]["name"] for record in records]
        row = side_by_side(
            image, [("", [rle.decode(r["segmentation"]) for r in records], texts)], height=_HEIGHT
        )
        panels.append(row[_TITLE:])
    return _wide(np.concatenate(panels, axis=1), _WIDTH)


def _wide(picture: np.ndarray, width: int) -> np.ndarray:
    height = round(picture.shape[0] * width / picture.shape[1])
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)


def main() -> int:
    """Writes the pictures."""
    model = load_model()
    pictures = {"levels.jpg": levels(Predictor(model)), "everything.jpg": everything(model)}
    for name, picture in pictures.items():
        bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(DOCS / name), bgr, [cv2.IMWRITE_JPEG_QUALITY, 82])
        print(f"wrote {DOCS / name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
