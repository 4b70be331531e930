"""Reads datasets on disk as `EvalSample`s."""

import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import numpy as np

from data_pipelines import decode
from data_pipelines import sample as embedded
from data_pipelines.index.scan import BROKEN, IndexReport, ScanTally, is_too_broken, read_entry
from data_pipelines.schema import DATASETS, RawExample
from data_pipelines.sources import Source, open_source
from data_pipelines.sources.single_dataset import custom_classes
from data_pipelines.sources.subset import Subset, spread
from data_pipelines.transforms import geometry
from data_pipelines.transforms.evaluation import evaluation_rows
from data_pipelines.transforms.row import in_view
from data_pipelines.vocabulary import Vocabulary, build_vocabulary
from semsam_jax.core.errors import DataError
from semsam_jax.evals.options import CANVAS_MULTIPLE
from semsam_jax.evals.part_ap import ClassList, build_pairs
from semsam_jax.evals.samples import ClassNames, EvalSample


@dataclasses.dataclass(frozen=True)
class EvalFrame:
    """How images are placed on the canvas, and where prompts are scored.

    Attributes:
        image_size: side of the square canvas; the long side is resized to it.
        short_side: resize the short side to this instead, as far as the long side fits.
        long_side: the long side is at most this (default: the canvas).
        is_tight: cut the canvas to multiples of 32 around the image (the published
            protocol; one program is compiled per canvas size).
        in_image_frame: prompts are scored in the stored image's pixels, not the canvas's.
    """

    image_size: int
    short_side: int | None = None
    long_side: int | None = None
    is_tight: bool = False
    in_image_frame: bool = False


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Images of a dataset, read on demand (`eval_loop.SampleSource`).

    Attributes:
        source: the reader.
        count: number of images.
        make: reads the images at some positions.
    """

    source: Source
    count: int
    make: Callable[[Sequence[int]], Iterator[EvalSample]]

    def __len__(self) -> int:
        """Number of images."""
        return self.count

    def __iter__(self) -> Iterator[EvalSample]:
        """Reads all images."""
        return self.read(range(self.count))

    def read(self, positions: Sequence[int]) -> Iterator[EvalSample]:
        """Reads some images in the given order."""
        return self.make(positions)

    def named(self, image_ids: Collection[str]) -> Iterator[EvalSample]:
        """Reads the images with some ids."""
        wanted = set(image_ids)
        return self.read([at for at in range(self.count) if self.source[at].example_id in wanted])


@dataclasses.dataclass(frozen=True)
class EvalDataset:
    """One split of one dataset.

    Attributes:
        source: the reader.
        frame: how images are placed on the canvas.
        is_sample: whether it is the embedded sample and not the dataset itself.
        notes: what is not used, one sentence each; filled by `surveyed`.
        num_masks, num_pseudo: instances with a mask that a person has drawn, and with a
            machine-made one, which is not scored; filled by `surveyed`.
    """

    source: Source
    frame: EvalFrame
    is_sample: bool
    notes: tuple[str, ...] = ()
    num_masks: int = 0
    num_pseudo: int = 0

    @classmethod
    def limited(
        cls, source: Source, frame: EvalFrame, limit: int | None, is_sample: bool
    ) -> "EvalDataset":
        """At most `limit` images of a split, evenly spaced over it; all if None.

        The first ones of a sorted folder would often be of one class or one day.
        """
        positions = spread(len(source), limit)
        if len(positions) == len(source):
            return cls(source, frame, is_sample)
        note = f"{source.dataset}: {len(positions)} of {len(source)} images are scored"
        return cls(Subset(source, positions), frame, is_sample, (note,))

    def surveyed(self, max_broken_share: float = 0.01) -> tuple["EvalDataset", IndexReport]:
        """The dataset without broken records, and with notes on what else is not used.

        Reads the annotations of every image once.

        Args:
            max_broken_share: fraction of records that may be broken; one always may.

        Raises:
            DataError: too many are broken, or there is none.
        """
        if not len(self.source):
            raise DataError(f"{self.name} {self.source.split}: there are no images to score.")
        tally, kept, is_pseudo = ScanTally(), [], []
        for position in range(len(self.source)):
            found, example = read_entry(self.source, position)
            tally.add(position, found)
            if found.reason not in BROKEN:
                kept.append(position)
                is_pseudo += [i.is_pseudo for i in example.instances if i.rle is not None]
        report = tally.report(self.source)
        if is_too_broken(report, max_broken_share):
            raise DataError(f"{self.name} {self.source.split}: {'; '.join(report.lines())}")
        source = self.source if len(kept) == len(self.source) else Subset(self.source, kept)
        notes = (*self.notes, *report.lines())
        num_pseudo = sum(is_pseudo)
        counts = {"num_masks": len(is_pseudo) - num_pseudo, "num_pseudo": num_pseudo}
        return dataclasses.replace(self, source=source, notes=notes, **counts), report

    @property
    def name(self) -> str:
        """Name of the dataset."""
        return self.source.dataset

    def samples(self, view: str = "any") -> ImageSet:
        """Images with masks for prompts, in the frame that is scored; `view` any, object, part."""
        if self.frame.in_image_frame:
            return self.image_samples(view)
        return self.canvas_samples(view)

    def canvas_samples(self, view: str = "any") -> ImageSet:
        """Images with masks on the canvas."""
        return ImageSet(self.source, len(self.source), lambda at: self._read_on_canvas(at, view))

    def image_samples(self, view: str = "any") -> ImageSet:
        """Images with masks in the stored image's own pixels."""

        def read(positions: Sequence[int]) -> Iterator[EvalSample]:
            return (self._in_image_frame(self.source[at], view) for at in positions)

        return ImageSet(self.source, len(self.source), read)

    @property
    def has_classes(self) -> bool:
        """Whether the dataset names its objects."""
        span = self.source.vocabulary.object_slice(self.name)
        return span.stop > span.start

    def class_names(self) -> ClassNames:
        """Names of the objects and parts of the dataset; none if it has no classes."""
        vocabulary = self.source.vocabulary
        spans = vocabulary.object_slice(self.name), vocabulary.part_slice(self.name)
        numbers = (range(len(vocabulary))[span] for span in spans)
        return ClassNames(*({n: vocabulary.entry(n).text for n in group} for group in numbers))

    def class_list(self) -> tuple[ClassList, list[str], list[str]]:
        """Classes of the dataset with the names of objects and of parts.

        The pairs of objects and parts are those that occur in the split.
        """
        vocabulary = self.source.vocabulary
        objects = np.arange(len(vocabulary))[vocabulary.object_slice(self.name)]
        parts = np.arange(len(vocabulary))[vocabulary.part_slice(self.name)]
        if not len(objects):
            raise DataError(
                f"{self.name}: the dataset has no classes; use a prompt suite such as one_click."
            )
        pairs = set()
        if len(parts):
            for position in range(len(self.source)):
                example = self.source[position]
                for item in (*example.instances, *example.ignored):
                    if item.part_id >= 0 and not item.is_pseudo:
                        thing, part = item.object_id - objects[0], item.part_id - parts[0]
                        pairs.add((int(thing), int(part)))
        classes = ClassList(
            object_ids=objects,
            is_thing=np.asarray([vocabulary.entry(int(i)).is_thing for i in objects], bool),
            part_ids=parts,
            pairs=build_pairs(pairs),
            is_federated=self.source.is_federated,
        )
        names = [[vocabulary.entry(int(i)).text for i in group] for group in (objects, parts)]
        return classes, *names

    def _read_on_canvas(self, positions: Sequence[int], view: str) -> Iterator[EvalSample]:
        frame = self.frame
        rows = evaluation_rows(
            self.source,
            frame.image_size,
            short_side=frame.short_side,
            long_side=frame.long_side,
            positions=positions,
            view=view,
        )
        for row in rows:
            has_mask = row["has_mask"]
            image, size_hw = self._cut(row["image"], row["size_hw"])
            height, width = image.shape[:2]
            crowds = row["ignore_bits"].any((1, 2))  # others have only a box
            bits = np.concatenate([row["mask_bits"][has_mask], row["ignore_bits"][crowds]])
            masks = np.unpackbits(bits, axis=-1).astype(bool)[:, :height, :width]
            count, num_crowds = int(has_mask.sum()), int(crowds.sum())
            # Crowd regions are numbered after the instances.
            numbers = _first_free(row["instance"]) + np.flatnonzero(crowds)
            yield EvalSample(
                image=image,
                size_hw=size_hw,
                masks=list(masks),
                image_id=row["example_id"],
                instance_ids=np.concatenate([row["instance"][has_mask], numbers]),
                dataset=row["dataset"],
                is_thing=np.concatenate([row["is_thing"][has_mask], np.ones(num_crowds, bool)]),
                is_crowd=np.arange(count + num_crowds) >= count,
                object_ids=np.concatenate(
                    [row["object_id"][has_mask], row["ignore_object_id"][crowds]]
                ),
                part_ids=np.concatenate([row["part_id"][has_mask], row["ignore_part_id"][crowds]]),
                scale=max(size_hw) / max(row["image_hw"]),
                num_lost=row["num_lost"],
            )

    def _in_image_frame(self, example: RawExample, view: str) -> EvalSample:
        frame = self.frame
        placement = geometry.fit_placement(
            example.height, example.width, frame.image_size, frame.short_side, frame.long_side
        )
        where = f"{example.dataset}/{example.example_id}"
        image = decode.place_image(
            example.image, placement, where=where, is_displayed=example.is_displayed
        )
        image, size_hw = self._cut(image, placement.size_hw)
        kept = [
            (number, item)
            for number, item in enumerate(example.instances)
            if item.rle is not None and not item.is_pseudo and in_view(item, view)
        ]
        crowds = [
            (number, item)
            for number, item in enumerate(example.ignored, start=len(example.instances))
            if item.rle is not None
        ]
        items = [item for _, item in kept + crowds]
        return EvalSample(
            image=image,
            size_hw=size_hw,
            masks=[item.rle for item in items],
            image_id=example.example_id,
            instance_ids=[number for number, _ in kept + crowds],
            dataset=example.dataset,
            is_thing=[item.is_thing for item in items],
            is_crowd=[False] * len(kept) + [True] * len(crowds),
            object_ids=[item.object_id for item in items],
            part_ids=[item.part_id for item in items],
            annotated=example.annotated if self.source.is_federated else None,
            partial=example.partial if self.source.is_federated else (),
            scale=max(size_hw) / max(example.height, example.width),
            truth_hw=(example.height, example.width),
        )

    def _cut(
        self, image: np.ndarray, size_hw: Sequence[int] | np.ndarray
    ) -> tuple[np.ndarray, tuple[int, int]]:
        h, w = (int(side) for side in size_hw)
        if self.frame.is_tight:
            multiple = CANVAS_MULTIPLE
            image = image[: -(-h // multiple) * multiple, : -(-w // multiple) * multiple]
        return image, (h, w)


def _first_free(numbers: np.ndarray) -> int:
    return int(numbers.max(initial=-1)) + 1


def open_dataset(
    name: str, root: str | None, split: str, frame: EvalFrame, limit: int | None
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
                f"--data.root {root}: no folder {name}; expected one folder per dataset as "
                f"data_pipelines/README.md describes."
            )
    source = open_source(name, folder, split, _vocabulary(name, folder, split))
    return EvalDataset.limited(source, frame, limit, is_sample=root is None)


def open_folder(folder: Path, split: str, frame: EvalFrame, limit: int | None) -> EvalDataset:
    """Opens a custom dataset, whatever its folder is called.

    Raises:
        DataError: no such split, or no layout of a custom dataset.
    """
    name = "custom" if folder.name in DATASETS else folder.name
    vocabulary = build_vocabulary([], extra={name: custom_classes(name, folder, split)})
    source = open_source(name, folder, split, vocabulary)
    return EvalDataset.limited(source, frame, limit, is_sample=False)


def _vocabulary(name: str, folder: Path, split: str) -> Vocabulary:
    """Names of the dataset; a custom dataset lists them in its annotation file."""
    if name in DATASETS:
        return build_vocabulary([name])
    return build_vocabulary([], extra={name: custom_classes(name, folder, split)})
