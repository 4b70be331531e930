"""PASCAL-Part: MATLAB files of objects and their parts over PASCAL VOC 2010 images.

Layout: `root/Annotations_Part/ID.mat`, images `JPEGImages/ID.jpg` and lists
`ImageSets/Main/{split}.txt` in `root`, `root/VOC2010` or `root/VOCdevkit/VOC2010`.
With the merged list, left and right parts stay separate masks of one class, and the pieces of a
limb on one side are joined. With the whole tree every native part is kept under its own name, and
the joined limb is the parent of its halves and a part of the object. Sources: docs/reference.md,
sections 12 and 15; the class lists of `vocabularies/pascal_part.json` and `_full.json`.
"""

import os
import pathlib
import re

import numpy as np
import scipy.io

from data_pipelines import findings
from data_pipelines.findings import Unused
from data_pipelines.index.strings import StringTable
from data_pipelines.schema import RawExample
from data_pipelines.sources.base import Source, first_existing
from data_pipelines.sources.builder import ExampleBuilder
from data_pipelines.vocabulary import Vocabulary, class_file
from semsam_jax.core.errors import ConfigError

# Native part code without its side and number -> word of the 30-name list. A code that is
# missing here (eyebrows, hooves, car sides, train coaches ...) has no class in that list.
_WORDS = {
    "arm": "arm", "uarm": "arm", "larm": "arm",
    "leg": "leg", "uleg": "leg", "lleg": "leg",
    "pa": "paw", "liplate": "license plate",
} | {
    word: word
    for word in (
        "beak", "body", "cap", "door", "ear", "eye", "foot", "hair", "hand", "handlebar", "head",
        "headlight", "horn", "mirror", "mouth", "muzzle", "neck", "nose", "plant", "pot", "saddle",
        "tail", "torso", "wheel", "window", "wing",
    )
}  # fmt: skip
# The same for the full tree: every native code is a side or an end, then one of these.
_FULL_WORDS = {
    "ebrow": "eyebrow", "pa": "paw", "ho": "hoof", "liplate": "license plate",
} | {
    word: word
    for word in (
        "beak", "body", "cap", "chainwheel", "coach", "door", "ear", "engine", "eye", "foot",
        "hair", "hand", "handlebar", "head", "headlight", "horn", "leg", "mirror", "mouth",
        "muzzle", "neck", "nose", "plant", "pot", "saddle", "screen", "side", "stern", "tail",
        "torso", "wheel", "window", "wing",
    )
}  # fmt: skip
_FULL_SIDES = {
    "": "", "l": "left ", "r": "right ", "f": "front ", "b": "back ",
    "lf": "left front ", "rf": "right front ", "lb": "left back ", "rb": "right back ",
    "left": "left ", "right": "right ", "front": "front ", "back": "back ", "roof": "roof ",
} | {
    f"{wagon}{end}": f"{text} {end} "
    for wagon, text in (("h", "head"), ("c", "coach"))
    for end in ("front", "left", "right", "back", "roof")
}  # fmt: skip
_HALVES = {"u": "upper ", "l": "lower "}

_SIDES = ("left", "right", "lf", "rf", "lb", "rb", "l", "r", "f", "b")


class PascalPart(Source):
    """Reader of PASCAL-Part: 20 objects, 30 part words.

    Args:
        root: the folder with `Annotations_Part`.
        split: `train`, `val` or `trainval`: a list in `ImageSets/Main`.
        vocabulary: gives the class indices.
        parts: `merged`, the list of 30 names, or `full`, the whole tree; the vocabulary must
            be built for the same list.
    """

    revision = 2

    def __init__(
        self,
        root: str | os.PathLike,
        split: str,
        vocabulary: Vocabulary,
        *,
        parts: str = "merged",
    ):
        super().__init__("pascal_part", root, split, vocabulary, parts=parts)
        if parts not in ("merged", "full"):
            raise ConfigError(f"pascal_part: parts={parts!r}; expected 'merged' or 'full'")
        self._is_full = parts == "full"
        self._mats = self.root / "Annotations_Part"
        voc = first_existing(
            [self.root, self.root / "VOC2010", self.root / "VOCdevkit" / "VOC2010"],
            lambda path: (path / "JPEGImages").is_dir(),
        )
        listed = None if voc is None else voc / "ImageSets" / "Main" / f"{split}.txt"
        if listed is None or not self._mats.is_dir() or not listed.is_file():
            raise self._layout_error(
                f"Annotations_Part/*.mat, JPEGImages/*.jpg and ImageSets/Main/{split}.txt"
            )
        self._images = voc / "JPEGImages"
        self.annotation_files = (listed, self._mats)
        annotated = {file.stem for file in self._mats.glob("*.mat")}
        names = [line.split()[0] for line in listed.read_text().splitlines() if line.strip()]
        self.example_ids = StringTable.of(sorted(set(names) & annotated))
        if not self.example_ids:
            raise self._layout_error(
                f"some of the {len(names)} images of {listed.name} in Annotations_Part "
                f"({len(annotated)} files)"
            )
        alone = sorted(set(names) - annotated)
        if alone:
            self.unused = (Unused(findings.NO_RECORD, tuple(alone[: findings.NAMED]), len(alone)),)
        self._pairs = frozenset(class_file("pascal_part")["pairs"])

    def _files(self, position: int) -> tuple[pathlib.Path, ...]:
        name = self.example_ids[position]
        return self._images / f"{name}.jpg", self._mats / f"{name}.mat"

    def _read(self, position: int) -> RawExample:
        name = self.example_ids[position]
        builder = ExampleBuilder(self, position, self._images / f"{name}.jpg")
        file = self._mats / f"{name}.mat"
        try:
            record = scipy.io.loadmat(str(file), variable_names=["anno"])["anno"]
        except Exception as error:  # loadmat can raise any error for damaged files
            raise builder.broken(f"cannot read {file}: {type(error).__name__}: {error}") from error
        for whole in record[0, 0]["objects"].reshape(-1):
            self._add_whole(builder, whole)
        return builder.build()

    def _add_whole(self, builder: ExampleBuilder, whole: np.void) -> None:
        name = _text(whole["class"])
        object_id = self.vocabulary.object_index("pascal_part", name)
        parent = builder.add_array(
            _mask(whole["mask"]), object_id=object_id, is_pseudo=self._is_pseudo("objects")
        )
        native = [
            (_text(part["part_name"]), _mask(part["mask"])) for part in whole["parts"].reshape(-1)
        ]
        if self._is_full:
            self._add_tree(builder, native, object_id, parent)
        else:
            self._add_merged(builder, native, name, object_id, parent)

    def _add_merged(
        self,
        builder: ExampleBuilder,
        native: list[tuple[str, np.ndarray]],
        name: str,
        object_id: int,
        parent: int,
    ) -> None:
        joined: dict[tuple[str, str], np.ndarray] = {}
        for code, mask in native:
            side, word = merged_part(code)
            if f"{name}:{word}" not in self._pairs:
                if word:  # the headlight of a bicycle, which is none of the 93 pairs
                    part_id = self.vocabulary.part_index("pascal_part", word)
                    fields = {"object_id": object_id, "part_id": part_id}
                    builder.leave_out(findings.OTHER_CLASS, f"{word} of a {name}", **fields)
                continue
            known = joined.get((side, word))
            joined[side, word] = mask if known is None else known | mask
        for (_, word), mask in joined.items():
            self._add_part(builder, mask, word, object_id, parent)

    def _add_tree(
        self,
        builder: ExampleBuilder,
        native: list[tuple[str, np.ndarray]],
        object_id: int,
        parent: int,
    ) -> None:
        named = []
        for code, mask in native:
            limb, name = full_part(code)
            if not name:
                raise builder.broken(f"part {code!r} is none of the data set's codes")
            named.append((limb, name, mask))
        limbs: dict[str, np.ndarray] = {}
        for limb, _, mask in named:
            if limb:
                limbs[limb] = mask | limbs.get(limb, mask)
        above = {
            limb: self._add_part(builder, mask, limb, object_id, parent)
            for limb, mask in limbs.items()
        }
        for limb, name, mask in named:
            self._add_part(builder, mask, name, object_id, above.get(limb, parent))

    def _add_part(
        self, builder: ExampleBuilder, mask: np.ndarray, name: str, object_id: int, parent: int
    ) -> int:
        return builder.add_array(
            mask,
            object_id=object_id,
            part_id=self.vocabulary.part_index("pascal_part", name),
            parent=parent,
            is_pseudo=self._is_pseudo("parts"),
        )


def merged_part(code: str) -> tuple[str, str]:
    """Splits a native part code into (which one, word of the 30-name list).

    Codes are a side (l, r, f, b, lf, rb, ...), a part and a number: `llarm` is the left lower
    arm, `lfpa` the left front paw, `wheel_2` the second wheel. The first item keeps two wheels
    or two arms apart; the word is "" where the list has none.
    """
    stem, _, number = code.partition("_")
    if stem in _WORDS and stem not in ("larm", "lleg"):
        return number, _WORDS[stem]
    for side in _SIDES:
        rest = stem.removeprefix(side)
        if rest != stem and rest in _WORDS:
            return side + number, _WORDS[rest]
    return stem + number, ""


def full_part(code: str) -> tuple[str, str]:
    """Spells a native part code out: (limb that it is a half of or "", name).

    `luarm` is ("left arm", "left upper arm"), `lfpa` ("", "left front paw"), `wheel_2`
    ("", "wheel"). The name is "" for a code that the data set does not have.
    """
    stem = code.partition("_")[0]
    limb = re.fullmatch(r"(l|r|lf|rf|lb|rb)(u|l)(arm|leg)", stem)
    if limb:
        side, half, word = limb.groups()
        return f"{_FULL_SIDES[side]}{word}", f"{_FULL_SIDES[side]}{_HALVES[half]}{word}"
    for side, text in _FULL_SIDES.items():
        word = _FULL_WORDS.get(stem.removeprefix(side))
        if stem.startswith(side) and word:
            return "", f"{text}{word}"
    return "", ""


def _text(value: np.ndarray) -> str:
    text = "".join(str(item) for item in np.asarray(value).reshape(-1))
    return re.sub(r"\s+", " ", text).strip()


def _mask(value: np.ndarray) -> np.ndarray:
    return np.asarray(value) != 0
