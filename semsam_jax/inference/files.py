"""Result files: records and pictures, each of which appears whole or not at all."""

import contextlib
import io
import json
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from semsam_jax.core.errors import DataError

_EXIF_ORIENTATION = 0x0112
_OLD_SEC = 3600.0


class OutputError(DataError):
    """A result cannot be written: no fault of the image, the next one would fail, too."""


def write_json(path: Path, content: object) -> None:
    """Writes JSON to a temporary file and renames it; DataError for NaN or infinity in it."""
    try:
        text = json.dumps(content, allow_nan=False)
    except ValueError as error:
        raise DataError(
            f"{path}: not written, because a result is NaN or infinite; the weights of the "
            f"checkpoint are damaged, or --dtype bfloat16 is too coarse for them."
        ) from error
    write_text(path, text)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text to a temporary file and renames it."""
    write_bytes(path, text.encode("utf-8"))


def write_picture(path: Path, picture: UInt8[np.ndarray, "h w 3"]) -> None:
    """Writes an image (format by suffix) to a temporary file and renames it.

    PNG is packed at level 3: a third of the time of the default, for a tenth more bytes.
    """
    options = {"quality": 92, "compress_level": 3}
    _write(path, lambda partial: Image.fromarray(picture).save(partial, **options))


def jpeg_copy(source: Path, pixels: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """A JPEG file whose stored pixels are the displayed ones.

    A plain JPEG stays as it is, anything else is encoded again.

    Args:
        source: the file as the user gave it.
        pixels: the image as displayed.
    """
    is_plain = False
    with contextlib.suppress(UnidentifiedImageError), Image.open(source, formats=["JPEG"]) as image:
        is_plain = image.format == "JPEG" and image.mode in ("RGB", "L")
        is_plain = is_plain and image.getexif().get(_EXIF_ORIENTATION, 1) == 1
    if is_plain:
        return source.read_bytes()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a temporary file and renames it.

    It is never a link to the user's own file, which may be changed later: masks belong to these
    pixels.
    """
    _write(path, lambda partial: partial.write_bytes(content))


def write_segment_map(path: Path, segment_map: np.ndarray) -> None:
    """Writes segment ids as COCO panoptic PNG: id = R + 256 G + 65536 B."""
    ids = segment_map.astype(np.int64)
    write_picture(path, np.stack([ids >> s & 255 for s in (0, 8, 16)], -1).astype(np.uint8))


def write_label_map(path: Path, label_map: np.ndarray) -> None:
    """Writes the numbers of masks, [h, w], as a grey PNG of 16 bits."""
    if label_map.max(initial=0) > np.iinfo(np.uint16).max:
        raise OutputError(f"{path}: a label map holds at most 65535 masks; got {label_map.max()}.")
    picture = Image.fromarray(label_map.astype(np.uint16))
    _write(path, lambda partial: picture.save(partial, compress_level=3))


def make_folder(path: Path) -> Path:
    """Creates the output folder; OutputError if that is impossible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        detail = getattr(error, "strerror", None) or error
        raise OutputError(f"{path}: cannot make this folder ({detail}); choose another.") from error
    return path


def _write(path: Path, write: Callable[[Path], object]) -> None:
    # Two commands may write one file: neither may move what the other has half written.
    partial = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}.partial{path.suffix}")
    try:
        write(partial)
        os.replace(partial, path)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({error.strerror or error}); check the folder and the "
            f"free space."
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def remove_partial(folder: Path) -> None:
    """Removes half-written files of commands that were killed an hour ago or earlier."""
    for left in folder.glob(".*.partial.*"):
        with contextlib.suppress(OSError):  # another command may remove it, too
            if time.time() - left.stat().st_mtime > _OLD_SEC:
                left.unlink()
