"""Finds the files of a split of a custom dataset in the layouts of annotation tools.

Nothing is renamed or copied. The layout is detected by file names; an unknown one is refused with a
list of all layouts.
"""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Sequence

from data_pipelines.sources.image_files import IMAGE_SUFFIXES, files_below
from data_pipelines.sources.yolo_splits import label_folder, stated_places
from semsam_jax.core.errors import DataError

COCO, YOLO, LABELME, COCOTREE = "coco", "yolo", "labelme", "cocotree"

SPLITS = ("train", "val", "test")
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
        folders: where its images may be, the likeliest first; YOLO: all its folders of images and
            lists of images; COCOTree: the list of the images that are no training images, if it
            is there.
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

    Raises:
        DataError: a description names a split that is not there.
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
    others = []
    for name in SPLITS:
        with contextlib.suppress(DataError):  # what is wrong with other splits is not asked
            others += [name] if find_layout(root, name) else []
    there = f"; it has {', '.join(others)}" if others else ""
    return DataError(
        f"{dataset} {split}: layout of {root} not recognised: no annotations of split "
        f"{split}{there}; expected {WANTED.format(split=split)}; found {found}; rename the files "
        "to one of these"
    )


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
            "expected train/ and val/ in that folder itself: move them there, or rename the folder"
        )
    return [file for file in files if file not in of_splits]


def _json_files(folder: pathlib.Path) -> list[pathlib.Path]:
    files = files_below(folder, (".json",)) if folder.is_dir() else []
    return [file for file in files if file.name != "PROVENANCE.json"]


def _labelme_folders(root: pathlib.Path, split: str) -> list[pathlib.Path]:
    """Where LabelMe's files of a split may be."""
    return [root / place for n in names_of(split) for place in (n, f"images/{n}")]


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
    """Finds what data.yaml names for a split, else `labels` next to `images`.

    Raises:
        DataError: data.yaml names something that is not there.
    """
    described = next((p for p in (root / "data.yaml", root / "dataset.yaml") if p.is_file()), None)
    places = _yolo_places(root, described, split)
    if places:
        if split == "train":
            _check_apart(root, described, places)
        return Layout(YOLO, described, places)
    images = root / "images"
    is_whole = split == "train" and images.is_dir() and any((root / "labels").glob("*.txt"))
    if is_whole and not any(_yolo_places(root, described, other) for other in ("val", "test")):
        return Layout(YOLO, described, (images,), is_whole=True)
    return None


def _check_apart(
    root: pathlib.Path, described: pathlib.Path | None, places: tuple[pathlib.Path, ...]
) -> None:
    """Refuses a training folder around the validation images: folders are read to any depth."""
    inside: list[pathlib.Path] = []
    with contextlib.suppress(DataError):  # what is wrong with val is said when it is asked for
        inside = [v for v in _yolo_places(root, described, "val") if set(v.parents) & set(places)]
    if inside:
        raise DataError(
            f"{described or root}: the folder of val, {inside[0]}, lies in one of train, so its "
            "images would be trained on; name train's own folders, or lists of images"
        )


def _yolo_places(
    root: pathlib.Path, described: pathlib.Path | None, split: str
) -> tuple[pathlib.Path, ...]:
    names = names_of(split)
    stated = () if described is None else stated_places(described, names)
    usual = [root / place for name in names for place in (f"images/{name}", f"{name}/images")]
    found = (images for images in usual if images.is_dir() and label_folder(images).is_dir())
    return stated or tuple(found)[:1]


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
