"""A fixed fraction of a dataset's examples, for recipes that train on a part of SA-1B."""

import numpy as np
from jaxtyping import Bool, Int64

from data_pipelines.index.build import Index


class IndexShare:
    """An index restricted to a fraction of the records.

    The choice depends on the record number alone: it is the same in every run and for every number
    of processes, and a smaller fraction is a subset of a larger one.

    Args:
        index: of all records.
        share: of the records, 0..1.

    Attributes:
        report: counts of the scan of all records.
        num_instances: int32 [e] of each example.
    """

    def __init__(self, index: Index, share: float):
        self.report = index.report
        self.num_instances = index.num_instances[is_chosen(index.position, share)]
        self._views = {
            name: index.view(name)[is_chosen(index.view(name), share)]
            for name in ("any", "object", "part")
        }

    def __len__(self) -> int:
        return len(self._views["any"])

    def view(self, name: str) -> Int64[np.ndarray, " m"]:
        """Record numbers of the examples that belong to a view."""
        return self._views[name]


def is_chosen(position: Int64[np.ndarray, " m"], share: float) -> Bool[np.ndarray, " m"]:
    """Which record numbers are in a subset: those whose mixed bits fall below the share.

    Source: the finaliser of splitmix64 (Steele et al. 2014).
    """
    bits = np.asarray(position).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
    bits ^= bits >> np.uint64(31)
    return (bits >> np.uint64(11)).astype(np.float64) / 2.0**53 < share
