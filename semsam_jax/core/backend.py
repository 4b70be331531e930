"""Which kind of device a program is written for.

A few places choose between equal programs by the kind of device: what gathers cost differs
by two orders of magnitude. That kind is the default backend, unless a program is compiled
ahead of time for a machine that is not there.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_TARGET: contextvars.ContextVar[str | None] = contextvars.ContextVar("target", default=None)


def target_backend() -> str:
    """Returns "cpu", "gpu" or "tpu": what the program that is traced now will run on."""
    return _TARGET.get() or jax.default_backend()


@contextlib.contextmanager
def compiling_for(backend: str) -> Iterator[None]:
    """Lets programs that are traced inside be written for `backend`."""
    token = _TARGET.set(backend)
    try:
        yield
    finally:
        _TARGET.reset(token)
