"""One path type for local folders and buckets."""

import os
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from etils import epath

    AnyPath = Path | epath.Path
else:
    AnyPath = PurePath
"""A path with the methods of `pathlib.Path`."""


def as_path(path: str | os.PathLike) -> AnyPath:
    """Returns a local path, or one that etils opens for a URL such as `gs://bucket/folder`."""
    if is_local(path):
        return Path(path)
    from etils import epath  # imported where it is used: most paths are local

    return epath.Path(path)


def is_local(path: str | os.PathLike) -> bool:
    """Whether a path lies on a file system of this machine."""
    return "://" not in os.fspath(path)
