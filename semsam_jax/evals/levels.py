"""Which token is which level: calibration of a trained checkpoint.

Level 1 is the coarsest, level 6 the finest. Which token corresponds to which level depends on the
training run, so it is measured: tokens are ordered by the mean area of their masks.
"""

import dataclasses

import numpy as np

from semsam_jax.core.errors import DataError
from semsam_jax.evals.evaluator import exact_mean
from semsam_jax.evals.one_click import ClickTable
from semsam_jax.evals.samples import SIZE_NAMES, size_class


@dataclasses.dataclass(frozen=True)
class LevelCalibration:
    """Measured levels of the tokens of one checkpoint.

    Attributes:
        level_order: token of level 1..k, largest mean mask area first.
        mean_area: float64 [k] mean mask area per token, fraction of the image.
        level_sizes: mean square root of the mask area of level 1..k, as fractions of the image;
            places the levels on the continuum of `inference.granularity`.
        kendall_tau: mean over clicks of Kendall's tau-a between the level order and the
            areas of that click's own masks: 1 if areas never grow with the level, 0 by
            chance, -1 if reversed.
        coverage: size class -> float64 [k], share of the instances of that size whose best
            mask comes from the token of level 1..k; instances that no mask overlaps count for no
            level.
        num_clicks: how many clicks it was measured on.
    """

    level_order: tuple[int, ...]
    mean_area: np.ndarray
    level_sizes: tuple[float, ...]
    kendall_tau: float
    coverage: dict[str, np.ndarray]
    num_clicks: int


def calibrate_levels(table: ClickTable) -> LevelCalibration:
    """Orders the tokens of a model by the mean area of their masks.

    Args:
        table: rows of a 1-click evaluation (`OneClickResult.table`).

    Raises:
        DataError: no click was scored.
    """
    if len(table) == 0:
        raise DataError(
            "calibrate_levels: no click was scored; give at least one image with a mask."
        )
    num_tokens = table.pred_area.shape[1]
    mean_area = np.asarray([exact_mean(table.pred_area[:, k]) for k in range(num_tokens)])
    order = np.argsort(-mean_area, kind="stable")
    best_level = np.argsort(order)[table.iou.argmax(1)]
    coverage = {}
    sizes = size_class(table.area_px)
    is_touched = table.iou.max(1) > 0
    for index, name in enumerate(SIZE_NAMES):
        is_size = sizes == index
        if is_size.any():
            levels = best_level[is_size & is_touched]
            coverage[name] = np.bincount(levels, minlength=num_tokens) / is_size.sum()
    return LevelCalibration(
        level_order=tuple(int(token) for token in order),
        mean_area=mean_area,
        level_sizes=tuple(
            round(exact_mean(np.sqrt(table.pred_area[:, token])), 6) for token in order
        ),
        kendall_tau=exact_mean(kendall_tau_descending(table.pred_area[:, order])),
        coverage=coverage,
        num_clicks=len(table),
    )


def kendall_tau_descending(values: np.ndarray) -> np.ndarray:
    """Kendall's tau-a of each row against the descending order.

        tau = (concordant - discordant) / (k (k - 1) / 2),  ties count for neither

    Args:
        values: float [n, k].

    Returns:
        float64 [n] in -1..1.
    """
    first, second = np.triu_indices(values.shape[1], k=1)
    return np.sign(values[:, first] - values[:, second]).mean(1)
