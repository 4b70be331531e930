"""Verbosity of commands: --verbose and --quiet. Imports the standard library only."""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator

_is_quiet = False


def hides_progress() -> bool | None:
    """Value of tqdm's argument `disable`; None shows bars on terminals only."""
    return True if _is_quiet else None


@contextlib.contextmanager
def verbosity(verbose: bool = False, quiet: bool = False) -> Iterator[None]:
    """Sets the verbosity inside the context.

    Args:
        verbose: log messages from level INFO on, those of libraries too, with their origin.
        quiet: errors only; standard output, progress bars and warnings are dropped.
    """
    global _is_quiet
    if verbose:
        logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    before = logging.getLogger().level, _is_quiet
    warning_format = warnings.formatwarning
    if verbose or quiet:
        logging.getLogger().setLevel(logging.INFO if verbose else logging.ERROR)
    _is_quiet = quiet
    if not verbose:
        warnings.formatwarning = _one_line
    try:
        if quiet:
            with (
                open(os.devnull, "w") as nowhere,
                contextlib.redirect_stdout(nowhere),
                warnings.catch_warnings(action="ignore"),
            ):
                yield
        else:
            yield
    finally:
        level, _is_quiet = before
        warnings.formatwarning = warning_format
        logging.getLogger().setLevel(level)


def _one_line(message: Warning | str, *_: object, **__: object) -> str:
    """A warning as commands show it: what it says, not where in the code it comes from."""
    return f"note: {' '.join(str(message).split())}\n"
