"""SA-1B: class-agnostic masks at many granularities, one JSON an image.

Layout: the official archives `root/sa_000000.tar ...`, read where they are, or
`root/**/sa_ID.jpg` with `sa_ID.json` next to it, as the archives unpack. SA-1B has no official
split: with folders `root/train` and `root/val` the split names one of them, otherwise the whole
root is `train`. Source: docs/reference.md, section 12.
"""

import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence

from data_pipelines import findings
from data_pipelines.findings import Unused
from data_pipelines.schema import RawExample
from data_pipelines.sources.base import Source, read_json
from data_pipelines.sources.builder import ExampleBuilder
from data_pipelines.sources.sa1b_listing import read_listing
from data_pipelines.sources.values import finite, flag, image_side, short
from data_pipelines.vocabulary import Vocabulary
from semsam_jax.core.errors import ConfigError


class SA1B(Source):
    """Reader of SA-1B archives or folders. Instances carry neither object nor part class.

    Args:
        root: folder of archives, or of images and JSON files.
        split: `train`, or a sub-folder's name.
        vocabulary: unused (no classes), kept for the common protocol.
        cache: where the list of images is kept between runs; None lists them every time.
        min_predicted_iou: drop masks below this predicted IoU of the data; 0 keeps all.
        min_stability_score: likewise.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        split: str,
        vocabulary: Vocabulary,
        *,
        cache: str | os.PathLike | None = None,
        min_predicted_iou: float = 0.0,
        min_stability_score: float = 0.0,
    ):
        limits = {
            "min_predicted_iou": min_predicted_iou,
            "min_stability_score": min_stability_score,
        }
        for name, value in limits.items():
            if not isinstance(value, int | float):
                raise ConfigError(f"sa1b: {name}={value!r}; expected a number")
        super().__init__("sa1b", root, split, vocabulary, **limits)
        self._min_iou = min_predicted_iou
        self._min_stability = min_stability_score
        folder = self.root / split
        if not folder.is_dir():
            if split != "train":
                raise self._layout_error(f"a folder {split}/ (without one, only train exists)")
            folder = self.root
            others = [name for name in ("val", "test") if (folder / name).is_dir()]
            if others and not any(folder.glob("*.tar")):  # loose images are found at any depth
                raise self._layout_error(
                    f"a folder train/ next to {others[0]}/, whose images would be trained on"
                )
        self._folder = folder
        self._listing = read_listing(folder, None if cache is None else pathlib.Path(cache))
        self.example_ids = self._listing.names
        archives = tuple(folder / name for name in self._listing.archives)
        self.annotation_files = archives or (folder,)
        alone = self._listing.alone
        self.unused = (Unused(findings.NO_IMAGE_FILE, *alone),) if alone[1] else ()
        if not len(self.example_ids):
            raise self._layout_error("sa_*.tar, or files sa_ID.json with sa_ID.jpg next to them")

    def _read(self, position: int) -> RawExample:
        builder, content = (self._member if self._listing.archives else self._file)(position)
        file = pathlib.Path(f"{self.example_ids[position]}.json")
        stated = content.get("image")
        if not isinstance(stated, dict):
            raise builder.broken(f"{file.name}: image is {short(stated)}, expected an object")
        height, width = (image_side(stated.get(key)) for key in ("height", "width"))
        if min(height, width) < 1:
            raise builder.broken(f"{file.name}: height or width of image is not a size in pixels")
        builder.expect_size(height, width)
        known = set()
        for number, annotation in enumerate(builder.listed(content, "annotations", file)):
            name = f"annotation {short(annotation.get('id', number))}"
            if name in known:
                builder.leave_out(findings.DOUBLED_ID, name)
            known.add(name)
            if self._is_poor(builder, annotation, name):
                builder.leave_out(findings.LOW_QUALITY, name)
                continue
            # The embedded sample marks machine-made regions among human masks; SA-1B itself
            # has no such key: its masks are the data set's ground truth.
            is_pseudo = flag(annotation.get("is_pseudo"))
            if is_pseudo is None:
                raise builder.broken(f"{name}: is_pseudo is neither 0 nor 1")
            builder.add_outline(annotation.get("segmentation"), is_pseudo=is_pseudo, name=name)
        return builder.build()

    def _is_poor(self, builder: ExampleBuilder, annotation: Mapping, name: str) -> bool:
        for key, least in (
            ("predicted_iou", self._min_iou),
            ("stability_score", self._min_stability),
        ):
            score = finite(annotation.get(key, 1.0))
            if score is None:
                raise builder.broken(
                    f"{name}: {key} is {short(annotation[key])}, expected a number"
                )
            if score < least:
                return True
        return False

    def _stamps(self, positions: Sequence[int]) -> Iterator[list[tuple[int, int]]]:
        # Files in an archive have its age, so that millions of positions need not be visited.
        return iter(()) if self._listing.archives else super()._stamps(positions)

    def _files(self, position: int) -> tuple[pathlib.Path, ...]:
        name = self.example_ids[position]
        return self._folder / f"{name}.json", self._folder / f"{name}.jpg"

    def _file(self, position: int) -> tuple[ExampleBuilder, dict]:
        file = self._folder / f"{self.example_ids[position]}.json"
        content = read_json(file, f"sa1b example {self.example_ids[position]!r}")
        stated = content.get("image")
        name = stated.get("file_name") if isinstance(stated, dict) else None
        if not isinstance(name, str):
            name = file.with_suffix(".jpg").name
        image = file.with_name(pathlib.PureWindowsPath(name).name)  # / and \\ divide folders
        return ExampleBuilder(self, position, image), content

    def _member(self, position: int) -> tuple[ExampleBuilder, dict]:
        place = self._listing.places[position]
        archive = self._folder / self._listing.archives[int(place["archive"])]
        image, text = b"", b""
        if min(place["image_size"], place["text_size"]) >= 0:
            with archive.open("rb") as file:
                file.seek(int(place["image_start"]))
                image = file.read(int(place["image_size"]))
                file.seek(int(place["text_start"]))
                text = file.read(int(place["text_size"]))
        if len(image) != place["image_size"] or len(text) != place["text_size"]:
            raise self._broken(position, "the archive is cut short; download it again", archive)
        content = json.loads(text)
        name = archive / f"{self.example_ids[position]}.jpg"
        return ExampleBuilder(self, position, name, image), content
