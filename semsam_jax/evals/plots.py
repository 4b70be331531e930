"""Plots of results, as PNG files; no display is needed."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from semsam_jax.evals.continuous import GRID, ContinuousResult
from semsam_jax.evals.instance_ap import InstanceResult
from semsam_jax.evals.interactive import InteractiveResult
from semsam_jax.evals.names import Reliability
from semsam_jax.evals.one_click import ClickTable
from semsam_jax.evals.panoptic import PanopticResult
from semsam_jax.inference import files

_BLUE, _ORANGE, _GREY = "#2a6fbb", "#d9772b", "#888888"
_NUM_BINS = 10


def plot_iou_by_size(path: Path, table: ClickTable) -> None:
    """Mean IoU of the chosen and the best mask by size of the instance, with the counts below."""
    side = np.sqrt(table.area_px)
    edges = np.geomspace(max(side.min(), 1.0), side.max() + 1, 9)
    which = np.clip(np.digitize(side, edges) - 1, 0, len(edges) - 2)
    centres, counts = np.sqrt(edges[1:] * edges[:-1]), np.bincount(which, minlength=8)
    figure, (top, bottom) = _figure(2, heights=(3, 1))
    for name, values, colour in (
        ("best of all masks", table.iou_oracle, _ORANGE),
        ("chosen", table.iou_max, _BLUE),
    ):
        means = np.asarray([values[which == b].mean() if counts[b] else np.nan for b in range(8)])
        top.plot(centres, 100 * means, "o-", color=colour, label=name)
    top.set(ylabel="mean IoU, %", ylim=(0, 100), xscale="log", title="1-click IoU by mask size")
    top.legend(loc="lower right")
    bottom.bar(edges[:-1], counts, np.diff(edges), align="edge", color=_GREY, edgecolor="white")
    bottom.set(xscale="log", xlabel="square root of the area, pixels of the image")
    bottom.set(ylabel="instances", xlim=top.get_xlim())
    _save(figure, path)


def plot_levels(path: Path, table: ClickTable, level_order: Sequence[int]) -> None:
    """IoU, mask area and how often each level is the best, level 1 (coarsest) first."""
    order = list(level_order)
    levels = np.arange(1, len(order) + 1)
    per_click = 100 / len(table)
    is_touched = table.iou.max(1) > 0
    best_token = table.iou.argmax(1)[is_touched]
    best = np.bincount(best_token, minlength=len(order))[order] * per_click
    chosen = np.bincount(table.chosen, minlength=len(order))[order] * per_click
    figure, (first, second, third) = _figure(1, 3, size=(11, 3.4))
    first.bar(levels, 100 * table.iou.mean(0)[order], color=_BLUE)
    first.set(title="mean IoU with the clicked mask, %", xlabel="level", ylim=(0, 100))
    boxes = [np.maximum(100 * table.pred_area[:, token], 1e-3) for token in order]
    second.boxplot(boxes, positions=levels, showfliers=False, widths=0.6)
    second.set(title="mask area, % of the image", xlabel="level", yscale="log")
    third.bar(levels - 0.2, best, 0.4, color=_ORANGE, label="is the best")
    third.bar(levels + 0.2, chosen, 0.4, color=_BLUE, label="is chosen")
    third.set(title="share of the clicks, %", xlabel="level")
    third.set_ylim(0, 1.25 * max(best.max(), chosen.max()))
    third.legend(loc="upper center", ncols=2, fontsize=8)
    for axis in (first, second, third):
        axis.set_xticks(levels, [str(level) for level in levels])
    _save(figure, path)


def plot_reliability(path: Path, table: ClickTable) -> None:
    """True against predicted IoU of all tokens; calibrated predictions lie on the diagonal."""
    predicted = np.clip(table.pred_iou.ravel().astype(np.float64), 0, 1)
    true = table.iou.ravel()
    which = np.minimum((predicted * _NUM_BINS).astype(int), _NUM_BINS - 1)
    counts = np.bincount(which, minlength=_NUM_BINS)
    sums = (np.bincount(which, values, _NUM_BINS) for values in (predicted, true))
    mean_pred, mean_true = (total / np.maximum(counts, 1) for total in sums)
    error = float(np.abs(mean_true - mean_pred) @ counts / counts.sum())
    title = f"Reliability of the predicted IoU\nmean gap {error:.3f}"
    _plot_bins(path, mean_pred, mean_true, counts, title, ("predicted IoU", "mean true IoU"))


def plot_name_reliability(path: Path, found: Reliability, kind: str) -> None:
    """How often the best name is right, over its score."""
    title = f"Reliability of {kind} names\nexpected calibration error {found.error:.3f}"
    _plot_bins(path, found.score, found.right, found.count, title, ("score", "share that is right"))


def _plot_bins(
    path: Path,
    predicted: np.ndarray,
    true: np.ndarray,
    counts: np.ndarray,
    title: str,
    labels: tuple[str, str],
) -> None:
    """What is true over what is predicted, in bins of equal width, and the counts below."""
    with_any = counts > 0
    figure, (top, bottom) = _figure(2, heights=(3, 1), size=(5, 6))
    top.plot([0, 1], [0, 1], "--", color=_GREY)
    top.plot(predicted[with_any], true[with_any], "o-", color=_BLUE)
    top.set(xlim=(0, 1), ylim=(0, 1), ylabel=labels[1], title=title)
    bottom.bar((np.arange(_NUM_BINS) + 0.5) / _NUM_BINS, counts, 0.9 / _NUM_BINS, color=_GREY)
    bottom.set(xlim=(0, 1), xlabel=labels[0], ylabel="masks")
    _save(figure, path)


def plot_class_quality(path: Path, result: PanopticResult, names: Sequence[str]) -> None:
    """PQ of every class that occurs, best first."""
    ranked = sorted(result.by_class, key=lambda c: (-result.by_class[c].pq, c))
    values = [100 * result.by_class[c].pq for c in ranked]
    figure, axis = _figure(1, size=(8, max(2.5, 0.2 * len(ranked) + 1)))
    axis.barh(range(len(ranked)), values, color=_BLUE)
    axis.set_yticks(range(len(ranked)), [names[c] for c in ranked], fontsize=8)
    axis.invert_yaxis()
    axis.set(xlim=(0, 100), xlabel="PQ, %", title=f"Panoptic quality by class, mean {_of(result)}")
    axis.margins(y=0.01)
    _save(figure, path)


def plot_precision_recall(
    path: Path, result: InstanceResult, names: Sequence[str], num_classes: int = 5
) -> None:
    """Precision over recall at IoU 0.5: the mean, and the classes with the highest AP."""
    recall = np.linspace(0, 1, result.precision.shape[1])
    present = np.flatnonzero(~np.isnan(result.class_ap))
    figure, axis = _figure(1)
    if len(present):
        ranked = present[np.argsort(-result.class_ap50[present], kind="stable")][:num_classes]
        for c in ranked:
            axis.plot(recall, result.precision[c], lw=1, alpha=0.7, label=names[c])
        mean = result.precision[present].mean(0)
        axis.plot(recall, mean, color="black", lw=2, label=f"mean of {len(present)}")
        axis.legend(fontsize=8)
    axis.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    axis.set_title(f"Precision and recall at IoU 0.5, AP50 {_percent(result.ap50)}")
    _save(figure, path)


def plot_clicks(path: Path, result: InteractiveResult) -> None:
    """Mean IoU after k clicks."""
    figure, axis = _figure(1)
    clicks = np.arange(1, len(result.iou_at) + 1)
    axis.plot(clicks, 100 * result.iou_at, "o-", color=_BLUE)
    noc = ", ".join(f"NoC@{round(100 * q)} {value:.1f}" for q, value in result.noc.items())
    axis.set(ylim=(0, 102), xlabel="clicks", ylabel="mean IoU, %", title=noc)
    axis.set_xticks(clicks[:: max(1, len(clicks) // 10)])
    _save(figure, path)


def plot_continuous(path: Path, result: ContinuousResult) -> None:
    """IoU over the number of tries, and how the area grows with the granularity."""
    figure, (first, second) = _figure(1, 2, size=(10, 3.8))
    for name, values, colour in (
        ("granularities", result.best_of, _BLUE),
        ("tokens", result.best_of_tokens, _ORANGE),
    ):
        tries = np.arange(1, len(values) + 1)
        first.plot(tries, 100 * values, "o-", color=colour, label=f"best of k {name}")
    if not np.isnan(result.given):
        first.axhline(100 * result.given, ls="--", color=_GREY, label="granularity given")
    first.set(title="1-IoU, %", xlabel="tries k", ylim=(0, 100), xticks=range(1, len(GRID) + 1))
    first.legend(loc="lower right", fontsize=8)
    low, middle, high = 100 * np.quantile(result.area, (0.25, 0.5, 0.75), axis=0)
    second.fill_between(GRID, low, high, color=_BLUE, alpha=0.25, lw=0, label="half of the clicks")
    second.plot(GRID, middle, "o-", color=_BLUE, label="median")
    second.set(xlabel="requested granularity", ylim=(0, 102), xticks=GRID[::2])
    second.set_title("mask area, % of the click's largest mask")
    second.legend(loc="upper left", fontsize=8)
    _save(figure, path)


def _of(result: PanopticResult) -> str:
    return _percent(result.all["pq"])


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.1f}"


def _figure(rows, columns=1, *, size=(6.4, 4.8), heights=None):
    """Figure with its own canvas (no global state) and its axes."""
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, height_ratios=heights)
    for axis in np.atleast_1d(axes).ravel():
        axis.grid(alpha=0.25)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    content = io.BytesIO()
    figure.savefig(content, dpi=110, format=path.suffix[1:])
    files.write_bytes(path, content.getvalue())
