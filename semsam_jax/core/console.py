"""Verbosity of commands: --verbose and --quiet. Imports the standard library only."""

import contextlib
import logging
import os
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
    if verbose or quiet:
        logging.getLogger().setLevel(logging.INFO if verbose else logging.ERROR)
    _is_quiet = quiet
    try:
        if quiet:
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
                yield
        else:
            yield
    finally:
        level, _is_quiet = before
        logging.getLogger().setLevel(level)
