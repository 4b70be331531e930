"""A pickle machine that can only build tensors' descriptions.

PyTorch stores the names and shapes of tensors as a pickle. A pickle is a program; the
standard interpreter runs it. This one knows the few instructions and the few globals
that tensors need, has no way to import or to call anything else, and copies no more
than the file itself holds. Source of the layout: PyTorch's serialisation notes.
"""

import io
import pickletools
import struct
from collections.abc import Callable
from dataclasses import dataclass

from semsam_jax.core.errors import ConversionError

MAX_STEPS = 4_000_000  # a Swin-L training checkpoint with optimiser state needs about 100,000
_INT64_MAX = 2**63 - 1


@dataclass(frozen=True)
class StorageRef:
    """A run of elements in the file: `key` names it, `kind` is torch's storage type name."""

    key: str
    kind: str
    numel: int


@dataclass(frozen=True)
class TensorRef:
    """A strided view of a storage; offset and strides count elements."""

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class _Global:
    """A name that the pickle mentioned; it stands for itself and does nothing."""

    module: str
    name: str


class _Mark:
    """Marks the start of a run of values on the stack."""


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


def load_description(stream: io.BytesIO, where: str) -> object:
    """Runs one pickle and leaves the stream just behind it.

    Args:
        stream: positioned at the pickle; in memory, so that a damaged length costs nothing.
        where: how error messages call the file.

    Returns:
        Nested dicts, lists, tuples, numbers, strings and `TensorRef`s.

    Raises:
        ConversionError: the pickle is damaged or asks for something that tensors don't need.
    """
    machine = _Machine(where)
    try:
        for number, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if number >= MAX_STEPS:
                raise ConversionError(f"{where}: pickle longer than {MAX_STEPS} instructions.")
            if opcode.name == "STOP":
                return machine.pop()
            machine.step(opcode.name, argument)
    except (ValueError, IndexError, KeyError, OverflowError, struct.error) as error:
        raise ConversionError(
            f"{where}: the pickle inside is damaged ({type(error).__name__}: {error}); "
            f"download or copy the file again."
        ) from error
    raise ConversionError(f"{where}: the pickle inside has no end; the file is truncated.")


class _Machine:
    def __init__(self, where: str):
        self._where = where
        self._stack: list = []
        self._memo: dict[int, object] = {}
        self._budget = MAX_STEPS

    def step(self, name: str, argument: object) -> None:
        if name in _PUSH_ARGUMENT:
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name]())
        elif name in _MEMO_PUT:
            self._memo[len(self._memo) if name == "MEMOIZE" else int(argument)] = self._top()
        elif name in _MEMO_GET:
            self._stack.append(self._memo[int(argument)])
        elif name in _HANDLERS:
            _HANDLERS[name](self, argument)
        elif name not in ("PROTO", "FRAME"):
            raise ConversionError(
                f"{self._where}: the pickle uses the instruction {name}, which tensors do not "
                f"need; only weights (a state dict) can be converted."
            )

    def pop(self) -> object:
        value = self._top()
        self._stack.pop()
        return value

    def _top(self) -> object:
        if not self._stack or isinstance(self._stack[-1], _Mark):
            raise IndexError("stack is empty")
        return self._stack[-1]

    def _pop_to_mark(self) -> list:
        values: list = []
        while not isinstance(self._stack[-1], _Mark):
            values.append(self._stack.pop())
        self._stack.pop()
        values.reverse()
        return values

    def _fail(self, problem: str) -> ConversionError:
        return ConversionError(f"{self._where}: {problem}.")

    # Instructions. Each takes the instruction's argument, used or not.

    def _tuple(self, count: int) -> None:
        values = [self.pop() for _ in range(count)]
        self._stack.append(tuple(reversed(values)))

    def _append(self, values: list) -> None:
        target = self._top()
        if not isinstance(target, list):
            raise ValueError("append to something that is no list")
        target.extend(values)

    def _set_items(self, values: list) -> None:
        target = self._top()
        if not isinstance(target, dict) or len(values) % 2:
            raise ValueError("items set on something that is no dict")
        for key, value in zip(values[::2], values[1::2], strict=True):
            # Deeply nested tuples as keys would overflow the C stack when hashed.
            if type(key) not in (str, int):
                raise ValueError(f"a dict key of type {type(key).__name__}")
            target[key] = value

    def _set_one(self) -> None:
        value, key = self.pop(), self.pop()
        self._set_items([key, value])

    def _dict(self) -> None:
        values = self._pop_to_mark()
        self._stack.append({})
        self._set_items(values)

    def _global(self, module: object, name: object) -> None:
        if (
            not isinstance(module, str)
            or not isinstance(name, str)
            or (
                (module, name) not in _CALLABLES
                and not (module == "torch" and name in STORAGE_KINDS)
            )
        ):
            raise ConversionError(
                f"{self._where}: the pickle asks for {ascii(module)[1:-1]}.{ascii(name)[1:-1]}, "
                f"which tensors do not need. It was not executed. Save only the weights "
                f"(a state dict) and convert that file."
            )
        self._stack.append(_Global(module, name))

    def _stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        self._global(module, name)

    def _reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            raise ValueError("a call of something that is no function")
        call = _CALLABLES.get((function.module, function.name))
        if call is None:
            raise ValueError(f"a call of {function.module}.{function.name}")
        self._stack.append(call(self, *arguments[:8]))

    def _build(self) -> None:
        # State dicts carry a `_metadata` attribute of module versions; weights don't need it.
        self.pop()
        if not isinstance(self._top(), dict):
            raise ValueError("attributes set on something that is no dict")

    def _persistent(self) -> None:
        pid = self.pop()
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
            raise ValueError("a reference that is no storage")
        kind, key, numel = pid[1], pid[2], pid[4]
        if not isinstance(kind, _Global) or kind.name not in STORAGE_KINDS:
            raise ValueError("a storage without a type")
        if len(pid) == 6 and pid[5] is not None:
            raise self._fail("holds a view of a storage (a file older than PyTorch 0.4)")
        if not isinstance(key, str) or not _is_count(numel):
            raise ValueError("a storage without a name or a size")
        self._stack.append(StorageRef(key, kind.name, numel))

    # What the allowed globals mean.

    def _rebuild_tensor(self, *arguments: object) -> TensorRef:
        if len(arguments) < 4:
            raise ValueError("a tensor without storage, offset, shape and strides")
        storage, offset, shape, strides = arguments[:4]
        if (
            not isinstance(storage, StorageRef)
            or not _is_count(offset)
            or not isinstance(shape, tuple)
            or not isinstance(strides, tuple)
            or len(shape) != len(strides)
            or len(shape) > 16
            or not all(_is_count(n) for n in (*shape, *strides))
        ):
            raise ValueError("a tensor with an impossible offset, shape or stride")
        return TensorRef(storage, offset, shape, strides)

    def _rebuild_parameter(self, *arguments: object) -> TensorRef:
        if not arguments or not isinstance(arguments[0], TensorRef):
            raise ValueError("a parameter without a tensor")
        return arguments[0]

    def _ordered_dict(self, *arguments: object) -> dict:
        if not arguments:
            return {}
        pairs = arguments[0]
        if not isinstance(pairs, list | tuple):
            raise ValueError("an ordered dict of something that is no list")
        self._budget -= len(pairs)
        if self._budget < 0:
            raise self._fail("the pickle repeats itself without end")
        result: dict = {}
        self._stack.append(result)
        for pair in pairs:
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                raise ValueError("an ordered dict of something that are no pairs")
            self._set_items(list(pair))
        self._stack.pop()
        return result

    def _size(self, *arguments: object) -> tuple:
        if len(arguments) != 1 or not isinstance(arguments[0], tuple):
            raise ValueError("a torch.Size of something that is no tuple")
        return arguments[0]


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= _INT64_MAX


_CALLABLES: dict[tuple[str, str], Callable] = {
    ("collections", "OrderedDict"): _Machine._ordered_dict,
    ("torch._utils", "_rebuild_tensor"): _Machine._rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _Machine._rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _Machine._rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _Machine._rebuild_parameter,
    ("torch", "Size"): _Machine._size,
}

_NUMBERS = ("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "BINFLOAT", "FLOAT")
_STRINGS = (
    "UNICODE",
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE8",
    "STRING",
    "BINSTRING",
    "SHORT_BINSTRING",
    "SHORT_BINBYTES",
    "BINBYTES",
    "BINBYTES8",
)
_PUSH_ARGUMENT = frozenset((*_NUMBERS, *_STRINGS))
_CONSTANTS: dict[str, Callable[[], object]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "MARK": _Mark,
}
_MEMO_PUT = frozenset(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"))
_MEMO_GET = frozenset(("GET", "BINGET", "LONG_BINGET"))
_HANDLERS: dict[str, Callable[[_Machine, object], None]] = {
    "POP": lambda m, _: m._stack.pop(),
    "POP_MARK": lambda m, _: m._pop_to_mark(),
    "DUP": lambda m, _: m._stack.append(m._top()),
    "TUPLE1": lambda m, _: m._tuple(1),
    "TUPLE2": lambda m, _: m._tuple(2),
    "TUPLE3": lambda m, _: m._tuple(3),
    "TUPLE": lambda m, _: m._stack.append(tuple(m._pop_to_mark())),
    "LIST": lambda m, _: m._stack.append(m._pop_to_mark()),
    "DICT": lambda m, _: m._dict(),
    "APPEND": lambda m, _: m._append([m.pop()]),
    "APPENDS": lambda m, _: m._append(m._pop_to_mark()),
    "SETITEM": lambda m, _: m._set_one(),
    "SETITEMS": lambda m, _: m._set_items(m._pop_to_mark()),
    "GLOBAL": lambda m, a: m._global(*str(a).split(" ", 1)),
    "STACK_GLOBAL": lambda m, _: m._stack_global(),
    "REDUCE": lambda m, _: m._reduce(),
    "BUILD": lambda m, _: m._build(),
    "BINPERSID": lambda m, _: m._persistent(),
}
