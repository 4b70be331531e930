"""What all evaluators have in common: feed them rows in any order, merge them, ask once."""

import math
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

Row = TypeVar("Row", contravariant=True)
Result = TypeVar("Result", covariant=True)


class Evaluator(Protocol[Row, Result]):
    """A metric that is fed piece by piece.

    The result depends neither on the order of `process` calls nor on how the pieces were
    spread over evaluators that are merged at the end.
    """

    def reset(self) -> None:
        """Forgets everything that was processed."""

    def process(self, row: Row) -> None:
        """Takes the outcome of one image."""

    def merge(self, other: Any) -> None:
        """Takes over what another evaluator of the same kind has processed."""

    def result(self) -> Result:
        """Computes the metric of everything processed so far."""


def exact_mean(values: np.ndarray | Sequence[float]) -> float:
    """Mean that does not depend on the order of summation; nan for no values."""
    listed = np.asarray(values, np.float64)
    return math.fsum(listed.ravel().tolist()) / listed.size if listed.size else math.nan
