"""Finds files: those below a folder, and the images that files of other machines name."""

import functools
import os
import pathlib
import unicodedata
from collections.abc import Callable, Sequence
from urllib import parse

from data_pipelines.sources.values import plain_name
from semsam_jax.core.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


def files_below(folder: pathlib.Path, suffixes: Sequence[str]) -> list[pathlib.Path]:
    """Files below a folder with one of some endings, by name; links to folders are followed.

    Hidden ones are left out: a Mac writes a `._NAME` next to every file on a foreign disk.

    Raises:
        DataError: a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise DataError(
            f"{error.filename}: cannot be read ({error.strerror}); check its permissions"
        )

    found = []
    for above, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        folders[:] = [
            name for name in folders if not _is_hidden(name) and not _is_loop(above, name)
        ]
        files = (pathlib.Path(above, name) for name in names if not _is_hidden(name))
        found += [file for file in files if file.suffix.lower() in suffixes and file.is_file()]
    return sorted(found)


def _is_hidden(name: str) -> bool:
    return name.startswith(".")


def _is_loop(above: str, name: str) -> bool:
    """Whether a folder is a link to one that it lies in."""
    target, place = os.path.realpath(os.path.join(above, name)), os.path.realpath(above)
    return place == target or place.startswith(os.path.join(target, ""))


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
