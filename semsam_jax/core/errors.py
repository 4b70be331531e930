"""Errors that name the thing and the fix.

One message: where · what is wrong · got · wanted · what to do. Each error is also a
subclass of the natural builtin, so `except ValueError` keeps working. The command
line prints the message on one line and exits with code 2.
"""


class SemSamError(Exception):
    """Base of every error that a user can cause and can repair."""


class ConfigError(SemSamError, ValueError):
    """A configuration key or a combination of values is wrong."""


class DataError(SemSamError, ValueError):
    """A dataset, an image or an annotation is missing or broken."""


class ShapeError(SemSamError, ValueError):
    """An array has a shape or a dtype that the function cannot take."""


class PromptError(SemSamError, ValueError):
    """A click, a box, a level or a label cannot be used on this image."""


class SelectionError(SemSamError, IndexError):
    """A position among results that is not there."""


class CheckpointError(SemSamError, RuntimeError):
    """A checkpoint is missing, incomplete or belongs to another model."""


class ConversionError(SemSamError, RuntimeError):
    """A foreign weight file cannot be read or does not fit the model."""


class MatchError(SemSamError, FloatingPointError):
    """Matching costs were not finite, so no assignment can be trusted."""


class TrainingError(SemSamError, RuntimeError):
    """A training run cannot go on (non-finite loss, lost worker, full disk)."""
