"""Results: masks with scores, levels and names, and conversions to other formats."""

import abc
import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, overload

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from semsam_jax.core import rle
from semsam_jax.core.errors import DataError, SelectionError
from semsam_jax.inference import convert_results, files, visualize
from semsam_jax.inference.images import ImageLike, load_image
from semsam_jax.inference.tree import MaskTree

if TYPE_CHECKING:
    import supervision


class ScoredName(NamedTuple):
    """The best class name of a mask.

    Attributes:
        name: one of the given names.
        score: 0..1.
        is_sure: whether the score reaches the threshold of the checkpoint; if not, the mask is
            probably none of the given names.
    """

    name: str
    score: float
    is_sure: bool = True

    def record(self) -> dict:
        """As JSON results hold it."""
        return self._asdict()


_MAX_LETTERS = 60


class UnknownName(NamedTuple):
    """A name that a checkpoint does not know, and the nearest known names."""

    name: str
    nearest: tuple[str, ...]

    def __str__(self) -> str:
        """The name, a long one cut, with the nearest known ones."""
        near = f" (nearest: {', '.join(self.nearest)})" if self.nearest else ""
        name = self.name if len(self.name) <= _MAX_LETTERS else f"{self.name[:_MAX_LETTERS]}…"
        return f"{name!r}{near}"


class _Convertible(abc.ABC):
    """The formats of other tools; a subclass has records and the size of its image."""

    @abc.abstractmethod
    def records(self) -> "Sequence[convert_results.Record]":
        """One mapping for each mask."""

    @abc.abstractmethod
    def _image_hw(self) -> tuple[int, int]:
        """Height and width of the image."""

    def to_supervision(self) -> "supervision.Detections":
        """`supervision.Detections`; masks stay run-length encoded where supervision can."""
        return convert_results.to_supervision(self.records())

    def to_coco(self, file_name: str | os.PathLike = "image.jpg") -> dict:
        """COCO dataset of this image: `images`, `annotations`, `categories`."""
        return convert_results.to_coco(self.records(), file_name, *self._image_hw())

    def to_labelme(self, file_name: str | os.PathLike = "image.jpg") -> dict:
        """LabelMe file of this image."""
        return convert_results.to_labelme(self.records(), file_name, *self._image_hw())

    def to_polygons(self) -> list[list[list[list[float]]]]:
        """Outer outlines of the pieces of each mask, (x, y) in pixels, large pieces first.

        Holes are filled; `to_yolo` keeps them.
        """
        return convert_results.to_polygons(self.records())

    def class_names(self) -> list[str]:
        """The classes of the masks, `object`, `object:part` or `thing`, in order of appearance."""
        return convert_results.record_classes(self.records())

    def to_yolo(self, class_names: Sequence[str] | None = None) -> str:
        """Lines of a YOLO segmentation label file: class, then x y of one polygon in 0..1.

        Args:
            class_names: the ordered classes, the same for all images of a dataset; None uses
                those of this image, `self.class_names()`.
        """
        return convert_results.to_yolo(self.records(), *self._image_hw(), class_names=class_names)

    def to_label_map(self) -> Int[np.ndarray, "h w"]:
        """Number of the mask (from 1) at every pixel, 0 for none; small masks are on top."""
        return convert_results.to_label_map(self.records(), *self._image_hw())

    def plot(self, image: ImageLike) -> Image.Image:
        """Draws all masks over the image in different colours, with their confident names."""
        return Image.fromarray(_overlay(self.records(), _checked_image(image, self._image_hw())))

    def save(self, folder: str | Path, image: ImageLike | None = None) -> Path:
        """Writes masks.json, label_map.png (`to_label_map`, grey, 16 bits), and overlay.png if the
        image is given.

        Returns:
            The folder.

        Raises:
            DataError: the folder already contains results, or cannot be written.
        """
        if not isinstance(folder, str | os.PathLike):
            raise DataError(f"folder: got {type(folder).__name__}; expected a path.")
        root = Path(folder)
        names = ("masks.json", "label_map.png", "overlay.png")
        there = [name for name in names if (root / name).exists()]
        if there:
            raise DataError(f"{root}: already holds {', '.join(there)}; choose another folder.")
        pixels = None if image is None else _checked_image(image, self._image_hw())
        records = [_plain(record) for record in self.records()]
        label_map = convert_results.to_label_map(records, *self._image_hw())
        files.make_folder(root)
        files.write_label_map(root / names[1], label_map)
        if pixels is not None:
            files.write_picture(root / names[2], _overlay(records, pixels))
        files.write_json(root / names[0], records)
        return root


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Segments(_Convertible):
    """The masks of one request; unpacks as `masks, scores, low_res_logits`.

    `segments[i]`, `segments[1:3]` and a boolean index give `Segments` of those masks.

    Attributes:
        masks: bool [m, h, w] at the image's size (float32 logits if requested).
        scores: predicted IoU, float32 [m].
        low_res_logits: float32 [m, h/4, w/4] of the padded canvas.
        levels: level of each mask.
        tokens: token of each mask.
        objects: best object name of each mask, None without `labels`.
        parts: best part name of each mask, None without `labels`.
        unknown: names among `labels` that the checkpoint does not know; they were left out.
        granularities: granularity of each mask, 0..1, if requested (`levels` are then the nearest
            levels); else empty.
    """

    masks: np.ndarray
    scores: np.ndarray
    low_res_logits: np.ndarray
    levels: tuple[int, ...]
    tokens: tuple[int, ...]
    objects: tuple[ScoredName | None, ...]
    parts: tuple[ScoredName | None, ...]
    unknown: tuple[UnknownName, ...] = ()
    granularities: tuple[float, ...] = ()

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yields masks, scores and low_res_logits."""
        return iter((self.masks, self.scores, self.low_res_logits))

    def __len__(self) -> int:
        """Number of masks."""
        return len(self.levels)

    def __getitem__(self, index: int | slice | Sequence | np.ndarray) -> "Segments":
        """The masks of these positions."""
        rows = _rows(index, len(self))
        return Segments(
            masks=self.masks[rows],
            scores=self.scores[rows],
            low_res_logits=self.low_res_logits[rows],
            levels=tuple(self.levels[i] for i in rows),
            tokens=tuple(self.tokens[i] for i in rows),
            objects=tuple(self.objects[i] for i in rows),
            parts=tuple(self.parts[i] for i in rows),
            unknown=self.unknown,
            granularities=tuple(self.granularities[i] for i in rows if self.granularities),
        )

    def __repr__(self) -> str:
        """One line."""
        height, width = self.masks.shape[-2:]
        kind, asked = "level", self.levels
        if self.granularities:
            kind, asked = "granularity", self.granularities
        rows = zip(asked, self.scores, strict=True)
        parts = "".join(f", {kind} {value:g}: {score:.2f}" for value, score in rows)
        return f"Segments({len(self)} masks of {width}x{height}{parts})"

    def records(self) -> list[dict]:
        """COCO RLE, box, area, predicted IoU, level, token and names of each mask."""
        records = []
        for i, mask in enumerate(self.masks):
            mask = mask > 0
            record = {
                "segmentation": rle.encode(mask),
                "bbox": rle.box_xywh(mask),
                "area": int(mask.sum()),
                "predicted_iou": float(self.scores[i]),
                "score": float(self.scores[i]),
                "level": self.levels[i],
                "token": self.tokens[i],
            }
            if self.granularities:
                record["granularity"] = self.granularities[i]
            for kind, name in (("object", self.objects[i]), ("part", self.parts[i])):
                if name is not None:
                    record[kind] = name.record()
            records.append(record)
        return records

    def _image_hw(self) -> tuple[int, int]:
        return tuple(self.masks.shape[-2:])


class SegmentsBatch(Segments):
    """The results for several boxes or several sets of clicks of one call.

    Arrays have an additional first axis, as in SAM 2: `masks` [n, m, h, w], `scores` [n, m],
    `low_res_logits` [n, m, h/4, w/4]; `levels`, `tokens`, `objects` and `parts` are the
    concatenation over all results. `batch[i]` is the `Segments` of one box.

    Attributes:
        answers: a `Segments` for each box or set of clicks.
    """

    answers: tuple[Segments, ...]

    def __init__(self, answers: Sequence[Segments]) -> None:
        super().__init__(
            masks=np.stack([answer.masks for answer in answers]),
            scores=np.stack([answer.scores for answer in answers]),
            low_res_logits=np.stack([answer.low_res_logits for answer in answers]),
            levels=tuple(level for answer in answers for level in answer.levels),
            tokens=tuple(token for answer in answers for token in answer.tokens),
            objects=tuple(name for answer in answers for name in answer.objects),
            parts=tuple(name for answer in answers for name in answer.parts),
            unknown=answers[0].unknown,
            granularities=tuple(value for answer in answers for value in answer.granularities),
        )
        object.__setattr__(self, "answers", tuple(answers))

    def __len__(self) -> int:
        """Number of results."""
        return len(self.answers)

    def __getitem__(self, index: int | slice | Sequence | np.ndarray) -> Segments:
        """One answer, or a batch of several."""
        rows = _rows(index, len(self))
        if isinstance(index, int | np.integer) and not isinstance(index, bool):
            return self.answers[rows[0]]
        if not rows:
            raise SelectionError(f"index: got {str(index)[:60]}; it selects no answer.")
        return SegmentsBatch([self.answers[i] for i in rows])

    def __repr__(self) -> str:
        """One line."""
        height, width = self._image_hw()
        count = len(self.levels)
        return f"SegmentsBatch({len(self)} answers, {count} masks of {width}x{height})"

    def records(self) -> list[dict]:
        """Records of all results; `prompt` is the index of the result."""
        return [
            record | {"prompt": number}
            for number, answer in enumerate(self.answers)
            for record in answer.records()
        ]


class Records(list[dict], _Convertible):
    """The records of a mask generator: a list of mappings with the keys of SAM.

    Attributes:
        image_hw: height and width of the image.
        tree: the masks as one tree, None if not requested; slices have none.
    """

    def __init__(
        self,
        records: Sequence[dict],
        image_hw: tuple[int, int],
        tree: MaskTree | None = None,
    ) -> None:
        super().__init__(records)
        self.image_hw = image_hw
        self.tree = tree

    @overload
    def __getitem__(self, index: int) -> dict: ...
    @overload
    def __getitem__(self, index: slice | Sequence | np.ndarray) -> "Records": ...
    def __getitem__(self, index):
        """One record, or `Records` for a slice, positions or a boolean index."""
        rows = _rows(index, len(self))
        everything = list(self)
        if isinstance(index, int | np.integer) and not isinstance(index, bool):
            return everything[rows[0]]
        return Records([everything[i] for i in rows], self.image_hw)

    def __repr__(self) -> str:
        """One line."""
        height, width = self.image_hw
        return f"Records({len(self)} masks of {width}x{height})"

    def records(self) -> "Records":
        """Itself."""
        return self

    def _image_hw(self) -> tuple[int, int]:
        return self.image_hw


def _rows(index: int | slice | Sequence | np.ndarray, count: int) -> list[int]:
    try:
        rows = np.arange(count)[index]
    except Exception as error:  # whatever an object raises that is asked for an index
        raise SelectionError(f"index: got {str(index)[:60]}; there are {count} masks.") from error
    return np.atleast_1d(rows).ravel().tolist()


def _plain(record: convert_results.Record) -> dict:
    """A record for JSON: masks as RLE."""
    segmentation = record["segmentation"]
    if isinstance(segmentation, np.ndarray):
        segmentation = rle.encode(segmentation)
    return {**record, "segmentation": segmentation}


def _checked_image(image: ImageLike, image_hw: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    pixels = load_image(image)
    if pixels.shape[:2] != tuple(image_hw):
        raise DataError(
            f"image: {pixels.shape[1]}x{pixels.shape[0]} pixels, the masks have "
            f"{image_hw[1]}x{image_hw[0]}; give the image that was segmented."
        )
    return pixels


def _overlay(
    records: "Sequence[convert_results.Record]", pixels: UInt8[np.ndarray, "h w 3"]
) -> UInt8[np.ndarray, "dh dw 3"]:
    small = visualize.display_size(pixels)
    masks = [visualize.shrink_mask(convert_results.record_mask(r), small) for r in records]
    colours = visualize.distinct_colours(len(masks))
    texts = [convert_results.record_caption(record) for record in records]
    picture = visualize.overlay_masks(small, masks, colours)
    return visualize.write_labels(picture, masks, texts, colours)
