"""Datasets on disk to `EvalSample`s; used by the command line only."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_pipelines import sample as embedded
from data_pipelines.schema import DATASETS
from data_pipelines.sources import Source, open_source
from data_pipelines.sources.alone import own_classes
from data_pipelines.transforms.evaluation import evaluation_rows
from data_pipelines.vocabulary import Vocabulary, build_vocabulary
from semsam_jax.core.errors import DataError
from semsam_jax.evals.generic import ClassList
from semsam_jax.evals.part_ap import build_pairs
from semsam_jax.evals.samples import EvalSample

CANVAS_MULTIPLE = 32


@dataclasses.dataclass(frozen=True)
class Frame:
    """How photos are brought to the canvas.

    Attributes:
        image_size: side of the square canvas; the long side is resized to it.
        short_side: resize the short side to this instead, as far as the long side fits.
        is_tight: cut the canvas to multiples of 32 around the photo (the published
            protocol; one program is compiled per canvas size).
    """

    image_size: int
    short_side: int | None = None
    is_tight: bool = False


@dataclasses.dataclass(frozen=True)
class EvalDataset:
    """One split of one dataset.

    Attributes:
        source: the reader.
        frame: how photos are brought to the canvas.
        limit: number of photos, None for all.
        is_sample: whether it is the embedded sample and not the dataset itself.
    """

    source: Source
    frame: Frame
    limit: int | None
    is_sample: bool

    @property
    def name(self) -> str:
        """Name of the dataset."""
        return self.source.dataset

    def samples(self, view: str = "any") -> Iterator[EvalSample]:
        """Photos with masks on the canvas, for prompts; `view` any, object or part."""
        for row in self._rows(view):
            has_mask = row["has_mask"]
            masks = np.unpackbits(row["mask_bits"], axis=-1).astype(bool)[has_mask]
            image, size_hw = self._cut(row)
            height, width = image.shape[:2]
            yield EvalSample(
                image=image,
                size_hw=size_hw,
                masks=[mask[:height, :width] for mask in masks],
                image_id=row["example_id"],
                instance_ids=row["instance"][has_mask],
                dataset=row["dataset"],
                is_thing=row["is_thing"][has_mask],
                object_ids=row["object_id"][has_mask],
                part_ids=row["part_id"][has_mask],
                scale=max(size_hw) / max(row["photo_hw"]),
            )

    def photo_samples(self) -> Iterator[EvalSample]:
        """Photos with masks in the photo's own frame, for the generic tasks."""
        for position, row in enumerate(self._rows("any")):
            example = self.source[position]
            kept = [
                (number, item)
                for number, item in enumerate(example.instances)
                if item.rle is not None and not item.is_pseudo
            ]
            image, size_hw = self._cut(row)
            yield EvalSample(
                image=image,
                size_hw=size_hw,
                masks=[item.rle for _, item in kept],
                image_id=example.example_id,
                instance_ids=[number for number, _ in kept],
                dataset=example.dataset,
                is_thing=[item.is_thing for _, item in kept],
                object_ids=[item.object_id for _, item in kept],
                part_ids=[item.part_id for _, item in kept],
                scale=max(size_hw) / max(example.height, example.width),
                truth_hw=(example.height, example.width),
            )

    def class_list(self) -> tuple[ClassList, list[str], list[str]]:
        """Classes of the dataset with the names of objects and of parts.

        The pairs of objects and parts are those that occur in the split.
        """
        vocabulary = self.source.vocabulary
        objects = np.arange(len(vocabulary))[vocabulary.object_slice(self.name)]
        parts = np.arange(len(vocabulary))[vocabulary.part_slice(self.name)]
        if not len(objects):
            raise DataError(
                f"{self.name}: the dataset names no classes; use a prompt suite such as one_click."
            )
        pairs = set()
        if len(parts):
            for position in range(self._count()):
                for item in self.source[position].instances:
                    if item.part_id >= 0 and not item.is_pseudo:
                        pairs.add((item.object_id - objects[0], item.part_id - parts[0]))
        classes = ClassList(
            object_ids=objects,
            is_thing=np.asarray([vocabulary.entry(int(i)).is_thing for i in objects], bool),
            part_ids=parts,
            pairs=build_pairs(pairs),
        )
        names = [[vocabulary.entry(int(i)).text for i in group] for group in (objects, parts)]
        return classes, *names

    def _count(self) -> int:
        return len(self.source) if self.limit is None else min(self.limit, len(self.source))

    def _rows(self, view: str) -> Iterator[dict]:
        frame = self.frame
        return evaluation_rows(
            self.source,
            frame.image_size,
            short_side=frame.short_side,
            limit=self.limit,
            view=view,
        )

    def _cut(self, row: dict) -> tuple[np.ndarray, tuple[int, int]]:
        h, w = (int(side) for side in row["size_hw"])
        image = row["image"]
        if self.frame.is_tight:
            multiple = CANVAS_MULTIPLE
            image = image[: -(-h // multiple) * multiple, : -(-w // multiple) * multiple]
        return image, (h, w)


def open_dataset(
    name: str, root: str | None, split: str, frame: Frame, limit: int | None
) -> EvalDataset:
    """Opens ROOT/NAME, or the embedded sample where no root is given.

    Raises:
        DataError: no such folder.
    """
    if root is None:
        folders = embedded.roots()
        if name not in folders:
            raise DataError(
                f"--data.dataset {name}: not in the embedded sample ({', '.join(folders)}); give "
                f"--data.root DIR for your own set."
            )
        folder = folders[name]
    else:
        folder = Path(root) / name
        if not folder.is_dir():
            raise DataError(
                f"--data.root {root}: no folder {name}; wanted one folder per dataset as "
                f"data_pipelines/README.md describes."
            )
    source = open_source(name, folder, split, _vocabulary(name, folder, split))
    return EvalDataset(source, frame, limit, is_sample=root is None)


def _vocabulary(name: str, folder: Path, split: str) -> Vocabulary:
    """Names of the dataset; a user's own set lists them in its annotation file."""
    if name in DATASETS:
        return build_vocabulary([name])
    return build_vocabulary([], extra={name: own_classes(name, folder, split)})
