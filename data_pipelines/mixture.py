"""Granularity-aware mixing: which dataset and view each row of a stream comes from.

A view is a granularity of a dataset (`any`, `object`, `part`). Its weight is the share of the
granularity times the share of the dataset among the datasets that offer this granularity.
Counts are exact over a cycle and spread evenly within it.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from data_pipelines.index import Views
from data_pipelines.transforms.row import VIEWS
from semsam_jax.core.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Shares of one stream; need not add up to one.

    Attributes:
        datasets: share of each dataset within a granularity; 0 leaves it out.
        granularity: share of each view.
        cycle: rows over which the proportions are exact.
    """

    datasets: Mapping[str, float]
    granularity: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"any": 1.0})
    cycle: int = 1000


@dataclasses.dataclass(frozen=True)
class MixtureRow:
    """One view of the table.

    Attributes:
        dataset, view: which examples.
        examples: how many there are.
        weight: share of the stream's rows, 0 for a view that its dataset does not offer.
        in_cycle: rows of each cycle.
        expected_epochs: passes over the examples in the planned run (0 without a plan).
    """

    dataset: str
    view: str
    examples: int
    weight: float
    in_cycle: int
    expected_epochs: float


@dataclasses.dataclass(frozen=True)
class MixtureTable:
    """The resolved mixture of one stream.

    Attributes:
        rows: one per dataset and requested view; absent views have weight 0.
        cycle: rows of a cycle.
    """

    rows: tuple[MixtureRow, ...]
    cycle: int

    @property
    def active(self) -> tuple[MixtureRow, ...]:
        """The views that rows are drawn from, in schedule order."""
        return tuple(row for row in self.rows if row.in_cycle)

    def schedule(self) -> np.ndarray:
        """Returns int32 [cycle]: index into `active` of each row of a cycle.

        The k-th of a view's c rows sits at (k + 1/2) / c of the cycle, so that every
        stretch of the cycle holds nearly the right proportions.
        """
        counts = np.array([row.in_cycle for row in self.active])
        view = np.repeat(np.arange(len(counts)), counts)
        turn = np.concatenate([np.arange(count) for count in counts])
        # Stable sort over exact fractions: ties keep the order of the table.
        moment = (2 * turn + 1) / (2 * counts[view])
        return view[np.argsort(moment, kind="stable")].astype(np.int32)

    def to_dict(self) -> dict:
        """Plain values, for logs and the checkpoint's meta."""
        return {"cycle": self.cycle, "rows": [dataclasses.asdict(row) for row in self.rows]}

    def format(self) -> str:
        """The table as text, one line per view."""
        lines = [f"{'dataset':<16}{'view':<8}{'examples':>10}{'weight':>9}{'epochs':>10}"]
        for row in self.rows:
            note = "" if row.weight else "  no such examples; share goes to the other datasets"
            epochs = f"{row.expected_epochs:>10.3g}" if row.expected_epochs else f"{'-':>10}"
            lines.append(
                f"{row.dataset:<16}{row.view:<8}{row.examples:>10}{row.weight:>9.4f}{epochs}{note}"
            )
        return "\n".join(lines)


MANY_EPOCHS = 150
"""Passes over a dataset above which a run warns: a few thousand images are memorised by then."""


def epochs(tables: Mapping[str, MixtureTable]) -> dict[str, float]:
    """Expected passes over each dataset, all views and streams together."""
    total: dict[str, float] = {}
    for table in tables.values():
        images = {row.dataset: 0 for row in table.rows}
        for row in table.rows:
            images[row.dataset] = max(images[row.dataset], row.examples)
        for row in table.active:
            share = row.expected_epochs * row.examples / images[row.dataset]
            total[row.dataset] = total.get(row.dataset, 0.0) + share
    return total


def epoch_warnings(tables: Mapping[str, MixtureTable]) -> list[str]:
    """A sentence for each dataset that the planned run repeats too often."""
    return [
        f"{name}: the run passes {count:.0f} times over its images, more than {MANY_EPOCHS}; give "
        f"it a smaller share, or train for fewer steps"
        for name, count in epochs(tables).items()
        if count > MANY_EPOCHS
    ]


def build_mixture(
    mixture: Mixture, indexes: Mapping[str, Views], *, total_rows: int = 0, where: str = "mixture"
) -> MixtureTable:
    """Computes the weights of all views.

    Args:
        mixture: the shares.
        indexes: index of each dataset by name.
        total_rows: rows that the planned run will draw, for the expected epochs.
        where: name of the stream, for messages.

    Raises:
        ConfigError: unknown view or dataset, negative share, a granularity that no chosen
            dataset offers, a dataset that offers none of the chosen granularities, or a
            weight too small to appear in the cycle.
    """
    datasets, views = _shares(mixture, indexes, where)
    sizes = {(d, v): len(indexes[d].view(v)) for v in views for d in datasets}
    weights = _weights(datasets, views, sizes, where)
    in_cycle = _largest_remainder(weights, mixture.cycle)
    for key, weight in weights.items():
        if weight and not in_cycle[key]:
            raise ConfigError(
                f"{where}: {key[0]}/{key[1]} has weight {weight:.2g}, less than one row in a "
                f"cycle of {mixture.cycle}; raise its share or the cycle, or set the share to 0."
            )
    rows = []
    for (dataset, view), weight in weights.items():
        size, count = sizes[dataset, view], in_cycle[dataset, view]
        epochs = total_rows * count / mixture.cycle / size if count else 0.0
        rows.append(MixtureRow(dataset, view, size, weight, count, epochs))
    return MixtureTable(tuple(rows), mixture.cycle)


def _shares(
    mixture: Mixture, indexes: Mapping[str, Views], where: str
) -> tuple[dict[str, float], dict[str, float]]:
    """The positive shares, checked."""
    for name in mixture.granularity:
        if name not in VIEWS:
            raise ConfigError(f"{where}: granularity {name!r}; use {', '.join(VIEWS)}.")
    for name, share in (*mixture.datasets.items(), *mixture.granularity.items()):
        if not share >= 0:
            raise ConfigError(f"{where}: share of {name} is {share}; a share is 0 or more.")
    datasets = {name: share for name, share in mixture.datasets.items() if share > 0}
    views = {name: share for name, share in mixture.granularity.items() if share > 0}
    missing = sorted(set(datasets) - set(indexes))
    if missing:
        raise ConfigError(
            f"{where}: no data for {', '.join(missing)}; there is {', '.join(sorted(indexes))}. "
            f"Add the data or set the share to 0."
        )
    if not datasets or not views:
        raise ConfigError(f"{where}: every share is 0; give a dataset and a granularity a share.")
    return datasets, views


def _weights(
    datasets: dict[str, float],
    views: dict[str, float],
    sizes: dict[tuple[str, str], int],
    where: str,
) -> dict[tuple[str, str], float]:
    total_views = sum(views.values())
    weights: dict[tuple[str, str], float] = {}
    for view, view_share in views.items():
        offered = sum(share for name, share in datasets.items() if sizes[name, view])
        if not offered:
            raise ConfigError(
                f"{where}: granularity {view!r} has share {view_share:g}, but none of "
                f"{', '.join(datasets)} has such examples; add a dataset that has, or set the "
                f"granularity's share to 0."
            )
        for name, share in datasets.items():
            has = bool(sizes[name, view])
            weights[name, view] = view_share / total_views * share / offered if has else 0.0
    for name in datasets:
        if not any(weights[name, view] for view in views):
            raise ConfigError(
                f"{where}: dataset {name!r} has a share but no examples of granularity "
                f"{', '.join(views)}; give a granularity it has a share (`any` fits all), or "
                f"set the dataset's share to 0."
            )
    return weights


def _largest_remainder(
    weights: dict[tuple[str, str], float], cycle: int
) -> dict[tuple[str, str], int]:
    """Integer counts nearest to the weights that add up to the cycle."""
    exact = {key: weight * cycle for key, weight in weights.items()}
    counts = {key: int(np.floor(value + 1e-9)) for key, value in exact.items()}
    rest = cycle - sum(counts.values())
    by_remainder = sorted(exact, key=lambda key: counts[key] - exact[key])
    for key in by_remainder[:rest]:
        counts[key] += 1
    return counts
