"""What data.yaml says of a YOLO dataset: its classes, and the folders and lists of images of a
split.
"""

import os
import pathlib
from collections.abc import Mapping, Sequence

import yaml

from data_pipelines.sources.image_files import IMAGE_SUFFIXES, ImagePlaces, files_below
from data_pipelines.sources.values import clean_text, parse_int, plain_name, short
from semsam_jax.core.errors import DataError


def stated_names(described: pathlib.Path) -> dict[int, str]:
    """Class number -> name, out of data.yaml.

    Raises:
        DataError: it has no names, one of them is no text, or it describes poses.
    """
    content = read_yaml(described)
    if "kpt_shape" in content:
        raise DataError(
            f"{described}: describes poses (kpt_shape), whose lines are boxes and keypoints; "
            "expected YOLO segments, whose lines are outlines"
        )
    names = content.get("names")
    pairs = list(enumerate(names)) if isinstance(names, list) else []
    pairs = list(names.items()) if isinstance(names, Mapping) else pairs
    numbers = [parse_int(number) for number, _ in pairs]
    if not pairs or None in numbers:
        raise DataError(
            f"{described}: names is {short(names)}; expected the classes, such as [cat, dog] or "
            "{0: cat, 1: dog}"
        )
    for (_, name), number in zip(pairs, numbers, strict=True):
        if isinstance(name, bool) or not isinstance(name, (str, int, float)):
            raise DataError(
                f"{described}: the name of class {number} is {short(name)}; expected a text: put "
                "names such as 'on', 'no' and 'null' into quotes, which YAML reads as values"
            )
    return {number: clean_text(name) for number, (_, name) in zip(numbers, pairs, strict=True)}


def stated_places(described: pathlib.Path, names: Sequence[str]) -> tuple[pathlib.Path, ...]:
    """The folders and lists of images that data.yaml names for a split.

    Args:
        described: data.yaml.
        names: of the split; the first that the file has counts.

    Returns:
        All of them, in the file's order; empty where it does not name the split.

    Raises:
        DataError: one of them, or the labels of a folder, is not there.
    """
    content = read_yaml(described)
    name = next((name for name in names if content.get(name)), None)
    if name is None:
        return ()
    listed = content[name] if isinstance(content[name], list) else [content[name]]
    return tuple(dict.fromkeys(_stated(described, content, name, place) for place in listed))


def _stated(described: pathlib.Path, content: dict, name: str, place: object) -> pathlib.Path:
    found = None
    if isinstance(place, str):
        found = next(filter(_is_there, _candidates(described, content, place)), None)
    advice = "" if name.lower().startswith("train") else ", or delete it from the file"
    if found is None:
        raise DataError(
            f"{described}: {name} is {short(place)}, which is neither a folder of images nor a "
            f"list of them; correct it{advice}"
        )
    if found.is_dir() and not label_folder(found).is_dir():
        raise DataError(
            f"{described}: {name} is {short(place)}, but its labels are not in "
            f"{label_folder(found)}; put them there, or correct {name}{advice}"
        )
    return found


def _candidates(described: pathlib.Path, content: dict, place: str) -> list[pathlib.Path]:
    """Where a folder or list may be, the likeliest first.

    `path` and absolute names may be those of another machine, and Roboflow writes
    `../train/images` for what lies next to the file.
    """
    parts = pathlib.PurePosixPath(plain_name(place)).parts
    inner = parts
    while inner and inner[0] == "..":
        inner = inner[1:]
    bases = _bases(described, content)
    found = [base.joinpath(*tried) for tried in (inner, parts) for base in bases]
    if parts and (parts[0] == "/" or parts[0].endswith(":")):
        ends = [parts[at:] for at in range(1, len(parts))]
        # `images` alone could be all images, where the missing folder is that of a split.
        found += [described.parent.joinpath(*end) for end in ends if end != ("images",)]
    return found


def _bases(described: pathlib.Path, content: dict) -> list[pathlib.Path]:
    """What names are relative to: `path`, and the folder of data.yaml."""
    path = content.get("path")
    if not isinstance(path, str):
        return [described.parent]
    stated = described.parent / plain_name(path)
    return list(
        dict.fromkeys(
            [described.parent, stated] if stated.is_absolute() else [stated, described.parent]
        )
    )


def labels_of_folder(folder: pathlib.Path, alone: list[str]) -> dict[pathlib.Path, pathlib.Path]:
    """Image -> label file of a folder of images, which need not have one.

    Args:
        folder: of images, in folders too.
        alone: gets the names of label files without an image.

    Raises:
        DataError: it has no image.
    """
    labels = label_folder(folder)
    found = {
        image: labels / image.relative_to(folder).with_suffix(".txt")
        for image in files_below(folder, IMAGE_SUFFIXES)
    }
    if not found:
        raise DataError(
            f"{folder}: no JPEG or PNG in this folder of YOLO images; put them there, or correct "
            "the folder in data.yaml"
        )
    rest = set(files_below(labels, (".txt",))) - set(found.values())
    names = sorted(file.relative_to(labels).as_posix() for file in rest)
    alone += [name for name in names if name != "classes.txt"]
    return found


def labels_of_list(file: pathlib.Path, described: pathlib.Path) -> dict[pathlib.Path, pathlib.Path]:
    """Image -> label file of a list of images, one path a line; they need not exist.

    Paths are relative to the list's folder or to data.yaml's `path`; leading folders that do not
    exist here are removed (`ImagePlaces`).

    Args:
        file: the list.
        described: data.yaml.

    Raises:
        DataError: the list cannot be read or is empty, or no folder of labels is there.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file}: cannot be read as a list of images ({error}); expected a text file with one "
            f"path a line; correct it, or {described}"
        ) from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise DataError(f"{file}: lists no image; expected one path a line, or correct {described}")
    bases = [file.parent, *_bases(described, read_yaml(described))]
    places = ImagePlaces(names, [base for base in bases if _is_there(base)])
    images = [pathlib.Path(os.path.normpath(places.path(name))) for name in names]
    found = {image: label_folder(image.parent) / f"{image.stem}.txt" for image in images}
    folders = dict.fromkeys(label.parent for label in found.values())
    if not any(_is_there(folder) for folder in folders):
        raise DataError(
            f"{file}: the labels of its images are not in {next(iter(folders))}; put them there, "
            "or correct the paths of the images"
        )
    return found


def _is_there(path: pathlib.Path) -> bool:
    try:
        return path.is_dir() or path.is_file()
    except (OSError, ValueError):  # a name too long for the disk
        return False


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
        raise DataError(f"{file}: holds a {type(content).__name__}; expected keys such as names")
    return content


def label_folder(images: pathlib.Path) -> pathlib.Path:
    """The folder of YOLO labels of a folder of images: the last `images` becomes `labels`."""
    parts = list(images.parts)
    if "images" not in parts:
        return images
    at = len(parts) - 1 - parts[::-1].index("images")
    return pathlib.Path(*parts[:at], "labels", *parts[at + 1 :])
