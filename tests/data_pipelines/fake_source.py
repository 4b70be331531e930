"""Small in-memory data with known masks, for the tests of the pipeline."""

import io

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from data_pipelines.schema import RawExample, RawInstance
from data_pipelines.vocabulary import Vocabulary, VocabularyEntry

VOCABULARY = Vocabulary(
    objects=[
        VocabularyEntry("coco", "cat", "cat", 1),
        VocabularyEntry("coco", "dog", "dog", 2),
        VocabularyEntry("paco", "mug", "mug", 1),
    ],
    parts=[VocabularyEntry("paco", "handle", "handle", 1)],
)
MUG, HANDLE = 2, 3


def encode_image(pixels: np.ndarray, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, quality=95)
    return buffer.getvalue()


def encode_mask(mask: np.ndarray) -> dict:
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))


def mask_instance(mask: np.ndarray, **labels) -> RawInstance:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = (0.0, 0.0, 0.0, 0.0)
    if len(rows):
        box = (float(columns[0]), float(rows[0]), columns[-1] + 1.0, rows[-1] + 1.0)
    return RawInstance(rle=encode_mask(mask), box=box, **labels)


def ellipse(height: int, width: int, y: float, x: float, ry: float, rx: float) -> np.ndarray:
    yy, xx = np.mgrid[:height, :width]
    return ((yy - y) / ry) ** 2 + ((xx - x) / rx) ** 2 <= 1


def random_masks(rng: np.random.Generator, height: int, width: int, count: int) -> list:
    """Ellipses of all sizes, each with a pixel at least."""
    found = []
    for _ in range(count):
        y, x = rng.uniform(0, height), rng.uniform(0, width)
        ry, rx = 1 + rng.random() * height / 2, 1 + rng.random() * width / 2
        mask = ellipse(height, width, y, x, ry, rx)
        mask[min(int(y), height - 1), min(int(x), width - 1)] = True
        found.append(mask)
    return found


def make_example(
    dataset: str, number: int, *, masks: int = 4, height: int = 60, width: int = 90
) -> RawExample:
    """A coloured image; sa1b unlabelled, coco objects, paco a mug with its handle."""
    rng = np.random.default_rng(1000 * number + len(dataset))
    pixels = rng.integers(0, 255, (height, width, 3)).astype(np.uint8)
    instances = []
    for index, mask in enumerate(random_masks(rng, height, width, masks)):
        labels = {}
        if dataset == "coco":
            labels = {"object_id": index % 2}
        if dataset == "paco":
            labels = {"object_id": MUG}
            if index % 2 and number % 2:
                labels |= {"part_id": HANDLE, "parent": index - 1}
        if dataset == "objects365":
            box = mask_instance(mask).box
            instances.append(RawInstance(rle=None, box=box, object_id=0))
            continue
        instances.append(mask_instance(mask, **labels))
    return RawExample(
        dataset, f"image{number}", encode_image(pixels), height, width, tuple(instances)
    )


class FakeSource:
    """A list of examples, or of errors to raise."""

    fingerprint = "0123456789abcdef"
    index_folder = None
    vocabulary = VOCABULARY
    unused = ()

    def __init__(self, examples: list):
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, position: int) -> RawExample:
        found = self.examples[position]
        if isinstance(found, Exception):
            raise found
        return found


def fake_source(dataset: str, size: int = 6, **kwargs) -> FakeSource:
    return FakeSource([make_example(dataset, number, **kwargs) for number in range(size)])
