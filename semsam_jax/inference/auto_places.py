"""Files of the results of `auto`: their names, whose they are, and whether they are finished."""

import hashlib
import json
import os
from collections import Counter
from pathlib import Path

from semsam_jax.core.errors import DataError

_MAX_NAME_BYTES = 200


def result_names(images: list[Path]) -> dict[Path, str]:
    """Name of the result of each image: its stem, or its whole name where stems collide."""
    stems = Counter(_folded(image.stem) for image in images)
    names, used = {}, set()
    for image in sorted(images, key=lambda p: stems[_folded(p.stem)]):
        name, number = image.stem if stems[_folded(image.stem)] == 1 else image.name, 2
        name = _fitting(name)
        while _folded(name) in used:
            name, number = f"{image.name}-{number}", number + 1
        used.add(_folded(name))
        names[image] = name
    return names


def usual_names(name: str, image: Path) -> tuple[str, str, str]:
    """Names of a result: of `result_names`, the whole name of the image, and its stem."""
    return name, _fitting(image.name), _fitting(image.stem)


def image_number(target: Path, digest: str) -> int:
    """The `image_id` of a result, the same in every run and different for every file of a folder.

    Two commands may share the folder, so it is no count: 48 bits of a hash, exact in any JSON.

    Args:
        target: file of the result.
        digest: of the image.
    """
    return int(hashlib.sha256(os.fsencode(f"{digest} {target.name}")).hexdigest()[:12], 16)


def _fitting(name: str) -> str:
    """A name short enough for files named after it: disks take 255 bytes."""
    letters = os.fsencode(name)
    if len(letters) <= _MAX_NAME_BYTES:
        return name
    digest = hashlib.sha256(letters).hexdigest()[:12]
    return f"{letters[: _MAX_NAME_BYTES - 13].decode('utf-8', 'ignore')}-{digest}"


def _folded(name: str) -> str:
    """Names that are one file on a disk that ignores case."""
    return name.casefold()


def file_digest(image: Path) -> str:
    """SHA-256 of a file; DataError if it cannot be read."""
    from semsam_jax.inference.images import check_is_file

    check_is_file(image)
    try:
        with image.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{image}: cannot be read ({error.strerror or error}).") from error


def result_file(out: Path, name: str, image: Path, stamp: dict) -> Path:
    """File of the results: the usual one, unless it holds the results of another image.

    A file that already holds those of this image is kept, also if it is called after the stem alone
    because no other image had that stem then.

    Args:
        out: the output folder.
        name: of `result_names`.
        image: the image file.
        stamp: with its `source`.
    """
    digest = stamp["source"]["sha256"]
    candidates = [*usual_names(name, image), f"{name}-{digest[:12]}"]
    targets = [out / f"{candidate}.json" for candidate in dict.fromkeys(candidates)]
    owners = [_source_of(target, image, digest) for target in targets]
    if digest in owners:
        return targets[owners.index(digest)]
    return targets[0] if owners[0] is None else targets[-1]


def _source_of(target: Path, image: Path, digest: str) -> str | None:
    """Hash of the image whose results these are: None if the name is free, "" if not known."""
    if target.exists():
        settings = read_result(target).get("settings")
        source = settings.get("source") if isinstance(settings, dict) else None
        return str(source.get("sha256", "")) if isinstance(source, dict) else ""
    copy = target.with_name(f"{target.name.removesuffix('.json')}.jpg")
    if not copy.exists():
        return None
    from semsam_jax.inference import files
    from semsam_jax.inference.images import load_image

    # Without its results: left by a run that was killed, or a file of the user's own.
    return digest if copy.read_bytes() == files.jpeg_copy(image, load_image(image)) else ""


def is_finished(target: Path, stamp: dict) -> bool:
    """Whether a file holds the results of these settings, for the image that it belongs to."""
    found = read_result(target).get("settings")
    # The same content under another name is the same image. Earlier versions wrote no dtype.
    same = {"source": None}
    return isinstance(found, dict) and {"dtype": "float32"} | found | same == stamp | same


def read_result(target: Path) -> dict:
    """Content of a result; empty if it is missing or none of ours."""
    try:
        content = json.loads(target.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
