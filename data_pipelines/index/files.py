"""Files that are there whole or not at all, on a disk or in a bucket."""

import json
import os
import uuid
from collections.abc import Callable
from typing import BinaryIO

from etils import epath


def write_whole(path: str | os.PathLike, save: Callable[[BinaryIO], object]) -> None:
    """Writes a file beside its place and moves it there: several hosts may write the same one."""
    path = epath.Path(path)
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
    with part.open("wb") as file:
        save(file)
    part.replace(path)


def write_json(path: str | os.PathLike, content: dict) -> None:
    """Writes plain values as JSON; see `write_whole`."""
    text = json.dumps(content, indent=1, ensure_ascii=False).encode("utf-8")
    write_whole(path, lambda file: file.write(text))
