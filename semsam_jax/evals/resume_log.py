"""Resume log: finished images on disk, so that an interrupted evaluation can resume.

One file per process, appended image by image. A record is the image's position in the
dataset, the length and the CRC-32 of its bytes, and the bytes (MessagePack, `Evaluator.state`);
a record that was cut off by a crash is noticed and dropped.
"""

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

from flax import serialization

from semsam_jax.core.errors import DataError

_HEAD = struct.Struct("<qqI")


class ResumeLog:
    """Records of one measurement with one context.

    Args:
        folder: where the files lie.
        name: of the measurement.
        settings: everything that the numbers depend on; records of other settings under the
            same name are removed.
        process: number of this process; all processes that see the folder share what they
            find there.

    Raises:
        DataError: the folder cannot be written.
    """

    def __init__(self, folder: Path, name: str, settings: Mapping, process: int = 0):
        text = json.dumps(settings, sort_keys=True, default=str)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        self._folder, self._name, self._pattern = folder, name, f"{name}.{digest}.*.part"
        self._file = folder / f"{name}.{digest}.{process}.part"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for file in set(folder.glob(f"{name}.*.part")) - set(folder.glob(self._pattern)):
                file.unlink(missing_ok=True)
            _cut_damaged_end(self._file)
            self._stream = self._file.open("ab")
        except OSError as error:
            raise DataError(
                f"{folder}: progress cannot be written ({error.strerror or error}); choose "
                f"another --out."
            ) from error

    def finished(self) -> dict[int, dict]:
        """States by position of all images that some process has finished."""
        found = {}
        for file in sorted(self._folder.glob(self._pattern)):
            for position, payload, _ in _records(file):
                found[position] = serialization.msgpack_restore(payload)
        return found

    def write(self, position: int, state: Mapping) -> None:
        """Appends one image."""
        payload = serialization.msgpack_serialize(dict(state))
        self._stream.write(_HEAD.pack(position, len(payload), zlib.crc32(payload)) + payload)
        self._stream.flush()

    def close(self) -> None:
        """Closes the file; the records stay for the next run."""
        self._stream.close()

    def remove(self) -> None:
        """Deletes the records; called when the result is complete."""
        self._stream.close()
        for file in self._folder.glob(self._pattern):
            file.unlink(missing_ok=True)


def _records(file: Path):
    """Yields (position, bytes, end of the record in the file) up to the first damage."""
    with file.open("rb") as stream:
        while len(head := stream.read(_HEAD.size)) == _HEAD.size:
            position, length, checksum = _HEAD.unpack(head)
            payload = stream.read(length) if length >= 0 else b""
            if len(payload) != length or zlib.crc32(payload) != checksum:
                return
            yield position, payload, stream.tell()


def _cut_damaged_end(file: Path) -> None:
    if file.exists():
        end = max((end for _, _, end in _records(file)), default=0)
        os.truncate(file, end)
