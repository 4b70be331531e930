"""A small custom dataset that tests bend: two images of 96x64 with a dog and a cat each."""

import copy
import io
import json
import pathlib

import numpy as np
from PIL import Image

from data_pipelines.sources.single_dataset import open_single_dataset

SIZE_HW = (64, 96)
DOG = [24, 16, 60, 16, 60, 48, 24, 48]
"""36x32 = 1152 pixels; its ground is red, the rest of the image blue."""
CAT = [2, 2, 18, 2, 18, 12, 2, 12]


def image(orientation: int = 1, kind: str = "JPEG") -> bytes:
    """The encoded image; its stored pixels are those that `orientation` displays as DOG's."""
    pixels = np.zeros((*SIZE_HW, 3), np.uint8)
    pixels[..., 2] = 200
    pixels[16:48, 24:60] = (250, 10, 10)
    stored = Image.fromarray(pixels)
    exif = Image.Exif()
    if orientation > 1:
        exif[0x0112] = orientation
    buffer = io.BytesIO()
    stored.save(buffer, kind, quality=95, exif=exif)
    return buffer.getvalue()


def content() -> dict:
    """The annotations of both images, COCO-format."""
    annotations = []
    for number in (1, 2):
        for category, outline in ((1, DOG), (2, CAT)):
            x, y = outline[0], outline[1]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": category,
                    "iscrowd": 0,
                    "bbox": [x, y, outline[2] - x, outline[5] - y],
                    "segmentation": [outline],
                }
            )
    images = [
        {"id": number, "file_name": f"p{number}.jpg", "width": 96, "height": 64}
        for number in (1, 2)
    ]
    categories = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def write(root: pathlib.Path, change=None, *, place="annotations/train.json", images="images"):
    """Writes the set below `root`; `change` bends the content first. Returns root."""
    made = copy.deepcopy(content())
    if change is not None:
        change(made)
    file = root / place
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(made))
    for number in (1, 2):
        path = root / images / f"p{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image())
    return root


def first(**values):
    """Changes the first annotation."""
    return lambda content: content["annotations"][0].update(values)


def each(key, make):
    """Changes a key of every annotation."""

    def change(content):
        for row in content["annotations"]:
            row[key] = make(row[key])

    return change


def read(root: pathlib.Path, split: str = "train", **options):
    """Opens the set as every tool does."""
    return open_single_dataset("custom", root, split, options)
