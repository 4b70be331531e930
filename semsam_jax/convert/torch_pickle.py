"""Reads descriptions of tensors from an untrusted pickle.

PyTorch stores the names and shapes of tensors as a pickle, and a pickle is a program. Python's
documentation ("Restricting Globals") says how to restrict it: a `find_class` that knows the few
globals that tensors need and refuses all others. The instructions are checked before anything is
run, so that none can claim memory or nest without bound. Source of the layout: PyTorch's
serialisation notes.
"""

import io
import pickle
import pickletools
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from semsam_jax.core.errors import ConversionError

MAX_STEPS = 4_000_000  # a Swin-L training checkpoint with optimiser state needs about 100,000
_MAX_TUPLES = 60_000  # four for each tensor; hashing tuples nested more deeply overflows the stack
_INT64_MAX = 2**63 - 1


class StorageRef(NamedTuple):
    """A run of elements in the file: `key` names it, `kind` is torch's storage type name."""

    key: str
    kind: str
    numel: int


class TensorRef(NamedTuple):
    """A strided view of a storage; offset and strides count elements."""

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


STORAGE_KINDS = (
    "DoubleStorage",
    "FloatStorage",
    "HalfStorage",
    "BFloat16Storage",
    "LongStorage",
    "IntStorage",
    "ShortStorage",
    "CharStorage",
    "ByteStorage",
    "BoolStorage",
)
_INSTRUCTIONS = """
    PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE
    BININT BININT1 BININT2 INT LONG LONG1 LONG4 BINFLOAT FLOAT
    UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 STRING BINSTRING SHORT_BINSTRING
    SHORT_BINBYTES BINBYTES BINBYTES8 EMPTY_DICT DICT SETITEM SETITEMS
    EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3
    PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET
    GLOBAL STACK_GLOBAL REDUCE BUILD BINPERSID"""


def load_description(stream: io.BytesIO, where: str) -> object:
    """Runs one pickle and leaves the stream at its end.

    Args:
        stream: positioned at the pickle; in memory, so that a damaged length costs nothing.
        where: name of the file in messages.

    Returns:
        Nested dicts, lists, tuples, numbers, strings and `TensorRef`s.

    Raises:
        ConversionError: the pickle is damaged or asks for something that tensors don't need.
    """
    start = stream.tell()
    try:
        _check_instructions(stream, where)
        end = stream.tell()
        stream.seek(start)
        description = _Unpickler(stream, where).load()
        stream.seek(end)
    except ConversionError:
        raise
    # "Other exceptions may also be raised during unpickling", says its documentation.
    except Exception as error:
        raise ConversionError(
            f"{where}: the pickle inside is damaged or truncated ({type(error).__name__}: "
            f"{str(error)[:200]}); download or copy the file again."
        ) from error
    return description


def _check_instructions(stream: io.BytesIO, where: str) -> None:
    allowed, num_tuples = frozenset(_INSTRUCTIONS.split()), 0
    for number, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if number >= MAX_STEPS:
            raise ConversionError(f"{where}: pickle longer than {MAX_STEPS} instructions.")
        if opcode.name not in allowed:
            raise ConversionError(
                f"{where}: the pickle uses the instruction {opcode.name}, which tensors do not "
                f"need; only weights (a state dict) can be converted."
            )
        if opcode.name.endswith("PUT") and int(argument) > number:
            raise ValueError("a memo index that is too large")
        num_tuples += opcode.name.startswith("TUPLE")
        if num_tuples > _MAX_TUPLES:
            raise ConversionError(f"{where}: the pickle has more than {_MAX_TUPLES} tuples.")


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, where: str):
        super().__init__(stream, encoding="latin-1")
        self._where = where
        self._budget = MAX_STEPS

    def find_class(self, module: str, name: str) -> object:
        """Returns the stand-in of an allowed global; nothing is imported."""
        if module == "torch" and name in STORAGE_KINDS:
            return _StorageKind(name)
        if (module, name) == ("collections", "OrderedDict"):
            return _Function(self._ordered_dict)
        if (module, name) in _FUNCTIONS:
            return _Function(_FUNCTIONS[module, name])
        raise ConversionError(
            f"{self._where}: the pickle asks for {ascii(module)[1:-1]}.{ascii(name)[1:-1]}, which "
            f"tensors do not need. It was not executed. Save only the weights (a state dict) and "
            f"convert that file."
        )

    def persistent_load(self, pid: object) -> StorageRef:
        """Returns the storage that a reference names."""
        if type(pid) is not tuple or len(pid) not in (5, 6) or pid[0] != "storage":
            raise ValueError("a reference that is no storage")
        kind, key, numel = pid[1], pid[2], pid[4]
        if not isinstance(kind, _StorageKind):
            raise ValueError("a storage without a type")
        if len(pid) == 6 and pid[5] is not None:
            raise ConversionError(
                f"{self._where}: holds a view of a storage (a file older than PyTorch 0.4)."
            )
        if not isinstance(key, str) or not _is_count(numel):
            raise ValueError("a storage without a name or a size")
        return StorageRef(key, kind.name, numel)

    def _ordered_dict(self, pairs: object = ()) -> "_Names":
        if not isinstance(pairs, list | tuple):
            raise ValueError("an ordered dict of something that is no list")
        # A list that is stored once can be referenced many times.
        self._budget -= len(pairs)
        if self._budget < 0:
            raise ConversionError(f"{self._where}: the pickle repeats itself without end.")
        return _Names(pairs)


class _Names(dict):
    """A state dict; its attribute of module versions is ignored."""

    def __setstate__(self, state: object) -> None:
        del state


class _StorageKind(NamedTuple):
    name: str


class _Function:
    """A function that a pickle may call but not modify."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., object]):
        self._call = call

    def __call__(self, *arguments: object) -> object:
        return self._call(*arguments)

    def __setstate__(self, state: object) -> NoReturn:
        raise ValueError("attributes set on a function")


def _rebuild_tensor(
    storage: object, offset: object, shape: object, strides: object, *others: object
) -> TensorRef:
    del others  # whether it has a gradient, hooks
    if (
        not isinstance(storage, StorageRef)
        or not _is_count(offset)
        or type(shape) is not tuple
        or type(strides) is not tuple
        or len(shape) != len(strides)
        or len(shape) > 16
        or not all(_is_count(n) for n in (*shape, *strides))
    ):
        raise ValueError("a tensor with an impossible offset, shape or stride")
    return TensorRef(storage, offset, shape, strides)


def _rebuild_parameter(tensor: object, *others: object) -> TensorRef:
    del others
    if not isinstance(tensor, TensorRef):
        raise ValueError("a parameter without a tensor")
    return tensor


def _size(shape: object) -> tuple:
    if type(shape) is not tuple:
        raise ValueError("a torch.Size of something that is no tuple")
    return shape


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= _INT64_MAX


_FUNCTIONS: dict[tuple[str, str], Callable[..., object]] = {
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    ("torch", "Size"): _size,
}
