"""Locates the images of SA-1B: loose files, or members of the official archives.

Eleven million images are listed as arrays: concatenated names and, for archives, the offsets of
each image and its JSON, so that nothing needs to be unpacked. A listing in a cache folder is
memory-mapped, and repeated only when an archive or a folder has changed.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import re
import tarfile
from collections.abc import Iterator
from concurrent import futures

import numpy as np

from data_pipelines import findings
from data_pipelines.index.files import say_not_kept, write_json, write_whole
from data_pipelines.index.strings import StringTable
from semsam_jax.core.errors import DataError

PLACE = np.dtype(
    [
        ("archive", "<i4"),
        ("image_start", "<i8"),
        ("image_size", "<i4"),
        ("text_start", "<i8"),
        ("text_size", "<i4"),
    ]
)
"""One image in the archives: number of the archive, then bytes of the image and of its JSON."""

_FORMAT = 2
_BLOCK = 512  # tar's unit; zero blocks end an archive


@dataclasses.dataclass
class Listing:
    """The images of one folder, in reading order.

    Attributes:
        names: paths relative to the folder (or inside the archive), without suffix.
        archives: archive names; empty for loose files.
        places: `PLACE` [n], empty for loose files. A size of -1 marks what a cut-off archive
            lacks.
        cache: folder that the arrays are mapped from, or None.
        alone: JSON files without an image of the same name: the first of them, and their number.
    """

    names: StringTable
    archives: tuple[str, ...] = ()
    places: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, PLACE))
    cache: pathlib.Path | None = None
    alone: tuple[tuple[str, ...], int] = ((), 0)

    def __getstate__(self) -> dict:
        """Worker processes map the files again instead of receiving copies."""
        mapped = {"places": None} if self.cache is not None else {}
        return {**self.__dict__, **mapped}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        if self.cache is not None:
            self.places = np.load(self.cache / "places.npy", mmap_mode="r")


def read_listing(folder: pathlib.Path, cache: pathlib.Path | None = None) -> Listing:
    """Lists the images of a folder that have a JSON.

    Args:
        folder: holds `*.tar` archives, or images at any depth.
        cache: where listings are kept; None scans every time and keeps the result in memory.

    Raises:
        DataError: archives lie next to loose images, or next to folders with more.
    """
    if cache is None:
        return _scan(folder)[0]
    kept = cache / f"sa1b-{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]}"
    listing = _mapped(folder, kept)
    if listing is None:
        scanned, stamp = _scan(folder)
        try:
            save_listing(scanned, stamp, kept)
        except OSError as error:
            say_not_kept(cache, error)
            return scanned
        listing = _mapped(folder, kept)
    # Changes during the scan are detected at the next start.
    return listing if listing is not None else scanned


def save_listing(listing: Listing, stamp: dict[str, list[int]], kept: pathlib.Path) -> None:
    """Stores a listing; the JSON is written last and marks it as complete."""
    kept.mkdir(parents=True, exist_ok=True)
    arrays = {**listing.names.arrays("names"), "places.npy": listing.places}
    for name, array in arrays.items():
        write_whole(kept / name, lambda file, array=array: np.save(file, array))
    content = {"format": _FORMAT, "stamp": stamp, "archives": listing.archives}
    content["alone"] = listing.alone
    write_json(kept / "listing.json", content)


def stamp_of(folder: pathlib.Path, names: list[str]) -> dict[str, list[int]]:
    """Size and age of archives or folders below `folder`; a missing one has neither."""
    stamp = {}
    for name in names:
        try:
            stat = (folder / name).stat()
        except OSError:
            stamp[name] = []
            continue
        # A folder's size means nothing on many file systems.
        stamp[name] = [stat.st_size if name.endswith(".tar") else 0, stat.st_mtime_ns]
    return stamp


def _mapped(folder: pathlib.Path, kept: pathlib.Path) -> Listing | None:
    """The stored listing, if it is still valid."""
    file = kept / "listing.json"
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content.get("format") != _FORMAT:
            return None
        stamp = content["stamp"]
    except (ValueError, LookupError, AttributeError):  # a full disk cut it short
        return None
    archives = [path.name for path in _archives(folder)]
    if archives != list(content["archives"]) or stamp_of(folder, list(stamp)) != stamp:
        return None
    return Listing(
        names=StringTable.load(kept, "names"),
        archives=tuple(archives),
        places=np.load(kept / "places.npy", mmap_mode="r"),
        cache=kept,
        alone=(tuple(content["alone"][0]), content["alone"][1]),
    )


def _scan(folder: pathlib.Path) -> tuple[Listing, dict[str, list[int]]]:
    archives = _archives(folder)
    if not archives:
        folders: list[str] = []
        alone: list[str] = []
        names = StringTable.of(_loose(folder, folders, alone))
        first = tuple(alone[: findings.NAMED])
        return Listing(names, alone=(first, len(alone))), stamp_of(folder, folders)
    loose = [entry.name for entry in os.scandir(folder) if entry.name.endswith((".jpg", ".json"))]
    if loose:
        raise DataError(
            f"sa1b: {folder} holds archives ({archives[0].name} ...) next to loose images "
            f"({min(loose)} ...); expected one kind, since an image in both would count twice; "
            "move one kind to another folder"
        )
    nested = _nested(folder)
    if nested:
        raise DataError(
            f"sa1b: {folder} holds archives ({archives[0].name} ...) next to a folder of more "
            f"({nested} ...), which would not be read; move them into one folder, of one kind"
        )
    with futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(_members, range(len(archives)), archives))
    names = StringTable.of(name for part, _ in found for name in part)
    listing = Listing(
        names, tuple(path.name for path in archives), np.concatenate([p for _, p in found])
    )
    return listing, stamp_of(folder, [path.name for path in archives])


def _nested(folder: pathlib.Path) -> str:
    """An archive or image in a folder below, other splits aside; "" if there is none."""
    with os.scandir(folder) as entries:
        below = sorted(e.name for e in entries if e.is_dir() and e.name not in ("val", "test"))
    for name in below:
        if not name.startswith("."):
            with os.scandir(folder / name) as entries:
                for entry in entries:
                    if entry.name.endswith((".tar", ".jpg")) and not entry.name.startswith("."):
                        return f"{name}/{entry.name}"
    return ""


def _archives(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(folder.glob("[!.]*.tar"), key=lambda path: by_number(path.stem))


def _members(number: int, archive: pathlib.Path) -> tuple[StringTable, np.ndarray]:
    """Images with a JSON in one archive, by number; truncated members count as broken images."""
    files: dict[str, dict[str, tuple[int, int]]] = {}
    end, is_whole = 0, True
    size = archive.stat().st_size
    try:
        with tarfile.open(archive, "r:") as tar:
            for member in tar:
                end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
                stem, dot, kind = member.name.removeprefix("./").rpartition(".")
                if member.isfile() and dot and kind in ("jpg", "json"):
                    is_there = member.offset_data + member.size <= size
                    place = (member.offset_data, member.size if is_there else -1)
                    files.setdefault(stem, {})[kind] = place
                tar.members = []  # a list of all headers is not needed
    except tarfile.TarError:
        is_whole = False
    with archive.open("rb") as file:
        file.seek(end)
        is_whole = is_whole and file.read(_BLOCK) == bytes(_BLOCK)
    rows = [
        (stem, (number, *pair["jpg"], *pair["json"]))
        for stem, pair in sorted(files.items(), key=lambda item: by_number(item[0]))
        if len(pair) == 2
    ]
    if not is_whole:
        rows.append((archive.name, (number, end, -1, end, -1)))
    places = np.array([place for _, place in rows], PLACE)
    return StringTable.of(stem for stem, _ in rows), places


def _loose(folder: pathlib.Path, seen: list[str], alone: list[str]) -> Iterator[str]:
    """Yields names of loose images that have a JSON, folder by folder.

    Collects the folders, and JSON files of SA-1B without an image.
    """
    for parent, below, names in os.walk(folder):
        below[:] = sorted((name for name in below if name[0] != "."), key=by_number)
        names = [name for name in names if name[0] != "."]  # a Mac writes ._NAME next to NAME
        above = pathlib.Path(parent).relative_to(folder).as_posix()
        seen.append(above)
        prefix = "" if above == "." else f"{above}/"
        images = {name[:-4] for name in names if name.endswith(".jpg")}
        stems = [name[:-5] for name in names if name.endswith(".json")]
        known = images | {"PROVENANCE"}
        alone.extend(f"{prefix}{stem}.json" for stem in stems if stem not in known)
        for stem in sorted((stem for stem in stems if stem in images), key=by_number):
            yield prefix + stem


def by_number(name: str) -> tuple[str, int, str]:
    """Sorting key: `sa_9` before `sa_10`."""
    digits = re.search(r"(\d+)$", name)
    stem = name[: digits.start()] if digits else name
    return stem, int(digits.group(1)) if digits else -1, name
