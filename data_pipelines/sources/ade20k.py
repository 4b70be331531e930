"""ADE20k with the 150 classes of the SceneParsing benchmark, in any of its three layouts.

- *panoptic*: COCO's panoptic format, `ade20k_panoptic_{train,val}.json`, a folder of PNGs of the
  same name, images in `images/{training,validation}`.
- *scene parsing*: `annotations/{training,validation}/*.png` (class 1..150, 0 unlabelled) for
  stuff and `annotations_instance/...` (R = 1..100, rank among the things; G = instance) for
  things, images in `images/...`.
- *full* (2016/2017 and 2021): images anywhere below `training` or `validation` with `X_seg.png`
  (B = instance) and `X_atr.txt`, or with `X.json` and its instance masks. A name is a class if all
  its synonyms agree ("basket, basketball hoop, hoop" is no basket); others are left out.

The paper takes ADE20k as object data; with `parts` the full layouts also give the parts of these
objects and the parts of parts. Their names are open-ended, so they carry no class, as SA-1B's
masks do, but each knows what it is a part of. Source: docs/reference.md, section 15.
"""

import abc
import os
import pathlib

import numpy as np

from data_pipelines import findings
from data_pipelines.findings import Unused
from data_pipelines.index.strings import StringTable
from data_pipelines.schema import RawExample
from data_pipelines.sources.base import Source, below, read_json
from data_pipelines.sources.builder import ExampleBuilder
from data_pipelines.sources.coco_json import ClassLabel
from data_pipelines.sources.panoptic import PanopticFile, read_png
from data_pipelines.sources.values import short
from data_pipelines.vocabulary import Vocabulary
from semsam_jax.core.errors import ConfigError, DataError
from semsam_jax.core.spelling import spelling_key

_HIDDEN = 128
_FOLDERS = {"train": "training", "val": "validation"}


class ADE20k(Source):
    """Reader of ADE20k; detects the layout.

    Args:
        root: folder of one of the layouts above (for the full one: any folder above `training`).
        split: `train` or `val`.
        vocabulary: gives the class indices.
        parts: also read the part levels, which only the full layouts have.
    """

    revision = 2

    def __init__(
        self, root: str | os.PathLike, split: str, vocabulary: Vocabulary, *, parts: bool = False
    ):
        super().__init__("ade20k", root, split, vocabulary, parts=parts)
        folder = _FOLDERS.get(split, split)
        for layout in (_Panoptic, _SceneParsing, _Full):
            found = layout.find(self, folder)
            if found is not None:
                self._layout = found
                break
        else:
            raise self._layout_error(
                f"ade20k_panoptic_{split}.json with its PNG folder and images/{folder}; or "
                f"images/, annotations/ and annotations_instance/ with {folder}; or *_seg.png "
                f"with .json or _atr.txt below a folder {folder}"
            )
        if parts and not isinstance(self._layout, _Full):
            raise ConfigError(
                f"ade20k: parts=True, but {self.root} has no part levels; expected the full "
                "release (X_seg.png with X_parts_1.png ...), or parts=False"
            )
        self.example_ids = self._layout.example_ids
        self.annotation_files = self._layout.annotation_files
        self.unused = self._layout.unused

    def _files(self, position: int) -> tuple[pathlib.Path, ...]:
        return self._layout.files(position)

    def _read(self, position: int) -> RawExample:
        return self._layout.read(self, position)


class _AdeLayout(abc.ABC):
    example_ids: StringTable
    annotation_files: tuple[pathlib.Path, ...]
    unused: tuple[Unused, ...] = ()

    @classmethod
    @abc.abstractmethod
    def find(cls, source: Source, folder: str) -> "_AdeLayout | None":
        """Returns the layout if the root has it."""

    @abc.abstractmethod
    def files(self, position: int) -> tuple[pathlib.Path, ...]:
        """The files of one example."""

    @abc.abstractmethod
    def read(self, source: Source, position: int) -> RawExample:
        """Reads one example."""


class _Panoptic(_AdeLayout):
    def __init__(self, panoptic: PanopticFile, images: pathlib.Path):
        self._panoptic = panoptic
        self._images = images
        self.example_ids = panoptic.image_ids
        self.annotation_files = (panoptic.path,)
        self.unused = panoptic.unused

    @classmethod
    def find(cls, source: Source, folder: str) -> "_Panoptic | None":
        file = source.root / f"ade20k_panoptic_{source.split}.json"
        images = source.root / "images" / folder
        if not (file.is_file() and file.with_suffix("").is_dir() and images.is_dir()):
            return None
        return cls(PanopticFile(file, "ade20k", source.vocabulary), images)

    def files(self, position: int) -> tuple[pathlib.Path, ...]:
        image, png = self._panoptic.file_names(position)
        return below(self._images, image), below(self._panoptic.path.with_suffix(""), png)

    def read(self, source: Source, position: int) -> RawExample:
        image, png = self.files(position)
        builder = ExampleBuilder(source, position, image)
        self._panoptic.add_segments(builder, position, png)
        return builder.build()


class _SceneParsing(_AdeLayout):
    def __init__(self, source: Source, images: pathlib.Path, folder: str):
        self._images = images
        self._classes = source.root / "annotations" / folder
        self._instances = source.root / "annotations_instance" / folder
        self.example_ids = StringTable.of(sorted(p.stem for p in self._classes.glob("[!.]*.png")))
        self.annotation_files = (self._classes, self._instances)
        if not self._instances.is_dir():
            raise DataError(
                f"ade20k {source.split}: {source.root} has annotations/ but no folder "
                f"annotations_instance/{folder}; without it neighbouring things share one mask; "
                "download the instance annotations of SceneParsing as well"
            )
        labels = _labels(source.vocabulary)
        self._stuff = {number: label for number, label in labels.items() if not label.is_thing}
        # The instance PNGs count the 100 things 1..100 in the order of the 150 classes.
        things = [label for _, label in sorted(labels.items()) if label.is_thing]
        self._things = dict(enumerate(things, start=1))

    @classmethod
    def find(cls, source: Source, folder: str) -> "_SceneParsing | None":
        images = source.root / "images" / folder
        classes = source.root / "annotations" / folder
        if not (images.is_dir() and classes.is_dir() and any(classes.glob("*.png"))):
            return None
        return cls(source, images, folder)

    def files(self, position: int) -> tuple[pathlib.Path, ...]:
        name = self.example_ids[position]
        label = f"{name}.png"
        return self._images / f"{name}.jpg", self._classes / label, self._instances / label

    def read(self, source: Source, position: int) -> RawExample:
        image, labels, instances = self.files(position)
        builder = ExampleBuilder(source, position, image)
        classes = read_png(labels, builder, ("L", "P"))
        if classes.max() > 150:
            raise builder.broken(f"class {classes.max()} in annotations/; expected 0..150")
        for number in np.unique(classes):
            if int(number) in self._stuff:
                _add(builder, classes == number, self._stuff[int(number)])
        pairs = read_png(instances, builder, ("RGB", "RGBA"))
        keys = pairs[..., 0].astype(np.int32) * 256 + pairs[..., 1]
        for key in np.unique(keys[pairs[..., 0] > 0]):
            if key // 256 not in self._things:
                raise builder.broken(
                    f"thing {key // 256} in annotations_instance/; expected 1..100"
                )
            _add(builder, keys == key, self._things[int(key) // 256])
        return builder.build()


class _Full(_AdeLayout):
    def __init__(self, source: Source, images: list[pathlib.Path], folder: pathlib.Path):
        self._folder = folder
        self._classes = _by_name(source.vocabulary)
        self._has_parts = source.options["parts"]
        self.example_ids = StringTable.of(
            image.relative_to(folder).with_suffix("").as_posix() for image in images
        )
        self.annotation_files = tuple(sorted({image.parent for image in images}))

    @classmethod
    def find(cls, source: Source, folder: str) -> "_Full | None":
        for start in (source.root, source.root / "images", source.root / "images" / "ADE"):
            below = start / folder
            if not below.is_dir():
                continue
            images = sorted(
                pathlib.Path(parent, name.removesuffix("_seg.png") + ".jpg")
                for parent, _, names in os.walk(below)
                for name in names
                if name.endswith("_seg.png")
            )
            if images:
                return cls(source, images, below)
        return None

    def files(self, position: int) -> tuple[pathlib.Path, ...]:
        image = self._folder / f"{self.example_ids[position]}.jpg"
        annotations = (f"{image.stem}.json", f"{image.stem}_atr.txt", f"{image.stem}_seg.png")
        return image, *(image.with_name(name) for name in annotations)

    def read(self, source: Source, position: int) -> RawExample:
        image = self._folder / f"{self.example_ids[position]}.jpg"
        builder = ExampleBuilder(source, position, image)
        if image.with_suffix(".json").is_file():
            self._read_2021(builder, image)
        else:
            self._read_2017(builder, image)
        return builder.build()

    def _read_2021(self, builder: ExampleBuilder, image: pathlib.Path) -> None:
        content = read_json(image.with_suffix(".json"), "ade20k")
        items = content["annotation"]["object"]
        added: dict[int, int] = {}
        for item in sorted(items, key=lambda item: int(item["parts"]["part_level"])):
            label = self._label(item["name"])
            above = -1
            if int(item["parts"]["part_level"]) > 0:
                # A part is kept with the object that it belongs to, or not at all.
                above = added.get(_first(item["parts"]["ispartof"]), -1)
                label = _PART if self._has_parts and above >= 0 else None
            if label is None:
                self._leave_out(builder, item["name"], level=item["parts"]["part_level"])
                continue
            mask = read_png(image.parent / item["instance_mask"], builder)
            if mask.ndim == 3:
                mask = mask[..., 0]
            # 255 is visible, 128 is hidden behind something else.
            visible = (mask > 0) & (mask != _HIDDEN)
            added[int(item["id"])] = _add(builder, visible, label, above, name=short(item["name"]))

    def _read_2017(self, builder: ExampleBuilder, image: pathlib.Path) -> None:
        listing = image.with_name(f"{image.stem}_atr.txt")
        try:
            lines = listing.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError as error:
            raise builder.broken(f"neither {image.stem}.json nor {listing.name}") from error
        rows = [[field.strip() for field in line.split("#")] for line in lines if line.strip()]
        if any(len(row) < 5 for row in rows):
            raise builder.broken(f"{listing.name}: a line has too few fields separated by #")
        levels: dict[int, dict[int, str]] = {}
        for row in rows:
            levels.setdefault(int(row[1]), {})[int(row[0])] = row[3]
        names = levels.get(0, {})
        below = _numbered(builder, image.with_name(f"{image.stem}_seg.png"), names)
        added = {}
        for number, name in names.items():
            label = self._label(name)
            if label is not None:
                added[number] = _add(builder, below == number, label)
            else:
                self._leave_out(builder, name)
        for level in range(1, max(levels, default=0) + 1) if self._has_parts else ():
            names = levels.get(level, {})
            above = below
            png = image.with_name(f"{image.stem}_parts_{level}.png")
            below = _numbered(builder, png, names)
            parents, added = added, {}
            for number in names:
                mask = below == number
                under = above[mask]
                # The listing does not name a part's whole: it is the object that covers most of it.
                parent = parents.get(int(np.bincount(under).argmax()), -1) if len(under) else -1
                if parent >= 0:
                    added[number] = _add(builder, mask, _PART, parent)

    def _leave_out(self, builder: ExampleBuilder, name: str, level: object = 0) -> None:
        """Counts an object outside the 150 classes, or a part that is not asked for."""
        if self._has_parts or not int(level):
            builder.leave_out(findings.OTHER_CLASS, short(name))

    def _label(self, name: str) -> ClassLabel | None:
        key = spelling_key(name)
        return self._classes.get(_OTHER_NAMES.get(key, key))


def _labels(vocabulary: Vocabulary) -> dict[int, ClassLabel]:
    span = vocabulary.object_slice("ade20k")
    return {
        vocabulary.entry(index).native_id: ClassLabel(
            index, is_thing=vocabulary.entry(index).is_thing
        )
        for index in range(span.start, span.stop)
    }


_OTHER_NAMES = {
    spelling_key(name): spelling_key(of_class)
    for name, of_class in (
        ("door", "door, double door"),
        ("double door", "door, double door"),
        ("closet", "wardrobe, closet, press"),
        ("booth", "booth, cubicle, stall, kiosk"),
        ("screen, CRT screen", "crt screen"),
    )
}
"""Names of the full releases that SceneParsing spells differently or joins with another.

Source: `ade20k_instance_catid_mapping.txt` of the benchmark, which maps all others one to one.
"""


def _by_name(vocabulary: Vocabulary) -> dict[str, ClassLabel]:
    """Label of each class by its name with all synonyms (`spelling_key`)."""
    span = vocabulary.object_slice("ade20k")
    entries = ((index, vocabulary.entry(index)) for index in range(span.start, span.stop))
    return {
        spelling_key(entry.name): ClassLabel(index, is_thing=entry.is_thing)
        for index, entry in entries
    }


_PART = ClassLabel(-1)
"""A part of an object: without a class, since ADE20k's part names are open-ended."""


def _add(
    builder: ExampleBuilder,
    mask: np.ndarray,
    label: ClassLabel,
    parent: int = -1,
    name: str = "",
) -> int:
    fields = {"object_id": label.object_id, "is_thing": label.is_thing, "parent": parent}
    return builder.add_array(mask, name=name, **fields)


def _first(value: int | list[int]) -> int:
    """The id in `ispartof`, which is a number or a list; -1 for an empty list."""
    if isinstance(value, list):
        return int(value[0]) if value else -1
    return int(value)


def _numbered(builder: ExampleBuilder, png: pathlib.Path, names: dict[int, str]) -> np.ndarray:
    """Reads int [h,w]: the listing's number of the instance at each pixel, 0 none.

    Raises:
        DataError: the picture is missing or damaged, or shows other instances than listed.
    """
    instances = read_png(png, builder, ("RGB", "RGBA"))[..., 2].astype(np.int64)
    values = np.unique(instances[instances > 0])
    if len(values) == len(names):
        # The blue channel may be spread over 0..255; its order is that of the listing.
        table = np.zeros(256, np.int64)
        table[values] = sorted(names)
        return table[instances]
    if len(values) and values.max() > max(names, default=0):
        raise builder.broken(
            f"{png.name} shows {len(values)} instances, the listing has {len(names)}, and their "
            "numbers do not agree"
        )
    return instances
