"""Memory of the process: what the C library keeps of it for later, and what it gives back."""

import ctypes
import os
import sys
from collections.abc import Callable

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_LARGEST = 2**31 - 1


def keep_freed_memory() -> None:
    """Lets glibc reuse the memory of large arrays instead of mapping new pages for each.

    A step of training and a tile of a large image allocate and free the same arrays again and
    again. By default each is mapped anew and cleared page by page, which takes up to a fifth of
    all CPU time, and every thread of a computation keeps a heap of its own (docs/benchmarks.md,
    "Memory allocation"). Has no effect without glibc, or if a variable `MALLOC_*` or
    `GLIBC_TUNABLES` is set, which then decides. Must be called before threads start.
    """
    if "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ):
        return
    set_option = _function("mallopt")
    if set_option is not None:
        for option, value in (
            (_ARENA_MAX, 1),
            (_MMAP_THRESHOLD, _LARGEST),
            (_TRIM_THRESHOLD, _LARGEST),
        ):
            set_option(option, value)


def return_freed_memory() -> None:
    """Gives freed memory back to the system, where the C library can be asked to (glibc).

    Compiling a network leaves half a gigabyte of small pieces that glibc would keep for later, and
    images that a server has forgotten leave theirs.
    """
    trim = _function("malloc_trim")
    if trim is not None:
        trim(0)


def _function(name: str) -> Callable[..., int] | None:
    """A function of the C library; None where it has none of that name."""
    if sys.platform != "linux":
        return None
    return getattr(ctypes.CDLL(None), name, None)
