"""The folder that `segment` writes to: results of one image, replaced as a whole."""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from semsam_jax.core.errors import DataError
from semsam_jax.inference import arguments, files

RECORD = "source.json"
"""Names the image of the results, and their files."""

MASKS = "masks.json"
_RESULTS = (MASKS, "overlay.png", "segments.png", "label_map.png")


@dataclasses.dataclass(frozen=True)
class SegmentFolder:
    """Where the results of an image go.

    Attributes:
        path: the folder.
        image: path of the image from the folder; None if it is no file, such as a pipe.
        sha256: hash of the pixels.
    """

    path: Path
    image: str | None
    sha256: str

    @property
    def is_free(self) -> bool:
        """Whether there are no results yet, or only those of the same image."""
        if not (self.path / MASKS).exists():
            return True
        found = self._record()
        is_here = self.image is not None and found.get("image") == self.image
        return is_here or found.get("sha256") == self.sha256

    def start(self, names: Sequence[str]) -> None:
        """Makes the folder ready for files of these names; others of an earlier result go.

        Raises:
            OutputError: the folder cannot be written.
        """
        is_free = self.is_free
        earlier = set(_RESULTS) & set(self._record().get("files") or ()) if is_free else _RESULTS
        files.make_folder(self.path)
        if not is_free:  # first, so that a record never names another image's results
            self._remove(earlier)
        record = {"image": self.image, "sha256": self.sha256, "files": list(names)}
        files.write_json(self.path / RECORD, record)
        self._remove(set(earlier) - set(names))

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            with contextlib.suppress(OSError):
                (self.path / name).unlink(missing_ok=True)

    def _record(self) -> dict:
        try:
            found = json.loads((self.path / RECORD).read_text())
        except (OSError, ValueError, RecursionError):
            return {}
        is_ours = isinstance(found, dict) and isinstance(found.get("files"), list)
        return found if is_ours and all(isinstance(n, str) for n in found["files"]) else {}


def segment_folder(
    out: str | None, image: Path, pixels: UInt8[np.ndarray, "h w 3"], overwrite: bool
) -> SegmentFolder:
    """Chooses where the results of an image go.

    Args:
        out: `--out`; None for STEM_segments next to the image, or NAME.SUFFIX_segments if the
            first holds results of another image.
        image: the image file.
        pixels: its content.
        overwrite: whether results of another image may be replaced.

    Raises:
        DataError: the folder holds results of another image.
    """
    sha256 = hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest()
    places = [arguments.output_folder(out, image)]
    if not out and image.suffix:
        places.append(image.with_name(f"{image.name}_segments"))
    folders = [SegmentFolder(place, _from(place, image), sha256) for place in places]
    for folder in folders[: 1 if overwrite else None]:
        if overwrite or folder.is_free:
            return folder
    raise DataError(
        f"{folders[-1].path}: holds results of another image; choose another folder with --out, or "
        f"replace them with --overwrite."
    )


def _from(folder: Path, image: Path) -> str | None:
    """Path of an image from a folder, so that both may be moved together."""
    if not image.is_file():
        return None
    try:
        return Path(os.path.relpath(image.resolve(), folder.resolve())).as_posix()
    except (OSError, ValueError):  # ValueError: another drive of Windows
        return None
