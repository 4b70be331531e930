"""Panoptic, instance and semantic results for one image.

They come from the queries of the generic branch, or from named masks of a grid of clicks, merged
without overlap; `panoptic_source` in the checkpoint's meta says which of the two is better for it
(`semsam calibrate --panoptic` measures both). If the generic branch finds nothing above its
threshold, as after little training, a panoptic map is made of masks, too.
"""

import dataclasses
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import cv2
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8

from semsam_jax.core import rle
from semsam_jax.core.errors import CheckpointError, PromptError
from semsam_jax.inference import files, visualize
from semsam_jax.inference.everything import panoptic_of_masks
from semsam_jax.inference.labels import Labels, LabelSet, knows_names, label_set
from semsam_jax.inference.loading import LoadedModel, low_res_logits
from semsam_jax.inference.mask_generator import MaskGenerator
from semsam_jax.inference.preprocess import Frame, Size, fit_image
from semsam_jax.inference.results import UnknownName
from semsam_jax.inference.upsample import upsample_logits
from semsam_jax.ops import panoptic

TASKS = ("panoptic", "instance", "semantic")
PANOPTIC_SOURCES = ("generic", "masks")
"""Where results for a whole image come from: the generic branch, or named masks of clicks."""
POINTS_PER_SIDE = 16
"""Clicks along each side of the grid whose masks label a whole image."""
_MAX_WORK_PIXELS = 1_000_000
_MIN_INSTANCE_SCORE = 0.25


@dataclasses.dataclass(frozen=True)
class WholeImageAnswer:
    """Output of the queries of the generic branch for one image.

    Attributes:
        class_logits: [q, v] over the object names.
        low_res_logits: masks [q, h/4, w/4] of the padded canvas.
        boxes: [q, 4] x0, y0, x1, y1 in image pixels.
        frame: sizes.
        names: the object names.
    """

    class_logits: Float[np.ndarray, "q v"]
    low_res_logits: Float[np.ndarray, "q h w"]
    boxes: Float[np.ndarray, "q 4"]
    frame: Frame
    names: LabelSet


@dataclasses.dataclass(frozen=True)
class PanopticAnswer:
    """A class name for the pixels of an image.

    Attributes:
        segment_map: the id of each pixel's segment, [h, w]; 0 for none.
        records: of the segments.
        unknown: names that the checkpoint does not know.
        is_from_masks: whether these are named masks of a grid of clicks, because the checkpoint
            says so or its generic branch found nothing above its threshold.
    """

    segment_map: Int[np.ndarray, "h w"]
    records: list[dict]
    unknown: tuple[UnknownName, ...]
    is_from_masks: bool


def panoptic_source(meta: Mapping) -> str:
    """Returns one of `PANOPTIC_SOURCES`: what the checkpoint says, or the generic branch.

    Raises:
        CheckpointError: the meta says something else.
    """
    source = meta.get("panoptic_source", "generic")
    if source not in PANOPTIC_SOURCES:
        raise CheckpointError(
            f"checkpoint meta: panoptic_source is {str(source)[:60]!r}; expected one of "
            f"{', '.join(PANOPTIC_SOURCES)}. `semsam calibrate --panoptic` measures and stores it."
        )
    return source


def can_label_images(model: LoadedModel) -> bool:
    """Whether a model labels whole images: it knows names, and has what its source needs."""
    from_masks = panoptic_source(model.meta) == "masks"
    return knows_names(model.meta) and (from_masks or model.module.config.has_generic)


def find_panoptic(
    model: LoadedModel, image: UInt8[np.ndarray, "h w 3"], labels: Labels, size: Size = None
) -> PanopticAnswer:
    """Labels the pixels of an image.

    Args:
        model: see `can_label_images`.
        image: RGB.
        labels: see `labels.label_set`.
        size: see `preprocess.make_frame`.

    Raises:
        PromptError: no object names among the labels.
        CheckpointError: the checkpoint has no generic branch and is to use it, or has untrained
            class heads.
    """
    names = _object_names(model, labels)
    if panoptic_source(model.meta) == "generic":
        answer = _ask_generic(model, image, names, size)
        segment_map, records = panoptic_segments(answer, work_size(image.shape[:2]))
        if records:
            return PanopticAnswer(segment_map, records, names.unknown, is_from_masks=False)
    segment_map, records = _merged_masks(model, image, labels, size, names)
    return PanopticAnswer(segment_map, records, names.unknown, is_from_masks=True)


def ask_generic(
    model: LoadedModel, image: UInt8[np.ndarray, "h w 3"], labels: Labels, size: Size = None
) -> WholeImageAnswer:
    """Runs the generic branch on an image.

    Warns of names of parts, which the generic branch does not use.

    Raises:
        PromptError: no object names among the labels.
        CheckpointError: the checkpoint has no generic branch, or untrained class heads.
    """
    return _ask_generic(model, image, _object_names(model, labels), size)


def _object_names(model: LoadedModel, labels: Labels) -> LabelSet:
    """The names of objects among the labels; PromptError without any, a warning of other names."""
    names = label_set(model, labels)
    parts = ", ".join(repr(name[:60]) for name in names.parts[:8])
    parts += f" and {len(names.parts) - 8} more" if len(names.parts) > 8 else ""
    if parts and not names.objects and not names.unknown:
        raise PromptError(
            f"labels: {parts} name parts, and tasks of the whole image use object names only; "
            f'give some, before the semicolon: "dog,cat".'
        )
    if not names.objects:
        left_out = "; ".join(str(name) for name in names.unknown[:5])
        raise PromptError(
            f"labels: no object names that the checkpoint knows; the whole image needs some"
            f"{f' (not known: {left_out})' if left_out else ''}."
        )
    if parts:
        warnings.warn(
            f"labels: tasks of the whole image use object names only; these names of parts are "
            f"ignored: {parts}.",
            stacklevel=3,
        )
    return names


def _ask_generic(
    model: LoadedModel, image: UInt8[np.ndarray, "h w 3"], names: LabelSet, size: Size
) -> WholeImageAnswer:
    frame = model.frame(image.shape[:2], size)
    pyramid = model.encode(fit_image(image, frame)[None], [frame])
    # Padding rows of the name table would compete for the best proposals: use the exact one.
    last = model.decode_generic(pyramid, names.exact).layers
    low = low_res_logits(jnp.asarray(last.mask_embed[-1, 0]), pyramid.mask_features[0])
    return WholeImageAnswer(
        class_logits=np.asarray(last.object_logits[-1, 0], np.float32),
        low_res_logits=np.asarray(low),
        boxes=boxes_in_image(np.asarray(last.boxes[-1, 0]), frame),
        frame=frame,
        names=names,
    )


def boxes_in_image(cxcywh: Float[np.ndarray, "q 4"], frame: Frame) -> Float[np.ndarray, "q 4"]:
    """Boxes in fractions of the canvas -> x0, y0, x1, y1 in image pixels."""
    canvas = np.array(frame.canvas_hw[::-1], np.float32)
    scale = np.array(frame.image_hw[::-1], np.float32) / np.array(frame.resized_hw[::-1])
    centre, half = cxcywh[:, :2], cxcywh[:, 2:] / 2
    corners = np.concatenate([centre - half, centre + half], 1)
    return (corners * np.tile(canvas * scale, 2)).astype(np.float32)


def segment_whole_image(
    model: LoadedModel,
    image: UInt8[np.ndarray, "h w 3"],
    task: str,
    labels: Labels,
    size: Size,
    out: Path,
    start: Callable[[Sequence[str]], object] | None = None,
) -> list[dict]:
    """Labels an image, writes masks.json, overlay.png and segments.png (not for instances).

    Args:
        model: see `can_label_images`.
        image: RGB.
        task: `panoptic`, `instance` or `semantic`.
        labels: see `labels.label_set`.
        size: see `preprocess.make_frame`.
        out: folder.
        start: called with the names of the files before they are written.

    Returns:
        The records of masks.json.
    """
    work_hw = work_size(image.shape[:2])
    uses_masks = panoptic_source(model.meta) == "masks"
    if task == "panoptic" or uses_masks:
        found = find_panoptic(model, image, labels, size)
        segment_map, records = found.segment_map, found.records
        if found.is_from_masks and not uses_masks:
            print(
                "The generic branch of this checkpoint found nothing above its threshold; these "
                "are named masks of a grid of clicks.",
                file=sys.stderr,
            )
        if task == "instance":
            records = [record for record in records if record["is_thing"]]
        elif task == "semantic":
            segment_map, records = _semantic_of_segments(segment_map, records)
    elif task == "instance":
        records = _instance_records(ask_generic(model, image, labels, size), work_hw)
    else:
        segment_map, records = _semantic(ask_generic(model, image, labels, size), work_hw)
    files.make_folder(out)
    if start is not None:
        start(["masks.json", "overlay.png", *(["segments.png"] if task != "instance" else [])])
    small = visualize.display_size(image)
    if task == "instance":
        masks = [visualize.shrink_mask(rle.decode(r["segmentation"]), small) for r in records]
        colours = visualize.distinct_colours(len(masks))
        picture = visualize.overlay_masks(small, masks, colours)
        texts = [f"{r['object']['name']} {r['score']:.2f}" for r in records]
        picture = visualize.write_labels(picture, masks, texts, colours)
    else:
        view = cv2.resize(segment_map, small.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        texts = {r["id"]: r["object"]["name"] for r in records}
        picture = visualize.panoptic_view(small, view, texts)
        files.write_segment_map(out / "segments.png", segment_map)
    files.write_picture(out / "overlay.png", picture)
    files.write_json(out / "masks.json", records)
    print(f"{len(records)} segments in {out / 'masks.json'}, overlay in {out / 'overlay.png'}")
    return records


def work_size(image_hw: tuple[int, int]) -> tuple[int, int]:
    """Size at which queries compete for pixels: that of the image, at most one megapixel."""
    scale = min(1.0, (_MAX_WORK_PIXELS / (image_hw[0] * image_hw[1])) ** 0.5)
    return max(1, round(image_hw[0] * scale)), max(1, round(image_hw[1] * scale))


def panoptic_segments(
    answer: WholeImageAnswer, work_hw: tuple[int, int]
) -> tuple[Int[np.ndarray, "ph pw"], list[dict]]:
    """Assigns every pixel of the image to one query; returns the map of ids and the records."""
    things = _things(answer.names)
    kept = panoptic.confident_queries(answer.class_logits, 0.25)
    masks = upsample_logits(answer.low_res_logits[kept], answer.frame, work_hw)
    result = panoptic.panoptic_map(answer.class_logits[kept], masks, things)
    segment_map = _to_image(result.segment_map, answer.frame)
    return segment_map, _panoptic_records(segment_map, result.segments, answer.names)


def _merged_masks(
    model: LoadedModel, image: np.ndarray, labels: Labels, size: Size, names: LabelSet
) -> tuple[np.ndarray, list[dict]]:
    """Map and records of named masks of a grid of clicks."""
    generator = MaskGenerator(
        model, POINTS_PER_SIDE, labels=labels, output_mode="coco_rle", size=size
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "no mask reached")  # the answer is empty, then
        masks = generator.generate(image)
    result = panoptic_of_masks(masks, names.objects, _things(names), image.shape[:2])
    return result.segment_map, _panoptic_records(result.segment_map, result.segments, names)


def _things(names: LabelSet) -> set[int]:
    """Positions of the names of countable objects."""
    return {i for i, name in enumerate(names.objects) if name not in names.stuff}


def _panoptic_records(
    segment_map: np.ndarray, segments: Sequence[panoptic.Segment], names: LabelSet
) -> list[dict]:
    records = []
    for segment in segments:
        mask = segment_map == segment.id
        record = _record(segment.id, mask, names.objects, segment.category)
        record |= {"score": segment.score, "is_thing": segment.is_thing}
        record["object"]["score"] = segment.score
        records.append(record)
    return records


def _semantic(answer: WholeImageAnswer, work_hw) -> tuple[np.ndarray, list[dict]]:
    names = answer.names.objects
    best = np.zeros(work_hw, np.int32)
    top = np.zeros(work_hw, np.float32)
    masks = upsample_logits(answer.low_res_logits, answer.frame, work_hw)
    rows = max(1, (1 << 24) // (work_hw[1] * max(len(names), len(masks))))
    for y in range(0, work_hw[0], rows):
        scores = panoptic.semantic_map(answer.class_logits, masks[:, y : y + rows])
        best[y : y + rows], top[y : y + rows] = scores.argmax(0) + 1, scores.max(0)
    segment_map = _to_image(best, answer.frame)
    records = []
    for category in np.unique(best).tolist():
        record = _record(category, segment_map == category, names, category - 1)
        record["score"] = record["object"]["score"] = float(min(1.0, top[best == category].mean()))
        records.append(record)
    return segment_map, records


def _semantic_of_segments(
    segment_map: Int[np.ndarray, "h w"], segments: Sequence[Mapping]
) -> tuple[Int[np.ndarray, "h w"], list[dict]]:
    """Joins the segments of each name; the score is their mean, weighted by area."""
    joined = np.zeros_like(segment_map)
    records = []
    for category in sorted({segment["category_id"] for segment in segments}):
        same = [segment for segment in segments if segment["category_id"] == category]
        mask = np.isin(segment_map, [segment["id"] for segment in same])
        joined[mask] = category
        record = _record(category, mask, (same[0]["object"]["name"],), 0)
        areas = [segment["area"] for segment in same]
        record |= {"category_id": category}
        record["score"] = float(np.average([segment["score"] for segment in same], weights=areas))
        record["object"]["score"] = record["score"]
        records.append(record)
    return joined, records


def _instance_records(answer: WholeImageAnswer, work_hw) -> list[dict]:
    names = answer.names.objects
    masks = upsample_logits(answer.low_res_logits, answer.frame, work_hw)
    found = panoptic.top_instances(answer.class_logits, masks)
    records = []
    for i in np.flatnonzero(found.scores >= _MIN_INSTANCE_SCORE):
        mask = _to_image(found.masks[i].astype(np.int32), answer.frame) > 0
        record = _record(len(records) + 1, mask, names, int(found.categories[i]))
        record["score"] = record["object"]["score"] = float(found.scores[i])
        record["predicted_box_xyxy"] = answer.boxes[found.queries[i]].tolist()
        records.append(record)
    return records


def _record(number: int, mask: np.ndarray, names: tuple[str, ...], category: int) -> dict:
    return {
        "id": number,
        "image_id": 1,
        "category_id": category + 1,
        "segmentation": rle.encode(mask),
        "bbox": rle.box_xywh(mask),
        "area": int(mask.sum()),
        "object": {"name": names[category]},
    }


def _to_image(segment_map: Int[np.ndarray, "h w"], frame: Frame) -> Int[np.ndarray, "ph pw"]:
    size = (frame.image_hw[1], frame.image_hw[0])
    return cv2.resize(segment_map, size, interpolation=cv2.INTER_NEAREST)
