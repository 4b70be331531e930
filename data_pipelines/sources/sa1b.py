"""SA-1B: class-agnostic masks at many granularities, one JSON a photo.

Layout: `root/**/sa_ID.jpg` with `sa_ID.json` beside it (any depth, as the downloaded archives
unpack). SA-1B has no official split: with folders `root/train` and `root/val` the split names
one of them, otherwise the whole root is `train`.
Source: SPEC (xi).
"""

import os
import pathlib
import re
from collections.abc import Iterator

from data_pipelines.schema import RawExample
from data_pipelines.sources.base import ExampleBuilder, Source, read_json, to_rle
from data_pipelines.vocabulary import Vocabulary


class SA1B(Source):
    """Reader of SA-1B folders. Instances carry neither object nor part class.

    Args:
        root: folder of photos and JSON files.
        split: `train`, or a sub-folder's name.
        vocabulary: unused (no classes), kept for the common protocol.
        min_predicted_iou: drop masks below this quality as the data states it; 0 keeps all.
        min_stability_score: likewise.
    """

    def __init__(
        self,
        root: str | pathlib.Path,
        split: str,
        vocabulary: Vocabulary,
        *,
        min_predicted_iou: float = 0.0,
        min_stability_score: float = 0.0,
    ):
        super().__init__("sa1b", root, split, vocabulary)
        self._min_iou = min_predicted_iou
        self._min_stability = min_stability_score
        folder = self.root / split
        if not folder.is_dir():
            if split != "train":
                raise self._layout_error(f"a folder {split}/ (without one, only train exists)")
            folder = self.root
        self._folder = folder
        # Names only: eleven million path objects would not fit beside the other readers.
        self.example_ids = tuple(sorted(_annotated(folder), key=_by_number))
        if not self.example_ids:
            raise self._layout_error("files sa_ID.json with sa_ID.jpg beside them")

    def _read(self, position: int) -> RawExample:
        file = self._folder / f"{self.example_ids[position]}.json"
        content = read_json(file, f"sa1b example {self.example_ids[position]!r}")
        name = content["image"].get("file_name", file.with_suffix(".jpg").name)
        builder = ExampleBuilder(self, position, file.with_name(pathlib.PurePath(name).name))
        builder.expect_size(content["image"]["height"], content["image"]["width"])
        for annotation in content["annotations"]:
            if annotation.get("predicted_iou", 1.0) < self._min_iou:
                continue
            if annotation.get("stability_score", 1.0) < self._min_stability:
                continue
            rle = to_rle(annotation["segmentation"], builder.height, builder.width)
            # The embedded sample marks machine-made regions among human masks; SA-1B itself
            # has no such key: its masks are the data set's ground truth.
            builder.add_mask(rle, is_pseudo=bool(annotation.get("is_pseudo", False)))
        return builder.build()


def _annotated(folder: pathlib.Path) -> Iterator[str]:
    """Yields relative names without suffix of photos that have a JSON."""
    for parent, _, names in os.walk(folder):
        photos = {name[:-4] for name in names if name.endswith(".jpg")}
        above = pathlib.Path(parent).relative_to(folder).as_posix()
        prefix = "" if above == "." else f"{above}/"
        for name in names:
            if name.endswith(".json") and name[:-5] in photos:
                yield prefix + name[:-5]


def _by_number(name: str) -> tuple[str, int, str]:
    above, _, stem = name.rpartition("/")
    digits = re.search(r"(\d+)$", stem)
    return above, int(digits.group(1)) if digits else -1, stem
