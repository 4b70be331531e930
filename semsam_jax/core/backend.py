"""The kind of device that a program is traced for.

A few places choose between equal programs by the kind of device: what gathers cost differs
by two orders of magnitude. That kind is the default backend, unless a program is compiled
ahead of time for a machine that is not there.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_TARGET: contextvars.ContextVar[tuple[str, str] | None] = contextvars.ContextVar(
    "target", default=None
)


def target_backend() -> str:
    """Returns "cpu", "gpu" or "tpu": what the program that is traced now will run on."""
    target = _TARGET.get()
    return target[0] if target else jax.default_backend()


def target_device_kind() -> str:
    """Returns the `jax.Device.device_kind` that the program will run on, "" if unknown."""
    target = _TARGET.get()
    return target[1] if target else jax.devices()[0].device_kind


@contextlib.contextmanager
def compiling_for(backend: str, device_kind: str = "") -> Iterator[None]:
    """Lets programs that are traced inside be written for other devices.

    Args:
        backend: "cpu", "gpu" or "tpu".
        device_kind: such as "TPU v5 lite"; "" for the most modest of the backend.
    """
    token = _TARGET.set((backend, device_kind))
    try:
        yield
    finally:
        _TARGET.reset(token)
