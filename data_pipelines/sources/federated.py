"""Which classes an image is annotated for, in files with the lists of LVIS (PACO, custom data).

An image is exhaustively annotated for the classes of its annotations and for those in its
`neg_category_ids`, which are absent. Those in `not_exhaustive_category_ids` lack instances; nothing
is known of all other classes. An image without `neg_category_ids` is complete for its own classes
only. Source: arXiv 1908.03195, section 3.
"""

from collections.abc import Mapping

import numpy as np

from data_pipelines.sources.builder import ExampleBuilder
from data_pipelines.sources.coco_json import ClassLabel, CocoTable


def has_lists(table: CocoTable) -> bool:
    """Whether some image of a file says which classes it is annotated for."""
    return bool(table.negatives or table.not_exhaustive)


def set_classes(
    builder: ExampleBuilder, table: CocoTable, position: int, labels: Mapping[int, ClassLabel]
) -> None:
    """Sets what is known about each class in an image; parts are treated like their object.

    Args:
        builder: of the image.
        table: the file.
        position: of the image in it.
        labels: native category id -> label; listed classes that it lacks are ignored.
    """
    span = slice(int(table.starts[position]), int(table.starts[position + 1]))
    stated = [
        np.unique(table.categories[span]).tolist(),
        table.negatives.get(position, ()),
        table.not_exhaustive.get(position, ()),
    ]
    found, negatives, listed = (
        [
            (labels[category].object_id, labels[category].part_id)
            for category in ids
            if category in labels
        ]
        for ids in stated
    )
    incomplete = {object_id for object_id, part_id in listed if part_id < 0}
    partial = {*listed, *(label for label in found if label[0] in incomplete)}
    builder.partial = tuple(sorted(partial))
    builder.annotated = tuple(sorted({*found, *negatives} - partial))
