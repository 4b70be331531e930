"""Numbers of training images of the datasets, to check a mixture without the data."""

import numpy as np

from data_pipelines.index.subset import is_chosen

TRAIN_IMAGES = {
    "sa1b": 11_185_362,
    "coco": 118_287,
    "ade20k": 20_210,
    "objects365": 1_742_289,
    "pascal_part": 4_638,
    "paco": 45_790,
    "part_imagenet": 16_540,
}
"""Of the training split, as published (SA-1B: all). PASCAL Part: VOC 2010's `train` images with
parts; ADE20k: MIT SceneParsing; Objects365: version 2."""

HAS_OBJECTS = ("coco", "ade20k", "objects365", "pascal_part", "paco", "part_imagenet")
HAS_PARTS = ("pascal_part", "paco", "part_imagenet")


class PublishedSizes:
    """Stands in for an index: has as many examples as the published dataset.

    Args:
        dataset: key of `TRAIN_IMAGES`.
        share: fraction of its images that are used.
    """

    def __init__(self, dataset: str, share: float = 1.0):
        count = TRAIN_IMAGES[dataset]
        if share < 1:
            count = int(is_chosen(np.arange(count), share).sum())
        offers = {"any": True, "object": dataset in HAS_OBJECTS, "part": dataset in HAS_PARTS}
        self._views = {name: range(count if has else 0) for name, has in offers.items()}

    def view(self, name: str) -> range:
        """Record numbers of the examples that belong to a view."""
        return self._views[name]
