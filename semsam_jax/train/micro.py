"""Gradient accumulation: splits a batch into micro-batches and merges their results."""

import dataclasses

import jax

from semsam_jax.core.structs import Batch, StreamBatch
from semsam_jax.matching.transport import AssignReport


@dataclasses.dataclass(frozen=True)
class MicroBatches:
    """How a batch is divided into micro-batches.

    The loss of a step is the mean of its micro-batches' losses. A mean within the loss is over the
    rows of its micro-batch, so another division weighs the same rows equally only if they have
    equally many instances.

    Attributes:
        count: pieces of each stream.
        is_apart: each stream is a separate micro-batch, so that the memory of one row per device
            suffices for a joint step.
    """

    count: int = 1
    is_apart: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether the batch is not divided."""
        return self.count == 1 and not self.is_apart

    def cut(self, batch: StreamBatch, shards: int) -> list[StreamBatch]:
        """Divides a batch; every device divides its own rows.

        Args:
            batch: rows that lie over `shards` devices; both quotas are divisible by
                shards * count.
            shards: devices that the batch lies over.
        """
        pieces = [_piece(batch, index, self.count, shards) for index in range(self.count)]
        if not self.is_apart:
            return pieces
        both = [(StreamBatch(p.interactive, None), StreamBatch(None, p.generic)) for p in pieces]
        return [
            one
            for pair in both
            for one in pair
            if one.interactive is not None or one.generic is not None
        ]

    def merge(self, metrics: list[dict]) -> dict:
        """Metrics of a step: the minimised loss, sums of the counts, and means of the others."""
        merged = {
            name: sum(own) / (1 if "/num_" in name else len(own))
            for name in {key: None for one in metrics for key in one}
            if (own := [one[name] for one in metrics if name in one])
        }
        merged["loss"] = sum(one["loss"] for one in metrics) / self.count
        merged["nonfinite_costs"] = sum(one["nonfinite_costs"] for one in metrics)
        return merged


WHOLE = MicroBatches()
"""The undivided batch."""


def merge_reports(reports: list[AssignReport]) -> AssignReport:
    """Times of all micro-batches of a step."""
    return AssignReport(
        host_sec=sum(report.host_sec for report in reports),
        wait_sec=sum(report.wait_sec for report in reports),
    )


def _piece(batch: StreamBatch, index: int, count: int, shards: int) -> StreamBatch:
    def rows(x: jax.Array) -> jax.Array:
        own = x.reshape(shards, count, x.shape[0] // (shards * count), *x.shape[1:])
        return own[:, index].reshape(-1, *x.shape[1:])

    def stream(part: Batch | None) -> Batch | None:
        return None if part is None else jax.tree.map(rows, part)

    return StreamBatch(stream(batch.interactive), stream(batch.generic))
