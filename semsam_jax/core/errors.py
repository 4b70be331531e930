"""Errors that say what is wrong and how to fix it.

A message says where, what is wrong, what was got, what is wanted and what to do. Each error also
subclasses the matching builtin, so that `except ValueError` works. Commands print the message on
one line and exit with code 2.
"""


class SemSamError(Exception):
    """Base class of all errors that a user can cause and fix."""


class ConfigError(SemSamError, ValueError):
    """A configuration key or a combination of values is wrong."""


class DataError(SemSamError, ValueError):
    """A dataset, an image or an annotation is missing or broken."""


class ShapeError(SemSamError, ValueError):
    """An array has a shape or a dtype that the function does not accept."""


class PromptError(SemSamError, ValueError):
    """A click, a box, a level or a label cannot be used on this image."""


class SelectionError(SemSamError, IndexError):
    """An index into results is out of range."""


class CheckpointError(SemSamError, RuntimeError):
    """A checkpoint is missing, incomplete or belongs to another model."""


class ConversionError(SemSamError, RuntimeError):
    """A foreign weight file cannot be read or does not fit the model."""


class MatchError(SemSamError, FloatingPointError):
    """Matching costs were not finite, so no assignment can be trusted."""


class TrainingError(SemSamError, RuntimeError):
    """A training run cannot go on (non-finite loss, lost worker, full disk)."""
