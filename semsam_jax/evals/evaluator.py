"""Base class of evaluators: process images in any order, merge, compute the result."""

import abc
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


class Evaluator(abc.ABC):
    """A metric that is fed image by image.

    The result depends neither on the order of `process` calls nor on how the images were
    spread over evaluators that are merged at the end. The arguments of `process` and the type of
    `result` depend on the metric.
    """

    @abc.abstractmethod
    def reset(self) -> None:
        """Forgets everything that was processed."""

    @abc.abstractmethod
    def process(self, *outcome: Any) -> None:
        """Takes the outcome of one image."""

    @abc.abstractmethod
    def state(self) -> dict:
        """Everything processed so far as dicts and lists of arrays, numbers, text and bytes.

        Exchanged between processes, and stored to resume an interrupted evaluation.
        """

    @abc.abstractmethod
    def add(self, state: Mapping) -> None:
        """Takes over the `state` of another evaluator of the same kind."""

    @abc.abstractmethod
    def result(self) -> Any:
        """Computes the metric of everything processed so far."""

    def merge(self, other: "Evaluator") -> None:
        """Takes over what another evaluator of the same kind has processed."""
        self.add(other.state())


def exact_mean(values: np.ndarray | Sequence[float]) -> float:
    """Mean that does not depend on the order of summation; nan for no values."""
    listed = np.asarray(values, np.float64)
    return math.fsum(listed.ravel().tolist()) / listed.size if listed.size else math.nan


def sparse(counts: np.ndarray) -> dict:
    """The entries of an integer array that are not zero, for `Evaluator.state`."""
    index = np.flatnonzero(counts)
    return {"index": index, "count": counts.ravel()[index]}


def add_sparse(counts: np.ndarray, entries: Mapping) -> None:
    """Adds entries made by `sparse` to a contiguous array, in place."""
    counts.reshape(-1)[np.asarray(entries["index"], np.int64)] += entries["count"]
