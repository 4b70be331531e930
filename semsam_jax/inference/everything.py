"""A panoptic map from all masks of an image and their names, without the generic branch.

Masks are ranked by the score of their name times their predicted IoU; in that order each gets the
remaining pixels, if they are at least half of it. All stuff of one name is one segment.

Source: the merging of Panoptic FPN, Kirillov et al., arXiv 1901.02446, section 3.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from semsam_jax.core import rle
from semsam_jax.ops.panoptic import PanopticBuilder, PanopticMap

MIN_VISIBLE = 0.5
"""Share of a mask that better ones must leave."""


def panoptic_of_masks(
    records: Sequence[Mapping],
    names: Sequence[str],
    things: Collection[int],
    image_hw: tuple[int, int],
    min_visible: float = MIN_VISIBLE,
) -> PanopticMap:
    """Merges named masks to a map in which every pixel belongs to at most one segment.

    Args:
        records: of `MaskGenerator.generate` with labels and RLE output; a mask without a sure
            object name is left out.
        names: the object names; their positions are the categories.
        things: categories whose masks stay apart; other categories are merged.
        image_hw: size of the masks.
        min_visible: see above.
    """
    category = {name: index for index, name in reversed(list(enumerate(names)))}
    rows = []
    for record in records:
        name = record.get("object")
        if name is not None and name["is_sure"] and name["name"] in category:
            score = name["score"] * float(np.clip(record["predicted_iou"], 0.0, 1.0))
            rows.append((score, category[name["name"]], record["segmentation"]))
    rows.sort(key=lambda row: -row[0])
    builder = PanopticBuilder(image_hw, things)
    for score, index, segmentation in rows:
        mask = rle.decode(segmentation)
        visible = mask & (builder.segment_map == 0)
        if visible.any() and visible.sum() >= min_visible * mask.sum():
            builder.add(visible, index, float(score))
    return builder.result()
