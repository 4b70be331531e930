"""Writes a checkpoint that PyTorch can load, without PyTorch.

The file is the zip layout of `torch.save`: a pickle that describes the tensors, and one
uncompressed record per storage. Names that share a tensor share its storage.
"""

import os
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from semsam_jax.core.errors import ConversionError

_KINDS = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}
_FIXED_DATE = (1980, 1, 1, 0, 0, 0)  # so that equal weights give equal files


def write_state_dict(
    path: str | os.PathLike,
    state: Mapping[str, np.ndarray],
    *,
    aliases: Mapping[str, str] | None = None,
    wrapper: str | None = None,
) -> None:
    """Writes named arrays as a `.pth` file that `torch.load` reads.

    Args:
        path: file to write; it is written atomically.
        state: names to arrays, in the order of the file.
        aliases: further names to names in `state` whose tensor they share.
        wrapper: name of a dict around the names, such as "model".

    Raises:
        ConversionError: an element type that PyTorch lacks, or the disk refused.
    """
    file = Path(path)
    arrays = {name: np.asarray(value) for name, value in state.items()}
    for name, array in arrays.items():
        if array.dtype.name not in _KINDS:
            raise ConversionError(
                f"checkpoint {file}: {name}: element type {array.dtype}, expected one of "
                f"{', '.join(_KINDS)}; cast it first."
            )
    partial = file.with_name(f".{file.name}.partial")
    folder = file.stem.replace("/", "_") or "archive"
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
            _put(archive, f"{folder}/data.pkl", _describe(arrays, aliases or {}, wrapper))
            _put(archive, f"{folder}/byteorder", b"little")
            for number, array in enumerate(arrays.values()):
                little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
                _put(archive, f"{folder}/data/{number}", little.reshape(-1).view(np.uint8).data)
            _put(archive, f"{folder}/version", b"3\n")
        os.replace(partial, file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ConversionError(
            f"checkpoint {file}: cannot be written ({error.strerror or error}); check the folder, "
            f"its permissions and the free space."
        ) from error


def _put(archive: zipfile.ZipFile, name: str, data: bytes | memoryview) -> None:
    archive.writestr(zipfile.ZipInfo(name, _FIXED_DATE), data)


def _describe(
    arrays: Mapping[str, np.ndarray], aliases: Mapping[str, str], wrapper: str | None
) -> bytes:
    numbers = {name: number for number, name in enumerate(arrays)}
    names = [(name, name) for name in arrays] + list(aliases.items())
    items = b"".join(
        _text(name) + _tensor(arrays[source], numbers[source]) for name, source in names
    )
    described = _ORDERED_DICT + b"(" + items + b"u"
    if wrapper is not None:
        described = b"}" + _text(wrapper) + described + b"s"
    return b"\x80\x02" + described + b"."


# The instructions of pickle protocol 2 that a tensor needs.
_ORDERED_DICT = b"ccollections\nOrderedDict\n)R"


def _tensor(array: np.ndarray, number: int) -> bytes:
    kind = _KINDS[array.dtype.name]
    strides = [1] * array.ndim
    for axis in range(array.ndim - 2, -1, -1):
        strides[axis] = strides[axis + 1] * max(array.shape[axis + 1], 1)
    storage = (
        b"("
        + _text("storage")
        + f"ctorch\n{kind}\n".encode()
        + _text(str(number))
        + _text("cpu")
        + _integer(array.size)
        + b"tQ"
    )
    view = _integer(0) + _integers(array.shape) + _integers(tuple(strides))
    requires_grad, hooks = b"\x89", _ORDERED_DICT
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + view + requires_grad + hooks + b"tR"


def _integers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(_integer(value) for value in values) + b"t"


def _integer(value: int) -> bytes:
    if value < 2**31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)


def _text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data
