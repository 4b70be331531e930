"""Reads the tensors of a PyTorch checkpoint without PyTorch and without running it.

Reads both layouts of `torch.save`, the zip archive (PyTorch 1.6 and later) and the older stream of
pickles, and safetensors files. Arrays are read-only views of the bytes read, so memory stays near
the size of the file, whatever the file claims.
"""

import io
import logging
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from semsam_jax.convert.torch_pickle import (
    StorageRef,
    TensorRef,
    load_description,
)
from semsam_jax.core.console import hides_progress
from semsam_jax.core.errors import ConversionError
from semsam_jax.core.model_files import other_kind

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_MAX_PICKLE_BYTES = 1 << 26
_WRAPPERS = ("model", "state_dict")
_AVERAGED = ("model_ema", "ema_model", "ema", "ema_state_dict", "state_dict_ema", "ema_state")
_MAX_DEPTH = 4
_MAX_ENTRIES = 64
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    KeyError,
    IndexError,
    ValueError,
    OverflowError,
    NotImplementedError,
    RuntimeError,
)
_log = logging.getLogger(__name__)
_DTYPES: dict[str, np.dtype] = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype("<u2"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


def read_state_dict(path: str | os.PathLike, entry: str | None = None) -> dict[str, np.ndarray]:
    """Returns the named tensors of a `.pth` or `.safetensors` file; keys are as in the file.

    Wrappers of training tools are removed: of `{'model': {...}}` or `{'state_dict': {...}}` the
    other entries (iteration, optimiser, averaged weights) are not read; a file that holds only
    averaged weights (`ema`, `model_ema`, ...) gives those. bfloat16 becomes float32, every other
    element type stays. Tensors that share memory stay views of one buffer.

    Args:
        path: the file.
        entry: the entry to read instead, such as `model_ema` or `ema.module`.

    Raises:
        ConversionError: the file is missing, truncated, no checkpoint, inconsistent, has no such
            entry, or its pickle asks for anything but tensors.
    """
    file = Path(path)
    where = f"checkpoint {file}"
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            head = stream.read(9)
            stream.seek(0)
            if head[:2] == b"PK":
                return _read_zip(stream, size, where, entry)
            if head[8:] == b"{":
                return _read_safetensors(file, where, entry)
            return _read_legacy(stream, size, where, entry)
    except OSError as error:
        raise ConversionError(
            f"{where}: cannot be read ({error.strerror or error}); check the path."
        ) from error


def _read_safetensors(file: Path, where: str, entry: str | None) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if entry is not None:
        raise ConversionError(f"{where}: a safetensors file has no entries, such as {entry!r}.")
    try:
        arrays = load_file(file)
    # Unknown element types are a KeyError, and a damaged header may be any of these.
    except (SafetensorError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise ConversionError(
            f"{where}: a damaged safetensors file ({str(error)[:200]}); download or copy it again."
        ) from error
    if not arrays:
        raise ConversionError(f"{where}: holds no tensors, expected a state dict.")
    is_known = {key: array.dtype.kind in "biuf" for key, array in arrays.items()}
    return {k: v if is_known[k] else v.astype(np.float32) for k, v in arrays.items()}


def _read_zip(
    stream: io.BufferedReader, size: int, where: str, entry: str | None
) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(stream) as archive:
            return _read_archive(archive, size, where, entry)
    except _ZIP_ERRORS as error:
        # ConversionError is a RuntimeError: let our own messages through.
        if isinstance(error, ConversionError):
            raise
        raise ConversionError(
            f"{where}: damaged or truncated zip archive ({error}); download or copy it again."
        ) from error


def _read_archive(
    archive: zipfile.ZipFile, size: int, where: str, entry: str | None
) -> dict[str, np.ndarray]:
    records = {info.filename: info for info in archive.infolist()}
    packed = next((i.filename for i in records.values() if i.compress_type != 0), None)
    if packed is not None:
        raise ConversionError(
            f"{where}: record {packed!a} is compressed; PyTorch stores records uncompressed. "
            f"Unpack a downloaded .zip first and convert the .pth inside."
        )
    if sum(info.file_size for info in records.values()) > size:
        raise ConversionError(f"{where}: records claim more bytes than the file has ({size}).")
    pickles = [name for name in records if name.endswith("/data.pkl") or name == "data.pkl"]
    if len(pickles) != 1:
        raise ConversionError(
            f"{where}: a zip archive with {len(pickles)} data.pkl records, expected one; this is "
            f"not a file made by torch.save."
        )
    folder = pickles[0].removesuffix("data.pkl")
    order = archive.read(f"{folder}byteorder") if f"{folder}byteorder" in records else b"little"
    if order.strip() != b"little":
        raise ConversionError(f"{where}: byte order {order!a}, expected little-endian.")
    if records[pickles[0]].file_size > _MAX_PICKLE_BYTES:
        raise ConversionError(f"{where}: data.pkl is larger than {_MAX_PICKLE_BYTES} bytes.")
    tree = load_description(io.BytesIO(archive.read(pickles[0])), where)

    def read(storage: StorageRef) -> bytes:
        name = f"{folder}data/{storage.key}"
        if name not in records:
            raise ConversionError(f"{where}: record {name!a} is missing; the file is damaged.")
        _check_bytes(storage, records[name].file_size, where)
        return archive.read(name)

    return _materialise(tree, read, where, entry)


def _read_legacy(
    stream: io.BufferedReader, size: int, where: str, entry: str | None
) -> dict[str, np.ndarray]:
    not_ours = f"{where}: not a PyTorch checkpoint (neither a zip archive nor torch's older format)"
    # A bounded copy, so that a damaged length field cannot reserve memory.
    front = io.BytesIO(stream.read(min(size, _MAX_PICKLE_BYTES)))
    if front.read(14) != b"\x80\x02\x8a\x0a" + _LEGACY_MAGIC.to_bytes(10, "little"):
        repair = other_kind(front.getvalue()[:64]) or "give the .pth file itself"
        raise ConversionError(f"{not_ours}; {repair}.")
    front.seek(0)
    magic, protocol, system, tree, keys = (load_description(front, where) for _ in range(5))
    if magic != _LEGACY_MAGIC or protocol != _LEGACY_PROTOCOL or not isinstance(system, dict):
        raise ConversionError(f"{not_ours}; give the .pth file itself.")
    if system.get("little_endian") is not True:
        raise ConversionError(f"{where}: big-endian checkpoint, expected little-endian.")
    storages = {ref.key: ref for ref in _storages(tree)}
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ConversionError(f"{where}: the list of storages is damaged.")
    offsets: dict[str, int] = {}
    position = front.tell()
    for key in keys:
        if key not in storages or key in offsets:
            raise ConversionError(f"{where}: storage {key!a} has no tensor, or comes twice.")
        stream.seek(position)
        header = stream.read(8)
        numel = int.from_bytes(header, "little")
        nbytes = numel * _DTYPES[storages[key].kind].itemsize
        if len(header) < 8 or position + 8 + nbytes > size:
            raise ConversionError(
                f"{where}: truncated: storage {key!a} ends at byte {position + 8 + nbytes}, the "
                f"file has {size}; download or copy it again."
            )
        _check_bytes(storages[key], nbytes, where)
        offsets[key] = position + 8
        position += 8 + nbytes

    def read(storage: StorageRef) -> bytes:
        if storage.key not in offsets:
            raise ConversionError(f"{where}: storage {storage.key!a} is missing; file damaged.")
        stream.seek(offsets[storage.key])
        return stream.read(storage.numel * _DTYPES[storage.kind].itemsize)

    return _materialise(tree, read, where, entry)


def _storages(tree: object) -> list[StorageRef]:
    """All storages below `tree`; visits every container once, so cycles are harmless."""
    found, seen, todo = [], set(), [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, TensorRef):
            found.append(node.storage)
        elif isinstance(node, StorageRef):
            found.append(node)
        elif isinstance(node, dict | list | tuple) and id(node) not in seen:
            seen.add(id(node))
            todo.extend(node.values() if isinstance(node, dict) else node)
    return found


def _check_bytes(storage: StorageRef, nbytes: int, where: str) -> None:
    wanted = storage.numel * _DTYPES[storage.kind].itemsize
    if nbytes != wanted:
        raise ConversionError(
            f"{where}: storage {storage.key!a} has {nbytes} bytes, its tensors claim {wanted}; "
            f"the file is damaged."
        )


def _state_of(tree: object, where: str, entry: str | None) -> dict:
    """The dict of tensors in a file, without its wrappers."""
    if not isinstance(tree, dict):
        raise ConversionError(
            f"{where}: holds a {type(tree).__name__}, expected a state dict (names to tensors)."
        )
    for name in [] if entry is None else entry.split("."):
        if not isinstance(tree.get(name), dict):
            known = ", ".join(_entries(tree)) or "none"
            raise ConversionError(f"{where}: no entry {entry!r}; entries with weights: {known}.")
        tree = tree[name]
    for _ in range(_MAX_DEPTH):
        wrapper = next((name for name in _WRAPPERS if isinstance(tree.get(name), dict)), None)
        if wrapper is None and not _has_tensors(tree):
            averaged = [name for name in _AVERAGED if _has_weights(tree.get(name))]
            others = _entries(tree)
            wrapper = averaged[0] if averaged else others[0] if len(others) == 1 else None
            if wrapper is None and others:
                raise ConversionError(
                    f"{where}: holds several sets of weights: {', '.join(others)}; choose one "
                    f"with --entry."
                )
        if wrapper is None:
            break
        averaged = [name for name in _AVERAGED if name != wrapper and _has_weights(tree.get(name))]
        if averaged and entry is None:
            _log.warning(
                "%s: uses the entry %r; for the averaged weights use --entry %s",
                *(where, wrapper, averaged[0]),
            )
        tree = tree[wrapper]
    return tree


def _has_tensors(tree: dict) -> bool:
    return any(isinstance(value, TensorRef) for value in tree.values())


def _has_weights(value: object) -> bool:
    """Whether named tensors are in a dict, or in dicts in it."""
    level = [value]
    for _ in range(_MAX_DEPTH):
        level = [one for one in level if isinstance(one, dict)]
        if any(_has_tensors(one) and all(isinstance(k, str) for k in one) for one in level):
            return True
        level = [inner for one in level for inner in list(one.values())[:_MAX_ENTRIES]]
    return False


def _entries(tree: dict) -> list[str]:
    return [
        name
        for name, value in tree.items()
        if isinstance(name, str) and "optim" not in name and _has_weights(value)
    ]


def _materialise(
    tree: object, read: Callable[[StorageRef], bytes], where: str, entry: str | None
) -> dict[str, np.ndarray]:
    tree = _state_of(tree, where, entry)
    buffers: dict[str, tuple[StorageRef, np.ndarray]] = {}
    state: dict[str, np.ndarray] = {}
    items = tqdm(tree.items(), "reading", unit=" tensors", disable=hides_progress(), leave=False)
    for key, tensor in items:
        if not isinstance(tensor, TensorRef):
            continue
        if not isinstance(key, str) or not key.isprintable():
            raise ConversionError(f"{where}: {key!a} is not the name of a tensor.")
        storage = tensor.storage
        if storage.key not in buffers:
            buffers[storage.key] = storage, _elements(read(storage), storage.kind)
        elif buffers[storage.key][0] != storage:
            raise ConversionError(f"{where}: storage {storage.key!a} is described in two ways.")
        state[key] = _view(buffers[storage.key][1], tensor, f"{where}: tensor {key!a}")
    if not state:
        raise ConversionError(f"{where}: holds no tensors, expected a state dict.")
    return state


def _view(buffer: np.ndarray, tensor: TensorRef, where: str) -> np.ndarray:
    count = 1
    for n in tensor.shape:
        count *= n
    spans = zip(tensor.shape, tensor.strides, strict=True)
    last = tensor.offset + sum((n - 1) * stride for n, stride in spans)
    if count and (last >= buffer.size or count > buffer.size):
        raise ConversionError(
            f"{where} claims {count} elements up to position {last}, its storage has "
            f"{buffer.size}; the file is damaged."
        )
    if not count:
        if any(n > 1 << 20 for n in tensor.shape) or len(tensor.shape) > 3:
            raise ConversionError(f"{where} has the impossible shape {tensor.shape}.")
        return np.zeros(tensor.shape, buffer.dtype)
    strides = tuple(
        stride * buffer.itemsize if n > 1 else 0
        for n, stride in zip(tensor.shape, tensor.strides, strict=True)
    )
    start = buffer[tensor.offset :]
    return np.lib.stride_tricks.as_strided(start, tensor.shape, strides, writeable=False)


def _elements(data: bytes, kind: str) -> np.ndarray:
    elements = np.frombuffer(data, _DTYPES[kind])
    if kind == "BFloat16Storage":
        return (elements.astype(np.uint32) << 16).view(np.float32)
    return elements
