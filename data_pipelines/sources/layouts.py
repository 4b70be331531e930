"""Finds the files of a split of a custom dataset in the layouts of annotation tools.

Nothing is renamed or copied. The layout is detected by file names; an unknown one is refused with a
list of all layouts.
"""

import dataclasses
import functools
import json
import os
import pathlib
import unicodedata
from collections.abc import Callable, Sequence
from urllib import parse

import yaml

from data_pipelines.sources.values import plain_name
from semsam_jax.core.errors import DataError

COCO, YOLO, LABELME, COCOTREE = "coco", "yolo", "labelme", "cocotree"

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")

_ALIASES = {"train": ("train", "training"), "val": ("val", "valid", "validation")}
_CASES = (str.lower, str.capitalize, str.upper)
_ONE_FILE = (
    "_annotations.coco.json",
    "labels.json",
    "result.json",
    "annotations/instances_default.json",
    "instances_default.json",
    "annotations.json",
    "annotations/annotations.json",
    "coco.json",
)
"""What Roboflow, FiftyOne, Label Studio and CVAT write where there are no splits."""

WANTED = (
    "annotations/{split}.json with images/ (COCO); {split}/_annotations.coco.json (Roboflow); "
    "annotations/instances_{split}.json or instances_default.json with images/ (CVAT); "
    "result.json with images/ (Label Studio); {split}/labels.json with {split}/data/ (FiftyOne); "
    "data.yaml with labels/{split}/*.txt (YOLO); {split}/**/*.json next to the images (LabelMe); "
    "annotations/instance_nodes.jsonl (COCOTree)"
)


@dataclasses.dataclass(frozen=True)
class Layout:
    """One split of a custom dataset.

    Attributes:
        kind: `COCO`, `YOLO`, `LABELME` or `COCOTREE`.
        file: the annotation file (COCO, COCOTree), `data.yaml` (YOLO, None where there is none);
            None for LabelMe.
        folders: where its images may be, the likeliest first; COCOTree: the list of the images
            that are no training images, if it is there.
        is_whole: the folder has no splits, this is all of it.
    """

    kind: str
    file: pathlib.Path | None
    folders: tuple[pathlib.Path, ...]
    is_whole: bool = False


def names_of(split: str) -> tuple[str, ...]:
    """Names that tools use for a split."""
    names = _ALIASES.get(split, (split,))
    return tuple(dict.fromkeys([split, *(case(name) for case in _CASES for name in names)]))


def annotation_places(split: str) -> list[str]:
    """Candidate places of the COCO-format file of a split, below the root."""
    return [
        place
        for name in names_of(split)
        for place in (
            f"annotations/{name}.json",
            f"annotations/instances_{name}.json",
            f"{name}.json",
            f"{name}/_annotations.coco.json",
            f"{name}/labels.json",
            f"{name}/annotations.json",
            f"annotations/instances_{name}2017.json",
            f"instances_{name}.json",
        )
    ]


def find_layout(
    root: pathlib.Path,
    split: str,
    *,
    annotations: str | None = None,
    images: str | None = None,
) -> Layout | None:
    """Finds a split of a custom dataset.

    Args:
        root: the folder.
        split: `train`, `val` or another name.
        annotations: the COCO-format file below `root`, if it has another name.
        images: the folder of the images below `root`, if it has another name.

    Returns:
        The layout, or None if the folder has no such split.
    """
    if annotations is not None:
        file = root / annotations
        return Layout(COCO, file, _folders(root, file, split, images)) if file.is_file() else None
    nodes = root / "annotations" / "instance_nodes.jsonl"
    if nodes.is_file():
        listed = root / "splits" / "cocotree_1k_v1.jsonl"
        if split == "train" or (split == "val" and listed.is_file()):
            return Layout(COCOTREE, nodes, (listed,) if listed.is_file() else ())
        return None
    for place in annotation_places(split):
        file = root / place
        if file.is_file():
            return Layout(COCO, file, _folders(root, file, split, images))
    yolo = _yolo(root, split)
    if yolo is not None:
        return yolo
    for folder in _labelme_folders(root, split):
        if _is_labelme(_json_files(folder)):
            return Layout(LABELME, None, (folder,))
    if split != "train" or _has_splits(root):
        return None
    for place in _ONE_FILE:
        file = root / place
        if file.is_file():
            return Layout(COCO, file, _folders(root, file, split, images), is_whole=True)
    whole = Layout(LABELME, None, (root,), is_whole=True)
    return whole if _is_labelme(labelme_files(whole)) else None


def layout_error(dataset: str, root: pathlib.Path, split: str) -> DataError:
    """The error for a folder without such a split; raise it."""
    found = sorted(entry.name for entry in root.iterdir())[:12]
    others = [name for name in ("train", "val", "test") if find_layout(root, name)]
    there = f"; it has {', '.join(others)}" if others else ""
    return DataError(
        f"{dataset} {split}: layout of {root} not recognised: no annotations of split "
        f"{split}{there}; wanted {WANTED.format(split=split)}; found {found}; rename the files to "
        "one of these"
    )


def files_below(folder: pathlib.Path, suffixes: Sequence[str]) -> list[pathlib.Path]:
    """Files below a folder with one of some endings, by name; links to folders are followed.

    Hidden ones are left out: a Mac writes a `._NAME` next to every file on a foreign disk.

    Raises:
        DataError: a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror}); check its rights")

    found = []
    for above, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        folders[:] = [
            name for name in folders if not _is_hidden(name) and not _is_loop(above, name)
        ]
        files = (pathlib.Path(above, name) for name in names if not _is_hidden(name))
        found += [file for file in files if file.suffix.lower() in suffixes and file.is_file()]
    return sorted(found)


def labelme_files(layout: Layout) -> list[pathlib.Path]:
    """LabelMe's JSON files of a split, in its folder and all below, by name.

    Raises:
        DataError: a folder without splits holds folders of them deep inside.
    """
    (root,) = layout.folders
    files = _json_files(root)
    if not layout.is_whole:
        return files
    others = {name for split in ("val", "test") for name in names_of(split)}
    of_splits = {file for file in files if others & set(file.relative_to(root).parts[:-1])}
    known = {folder for split in ("val", "test") for folder in _labelme_folders(root, split)}
    odd = sorted(file for file in of_splits if not known & set(file.parents))
    if _is_labelme(odd):
        raise DataError(
            f"{odd[0].parent}: LabelMe files in a folder named like a split, deep inside {root}; "
            "wanted train/ and val/ in that folder itself: move them there, or rename the folder"
        )
    return [file for file in files if file not in of_splits]


def _json_files(folder: pathlib.Path) -> list[pathlib.Path]:
    files = files_below(folder, (".json",)) if folder.is_dir() else []
    return [file for file in files if file.name != "PROVENANCE.json"]


def _labelme_folders(root: pathlib.Path, split: str) -> list[pathlib.Path]:
    """Where LabelMe's files of a split may be."""
    return [root / place for n in names_of(split) for place in (n, f"images/{n}")]


def _is_hidden(name: str) -> bool:
    return name.startswith(".")


def _is_loop(above: str, name: str) -> bool:
    """Whether a folder is a link to one that it lies in."""
    target, place = os.path.realpath(os.path.join(above, name)), os.path.realpath(above)
    return place == target or place.startswith(os.path.join(target, ""))


def _folders(
    root: pathlib.Path, file: pathlib.Path, split: str, images: str | None
) -> tuple[pathlib.Path, ...]:
    if images is not None:
        return (root / images,)
    names = names_of(split)
    places = [root / name for name in names] + [root / "images" / name for name in names]
    places += [root / "images", root / "images" / "default", root / "data"]
    places += [root / f"{name}2017" for name in names]
    nearby = file.parent
    if nearby != root and nearby.name != "annotations":  # Roboflow and FiftyOne, split by split
        places = [nearby, nearby / "data", nearby / "images", *places]
    return tuple(place for place in dict.fromkeys([*places, root]) if place.is_dir())


def _yolo(root: pathlib.Path, split: str) -> Layout | None:
    """Finds `labels` next to `images`, above or below the split."""
    described = next((p for p in (root / "data.yaml", root / "dataset.yaml") if p.is_file()), None)
    places = [root / place for n in names_of(split) for place in (f"images/{n}", f"{n}/images")]
    if described is not None:
        places = [*_stated_in(described, split), *places]
    for images in places:
        if images.is_dir() and label_folder(images).is_dir():
            return Layout(YOLO, described, (images,))
    images = root / "images"
    is_whole = split == "train" and images.is_dir() and (root / "labels").is_dir()
    if is_whole and any((root / "labels").glob("*.txt")):
        return Layout(YOLO, described, (images,), is_whole=True)
    return None


def _stated_in(described: pathlib.Path, split: str) -> list[pathlib.Path]:
    """The folders that data.yaml names for a split, relative to the file.

    Its `path` is that of the machine it was written on, and Roboflow writes `../train/images`.
    """
    content = read_yaml(described)
    found = []
    for name in names_of(split):
        value = content.get(name)
        for place in value if isinstance(value, list) else [value]:
            if isinstance(place, str):
                parts = [part for part in pathlib.PurePosixPath(plain_name(place)).parts]
                while parts and parts[0] in ("..", "."):
                    parts = parts[1:]
                found.append(described.parent.joinpath(*parts))
    return found


def read_yaml(file: pathlib.Path) -> dict:
    """Reads YOLO's description of a dataset.

    Raises:
        DataError: it is no YAML mapping.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        detail = " ".join(str(error).split())
        raise DataError(f"{file}: cannot be read as YAML ({detail}); repair the file") from error
    if not isinstance(content, dict):
        raise DataError(f"{file}: holds a {type(content).__name__}; wanted keys such as names")
    return content


def label_folder(images: pathlib.Path) -> pathlib.Path:
    """The folder of YOLO labels of a folder of images: the last `images` becomes `labels`."""
    parts = list(images.parts)
    if "images" not in parts:
        return images
    at = len(parts) - 1 - parts[::-1].index("images")
    return pathlib.Path(*parts[:at], "labels", *parts[at + 1 :])


def _has_splits(root: pathlib.Path) -> bool:
    return any(
        (root / place).is_file() for name in ("train", "val") for place in annotation_places(name)
    )


def _is_labelme(files: Sequence[pathlib.Path]) -> bool:
    """Whether JSON files are LabelMe's, judged by the first of those in the highest folder."""
    if not files:
        return False
    file = min(files, key=lambda path: (len(path.parts), path))
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return any(file.with_suffix(suffix).is_file() for suffix in IMAGE_SUFFIXES)
    return isinstance(content, dict) and "shapes" in content


def _of_url(name: str) -> str:
    """The path in a URL; Label Studio's names of local files have it behind `?d=`."""
    parts = parse.urlsplit(name)
    return parse.parse_qs(parts.query).get("d", [parse.unquote(parts.path)])[0]


_SPELLINGS: tuple[Callable[[str], str], ...] = (
    str,
    _of_url,
    # One letter with an accent, or a letter and an accent: a Mac's archives have the second.
    functools.partial(unicodedata.normalize, "NFC"),
    functools.partial(unicodedata.normalize, "NFD"),
)


class ImagePlaces:
    """Maps the file names of an annotation file to files on disk, by one rule for all of them.

    Names may start with folders that do not exist here (those of the machine they were written on,
    or the image folder's own name), be URLs, or have accents in another form of Unicode; as many
    leading folders are removed as needed to find the images. Two names never become one file.

    Args:
        names: the names as the file states them.
        folders: where the images may lie.
    """

    _TRIED = 24
    _MOST_FOLDERS = 8

    def __init__(self, names: Sequence[str], folders: Sequence[pathlib.Path]):
        self._folder, self._skip, self._spell = folders[0], 0, _SPELLINGS[0]
        step = max(1, len(names) // self._TRIED)
        tried = [name for name in (names[at] for at in range(0, len(names), step)) if name]
        best = 0
        for spell in _SPELLINGS:
            spelled = [_spelled(spell, name) for name in tried]
            if spell is not _SPELLINGS[0] and spelled == tried:
                continue
            depth = max((plain_name(name).count("/") for name in spelled), default=0)
            for skip in range(min(depth, self._MOST_FOLDERS) + 1):
                for folder in folders:
                    found = sum(_is_file(folder.joinpath(*_cut(name, skip))) for name in spelled)
                    if found > best and self._stay_apart(names, spell, skip):
                        best = found
                        self._folder, self._skip, self._spell = folder, skip, spell
                if best == len(tried):
                    return

    def path(self, name: str) -> pathlib.Path:
        """The file of a name; it need not exist."""
        return self._folder.joinpath(*_cut(_spelled(self._spell, name), self._skip))

    @staticmethod
    def _stay_apart(names: Sequence[str], spell: Callable[[str], str], skip: int) -> bool:
        if spell is _SPELLINGS[0] and not skip:
            return True
        return len({_cut(_spelled(spell, name), skip) for name in names}) == len(set(names))


def _spelled(spell: Callable[[str], str], name: str) -> str:
    try:
        return spell(name)
    except ValueError:  # no URL, such as http://[
        return name


def _cut(name: str, skip: int) -> tuple[str, ...]:
    """A name without its first folders."""
    parts = pathlib.PurePosixPath(plain_name(name)).parts
    return parts[min(skip, len(parts) - 1) :] if parts else ()


def _is_file(path: pathlib.Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long for the disk
        return False
