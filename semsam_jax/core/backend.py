"""The kind of device that a program is traced for.

Some operations choose an implementation by device: the cost of gathers differs by two orders of
magnitude. The device is that of the default backend, unless a program is compiled ahead of time for
another machine.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_TARGET: contextvars.ContextVar[tuple[str, str] | None] = contextvars.ContextVar(
    "target", default=None
)


def target_backend() -> str:
    """Returns the backend that is traced for: "cpu", "gpu", "tpu", or "onnx" for a file."""
    target = _TARGET.get()
    return target[0] if target else jax.default_backend()


def target_device_kind() -> str:
    """Returns the `jax.Device.device_kind` that is traced for, "" if unknown."""
    target = _TARGET.get()
    return target[1] if target else jax.devices()[0].device_kind


@contextlib.contextmanager
def compiling_for(backend: str, device_kind: str = "") -> Iterator[None]:
    """Inside the context, programs are traced for other devices.

    Args:
        backend: "cpu", "gpu", "tpu" or "onnx".
        device_kind: such as "TPU v5 lite"; "" assumes the smallest of the backend.
    """
    token = _TARGET.set((backend, device_kind))
    try:
        yield
    finally:
        _TARGET.reset(token)
