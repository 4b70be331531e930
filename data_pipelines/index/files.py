"""Atomic writes to a disk or a bucket."""

import json
import os
import uuid
from collections.abc import Callable
from typing import BinaryIO

from absl import logging
from etils import epath


def write_whole(path: str | os.PathLike, save: Callable[[BinaryIO], object]) -> None:
    """Writes a temporary file and renames it, since several hosts may write the same one."""
    path = epath.Path(path)
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with part.open("wb") as file:
            save(file)
        part.replace(path)
    except BaseException:  # a full disk, or an interrupt
        part.unlink(missing_ok=True)
        raise


def write_json(path: str | os.PathLike, content: dict) -> None:
    """Writes plain values as JSON; see `write_whole`."""
    text = json.dumps(content, indent=1, ensure_ascii=False).encode("utf-8")
    write_whole(path, lambda file: file.write(text))


def say_not_kept(folder: str | os.PathLike, error: OSError) -> None:
    """Warns that the cache cannot be written: the scan is repeated next time."""
    logging.warning(
        "cache %s cannot be written (%s); the dataset will be scanned again at the next start. "
        "Set SEMSAM_JAX_CACHE to another folder.",
        os.fspath(folder),
        error.strerror or error,
    )
