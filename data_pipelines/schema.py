"""Data contracts of the input: what a reader yields and what a training step receives.

`RawExample` is one annotated image as a reader of `sources/` yields it. `BatchShape.spec` is
the padded, fixed-shape row that the transforms make of it; `semsam_jax.core.structs.Batch`
mirrors its keys. Nothing here imports jax.

Crowd regions (`iscrowd` of COCO-format data: "people, too many to outline") are not instances,
because their number is unknown. Readers put them into `RawExample.ignored`: training does not use
them, records keep them, and `evaluation_rows` passes them on (`ignore_bits`, `ignore_boxes`,
`ignore_object_id`, `ignore_part_id`), so that predictions inside them are not counted as wrong.
"""

import dataclasses

import numpy as np

from data_pipelines.findings import Unused

DATASETS = ("sa1b", "coco", "ade20k", "objects365", "pascal_part", "paco", "part_imagenet")
"""Order of the dataset index in a batch; custom datasets follow."""


@dataclasses.dataclass(frozen=True)
class RawInstance:
    """One annotated mask or box, in pixels of the frame that its `RawExample` names.

    Attributes:
        rle: COCO RLE {"size": [h, w], "counts": bytes}, or None for boxes only.
        box: (x0, y0, x1, y1), pixels as float32 holds them, x1 and y1 exclusive.
        object_id: index in the union vocabulary, -1 none.
        part_id: index in the union vocabulary (>= num_objects), -1 none.
        parent: index in `RawExample.instances` of the whole that a part belongs to, -1.
        is_thing: whether the class is countable (stuff otherwise).
        is_pseudo: True for machine-made labels; never used for reported scores.
    """

    rle: dict | None
    box: tuple[float, float, float, float]
    object_id: int = -1
    part_id: int = -1
    parent: int = -1
    is_thing: bool = True
    is_pseudo: bool = False

    @property
    def kind(self) -> str:
        """`part`, `object`, or `agnostic`: a mask without a class or a known whole."""
        if self.part_id >= 0 or self.parent >= 0:
            return "part"
        return "object" if self.object_id >= 0 else "agnostic"


@dataclasses.dataclass(frozen=True)
class RawExample:
    """One image with its instances.

    Attributes:
        dataset: one of `DATASETS`, or the name of a custom dataset.
        example_id: unique within the dataset, for messages and reports.
        image: encoded bytes (JPEG or PNG), exactly as stored.
        height, width: size in pixels of the frame that the annotations are in.
        instances: the annotations, in the dataset's order.
        ignored: crowd regions, in the dataset's order; not used in training or counts.
        is_displayed: the frame is that of the displayed image (its EXIF orientation is applied
            when it is decoded), not that of the stored pixels.
        unused: annotations that became neither; not part of records.
        annotated: classes of which every instance in this image is annotated, none included, as
            pairs (object_id, part_id), part_id -1 for whole objects. None: all of the dataset's.
        partial: classes of which instances may be missing.
        is_exclusive: an instance has one class of the dataset and therefore none of the others,
            whether those are annotated in this image or not.
    """

    dataset: str
    example_id: str
    image: bytes
    height: int
    width: int
    instances: tuple[RawInstance, ...]
    ignored: tuple[RawInstance, ...] = ()
    is_displayed: bool = False
    unused: tuple[Unused, ...] = dataclasses.field(default=(), compare=False)
    annotated: tuple[tuple[int, int], ...] | None = None
    partial: tuple[tuple[int, int], ...] = ()
    is_exclusive: bool = False


NOT_OWNED, OWN_CLASS, EVERY_OWNED = 0, 1, 2
"""Values of `vocab_owned`: where a class counts that is not annotated completely: nowhere; at the
prediction of an instance of the class (a positive); at the predictions of all instances (negatives
of the others too). At predictions without an instance it counts with none of them."""


@dataclasses.dataclass(frozen=True)
class BatchShape:
    """Static sizes of a row: canvas, padding and the stride of stored masks."""

    image_size: int = 1024
    max_instances: int = 100
    num_prompts: int = 60
    max_targets: int = 6
    mask_stride: int = 1
    vocab_size: int = 1

    def spec(self) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
        """Returns key -> (dtype, shape of one row); axis names as in docs/design.md."""
        size, n, p, t = self.image_size, self.max_instances, self.num_prompts, self.max_targets
        side = size // self.mask_stride
        return {
            "image": (np.dtype(np.uint8), (size, size, 3)),
            "size_hw": (np.dtype(np.int32), (2,)),
            "mask_bits": (np.dtype(np.uint8), (n, side, side // 8)),
            "boxes": (np.dtype(np.float32), (n, 4)),
            "object_id": (np.dtype(np.int32), (n,)),
            "part_id": (np.dtype(np.int32), (n,)),
            "instance_valid": (np.dtype(np.bool_), (n,)),
            "prompt_box": (np.dtype(np.float32), (p, 4)),
            "prompt_is_box": (np.dtype(np.bool_), (p,)),
            "prompt_valid": (np.dtype(np.bool_), (p,)),
            "prompt_targets": (np.dtype(np.int32), (p, t)),
            "pseudo_targets": (np.dtype(np.int32), (p, t)),
            "vocab_valid": (np.dtype(np.bool_), (self.vocab_size,)),
            "vocab_owned": (np.dtype(np.uint8), (self.vocab_size,)),
            "has_masks": (np.dtype(np.bool_), ()),
            "dataset": (np.dtype(np.int32), ()),
        }
