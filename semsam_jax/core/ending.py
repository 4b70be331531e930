"""Clean exits: commands end with the right exit code at any moment, also on Ctrl-C, and do not
crash.

Interpreter shutdown can crash while threads of the accelerator compute, and a KeyboardInterrupt can
be lost in a destructor. An interrupted command therefore runs its `finally` blocks, flushes its
output, and exits without interpreter shutdown.
"""

import contextlib
import gc
import io
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from semsam_jax.core.host_memory import keep_freed_memory

INTERRUPTED = 130
_AGAIN_SEC = 0.05
_OBJECTS_UNTIL_COLLECTION = 20_000


class _Interrupts:
    """Turns the first SIGINT into a KeyboardInterrupt that cannot get lost; a second one exits.

    Raising while an extension module initialises can crash the process. There, and where the
    exception would be discarded, it is raised again a moment later. Freeing what the interrupted
    frames hold can crash it too (a half-initialised module, buffers of a running computation), so
    the exception, and with it its frames, is kept until the process ends.
    """

    def __init__(self) -> None:
        self.has_come = False
        self.raised: KeyboardInterrupt | None = None
        self._is_again = False

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        del number
        if self.has_come and not self._is_again:
            os._exit(INTERRUPTED)
        self.has_come, self._is_again = True, False
        if _is_importing(frame):
            self._come_again()
        else:
            self.raised = KeyboardInterrupt()
            raise self.raised

    def on_unraisable(self, unraisable: "sys.UnraisableHookArgs") -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            self._come_again()
        else:
            sys.__unraisablehook__(unraisable)

    def _come_again(self) -> None:
        def again() -> None:
            self._is_again = True
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

        timer = threading.Timer(_AGAIN_SEC, again)
        timer.daemon = True
        timer.start()


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Runs the `main` of a command and ends the process with its exit code.

    After an interrupt the code is 130, whatever became of the KeyboardInterrupt. Programs that set
    their own SIGINT handler (a training run, the web server) keep it. Before `main` starts, garbage
    collection and memory allocation are set for large arrays (`core.host_memory`).
    """
    # Imports create some 100,000 permanent objects, and tracing makes more. By default Python scans
    # them 400 times while a command starts, which takes a third of a second, and for a fifth of the
    # time that tracing and lowering a training step takes.
    gc.set_threshold(_OBJECTS_UNTIL_COLLECTION)
    keep_freed_memory()
    # A name that the terminal's encoding lacks, or that is no text at all, is shown with escapes.
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")
    interrupts = _Interrupts()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupts.on_signal)
        sys.unraisablehook = interrupts.on_unraisable
    code: object
    try:
        code = main()
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = INTERRUPTED
    except BaseException:
        if not interrupts.has_come:
            raise
        code = INTERRUPTED
    if code == INTERRUPTED or interrupts.has_come:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(INTERRUPTED)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # done: nothing is left to interrupt
    sys.exit(code)
