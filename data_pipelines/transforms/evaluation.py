"""Fixed rows for evaluation: the whole image, letterboxed, with its human-made masks."""

from collections.abc import Iterator, Sequence

import numpy as np

from data_pipelines import decode
from data_pipelines.index import ExampleSource
from data_pipelines.schema import RawExample, RawInstance
from data_pipelines.transforms import geometry, masks, prompts, row


def evaluation_rows(
    source: ExampleSource,
    image_size: int,
    *,
    short_side: int | None = None,
    long_side: int | None = None,
    positions: Sequence[int] | None = None,
    view: str = "any",
) -> Iterator[dict]:
    """Yields one dict per image, nothing random.

    Machine-made instances (`is_pseudo`) are left out, as are instances without a pixel on the
    canvas; an image that keeps none is still yielded, with n = 0. Crowd regions (c of them, for any
    view) are separate: predictions there are ignored.

    Args:
        source: the reader.
        image_size: side of the square canvas; the image's long side is resized to it and
            the right or bottom is zero padding.
        short_side: resize the short side to this instead, as far as the long side fits.
        long_side: maximum length of the long side, by default the canvas.
        positions: which images, in which order; None for all in the source's order.
        view: only instances of this granularity (`any`, `object`, `part`).

    Yields:
        image uint8 [s,s,3]; size_hw int32 [2] valid pixels; mask_bits uint8 [n,s,s/8] at
        stride 1; boxes float32 [n,4] cxcywh, fractions of the canvas; object_id, part_id
        int32 [n]; is_thing, has_mask bool [n]; instance int32 [n] number in the record;
        ignore_bits uint8 [c,s,s/8] (zeros where a region has only a box); ignore_boxes float32
        [c,4]; ignore_object_id, ignore_part_id int32 [c]; image_hw (height, width) as stored;
        dataset, example_id; num_lost, the instances that were left out for want of a pixel.

    Raises:
        DataError: a record is broken.
    """
    for position in range(len(source)) if positions is None else positions:
        example = source[position]
        sizes = (image_size, short_side, long_side)
        placement = geometry.fit_placement(example.height, example.width, *sizes)
        yield _evaluation_row(example, placement, view)


def _evaluation_row(example: RawExample, placement: geometry.Placement, view: str) -> dict:
    where = f"{example.dataset}/{example.example_id}"
    wanted = [not item.is_pseudo and row.in_view(item, view) for item in example.instances]
    kept, mask_bits, boxes = _draw(example.instances, wanted, example, placement, where)
    crowds = example.ignored
    found, ignore_bits, ignore_boxes = _draw(
        crowds, [True] * len(crowds), example, placement, where
    )
    instances = [example.instances[number] for number in kept]
    ignored = [crowds[number] for number in found]
    return {
        "image": decode.place_image(
            example.image, placement, where=where, is_displayed=example.is_displayed
        ),
        "size_hw": np.array(placement.size_hw, np.int32),
        "mask_bits": mask_bits,
        "boxes": boxes,
        "object_id": np.array([item.object_id for item in instances], np.int32),
        "part_id": np.array([item.part_id for item in instances], np.int32),
        "is_thing": np.array([item.is_thing for item in instances], np.bool_),
        "has_mask": np.array([item.rle is not None for item in instances], np.bool_),
        "instance": np.array(kept, np.int32),
        "ignore_bits": ignore_bits,
        "ignore_boxes": ignore_boxes,
        "ignore_object_id": np.array([item.object_id for item in ignored], np.int32),
        "ignore_part_id": np.array([item.part_id for item in ignored], np.int32),
        "image_hw": (example.height, example.width),
        "dataset": example.dataset,
        "example_id": example.example_id,
        "num_lost": sum(wanted) - len(kept),
    }


def _draw(
    instances: Sequence[RawInstance],
    wanted: Sequence[bool],
    example: RawExample,
    placement: geometry.Placement,
    where: str,
) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Indices of the wanted instances that have a pixel, their bits and their boxes."""
    canvas, tables = placement.canvas, masks.draw_tables(placement)
    outlines = row.read_outlines(instances, example.height, example.width, where)
    kept, boxes, packed = [], [], []
    for number, (instance, outline) in enumerate(zip(instances, outlines, strict=True)):
        mask = None if outline is None else masks.draw_mask(outline, tables)
        if not wanted[number] or (outline is not None and mask is None):
            continue
        kept.append(number)
        packed.append(mask)
        box = mask.box_px if mask else placement.move_box(instance.box)
        boxes.append(prompts.box_cxcywh(np.array(box), canvas))
    bits = np.zeros((len(kept), canvas, canvas // 8), np.uint8)
    for slot, mask in enumerate(packed):
        if mask:
            mask.paste(bits[slot])
    return kept, bits, np.array(boxes, np.float32).reshape(-1, 4)
