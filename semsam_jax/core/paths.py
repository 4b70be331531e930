"""One path type for local folders and buckets."""

import os
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from semsam_jax.core.errors import DataError

if TYPE_CHECKING:
    from etils import epath

    AnyPath = Path | epath.Path
else:
    AnyPath = PurePath
"""A path with the methods of `pathlib.Path`."""


def as_path(path: str | os.PathLike) -> AnyPath:
    """Returns a local path, or one that etils opens for a URL such as `gs://bucket/folder`.

    Raises:
        DataError: an address that etils does not open, such as a web page.
    """
    if is_local(path):
        return Path(path)
    from etils import epath  # imported where it is used: most paths are local

    try:
        return epath.Path(path)
    except KeyError as error:
        raise DataError(
            f"{path}: {error.args[0]} addresses cannot be opened; expected a folder or file of "
            f"this machine, or a bucket (gs://, s3://)."
        ) from error


def is_local(path: str | os.PathLike) -> bool:
    """Whether a path lies on a file system of this machine."""
    return "://" not in os.fspath(path)
