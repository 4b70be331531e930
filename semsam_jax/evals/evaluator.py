"""What all evaluators have in common: feed them images in any order, merge them, ask once."""

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np


class Evaluator(Protocol):
    """A metric that is fed image by image.

    The result depends neither on the order of `process` calls nor on how the images were
    spread over evaluators that are merged at the end. What `process` takes and `result`
    returns is the metric's own.
    """

    def reset(self) -> None:
        """Forgets everything that was processed."""

    def process(self, *outcome: Any) -> None:
        """Takes the outcome of one image."""

    def merge(self, other: Any) -> None:
        """Takes over what another evaluator of the same kind has processed."""

    def result(self) -> Any:
        """Computes the metric of everything processed so far."""


def exact_mean(values: np.ndarray | Sequence[float]) -> float:
    """Mean that does not depend on the order of summation; nan for no values."""
    listed = np.asarray(values, np.float64)
    return math.fsum(listed.ravel().tolist()) / listed.size if listed.size else math.nan
