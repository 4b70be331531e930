"""1-IoU at all granularities: does one click return every mask that contains it?

For a click c let T(c) be all ground-truth masks that contain it and O(c) the model's masks.

    A(c)    = one-to-one assignment of T(c) to O(c) with the largest sum of IoUs
    matched = mean of IoU over all pairs of all A(c)
    full = the same, with IoU 0 for every unmatched target

A model with fewer outputs than targets may get further clicks in the same mask, whose outputs are
added to O(c) (three outputs and two clicks make six).

The original has this evaluation but its code does not run (docs/reference.md, section 11 and quirk
20); this follows the paper's definition: arXiv 2307.04767, section 4.2.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping

import numpy as np
from flax import linen as nn
from scipy.optimize import linear_sum_assignment

from semsam_jax.core.distance import distance_inside
from semsam_jax.evals.clicks import CLICK_BOX_PX, centre_click, click_boxes
from semsam_jax.evals.eval_loop import EvalLoop
from semsam_jax.evals.evaluator import Evaluator, exact_mean
from semsam_jax.evals.one_click import scored_masks
from semsam_jax.evals.prompt_runner import PromptQuery, PromptRunner, PromptWork
from semsam_jax.evals.samples import EvalSample


@dataclasses.dataclass(frozen=True)
class GranularityProtocol:
    """How clicks are made and which outputs count.

    Attributes:
        click_box_px, point_type, isolate, skip_crowd: as in the 1-click protocol.
        outputs_per_click: use only this many outputs, best predicted quality first (3 makes
            the model comparable to one with three outputs); None for all.
        clicks_per_mask: how many clicks pool their outputs.
    """

    click_box_px: float = CLICK_BOX_PX
    point_type: int = 0
    isolate: bool = True
    skip_crowd: bool = True
    outputs_per_click: int | None = None
    clicks_per_mask: int = 1


@dataclasses.dataclass(frozen=True)
class GranularityResult:
    """Means in 0..1, nan where there is nothing to average.

    Attributes:
        iou_matched: mean IoU over assigned pairs.
        iou_full: mean IoU over all targets, unassigned ones count 0.
        num_clicks, num_targets, num_pairs: what was averaged.
        by_num_targets: number of masks under the click -> (mean matched IoU, clicks).
    """

    iou_matched: float
    iou_full: float
    num_clicks: int
    num_targets: int
    num_pairs: int
    by_num_targets: dict[int, tuple[float, int]]

    def scalars(self) -> dict[str, float]:
        """Flat numbers for a log, percent."""
        return {
            "iou": 100 * self.iou_matched,
            "iou_full": 100 * self.iou_full,
            "num_clicks": float(self.num_clicks),
        }


class GranularityEvaluator(Evaluator):
    """Collects the assigned IoUs of clicks."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forgets everything that was processed."""
        self._clicks: list[tuple[int, np.ndarray]] = []

    def process(self, *ious: np.ndarray) -> None:
        """Adds clicks.

        Args:
            *ious: one float64 [outputs, targets] array in 0..1 per click, the IoU of each of its
                outputs with each mask under it; the numbers of both may differ between clicks.
        """
        for iou in ious:
            outputs, targets = linear_sum_assignment(iou, maximize=True)
            self._clicks.append((iou.shape[1], iou[outputs, targets]))

    def state(self) -> dict:
        """Number of targets, number of pairs and the IoUs of the pairs of every click."""
        return {
            "num_targets": np.asarray([count for count, _ in self._clicks], np.int64),
            "num_pairs": np.asarray([len(iou) for _, iou in self._clicks], np.int64),
            "iou": np.concatenate([np.zeros(0), *(iou for _, iou in self._clicks)]),
        }

    def add(self, state: Mapping) -> None:
        """Adds the clicks of another evaluator."""
        ends = np.cumsum(state["num_pairs"])
        matched = np.split(state["iou"], ends[:-1]) if len(ends) else []
        self._clicks += list(zip(state["num_targets"].tolist(), matched, strict=True))

    def result(self) -> GranularityResult:
        """Computes the means."""
        pairs = [iou for _, matched in self._clicks for iou in matched]
        num_targets = sum(count for count, _ in self._clicks)
        groups = {}
        for count in sorted({count for count, _ in self._clicks}):
            members = [matched for n, matched in self._clicks if n == count]
            groups[count] = (exact_mean(np.concatenate(members)), len(members))
        return GranularityResult(
            iou_matched=exact_mean(pairs),
            iou_full=exact_mean(pairs + [0.0] * (num_targets - len(pairs))),
            num_clicks=len(self._clicks),
            num_targets=num_targets,
            num_pairs=len(pairs),
            by_num_targets=groups,
        )


def evaluate_granularity(
    model: nn.Module,
    params: dict,
    samples: Iterable[EvalSample],
    *,
    prompts_per_call: int = 16,
    protocol: GranularityProtocol | None = None,
    eval_loop: EvalLoop | None = None,
    name: str = "granularity",
) -> GranularityResult:
    """Clicks the centre of every mask once; equal clicks of an image count once."""
    protocol = protocol or GranularityProtocol()
    eval_loop = eval_loop or EvalLoop()
    runner = PromptRunner.on(eval_loop, model, params, prompts_per_call, protocol.isolate)
    scorer = runner.scorer(functools.partial(click_ious, protocol=protocol))
    return eval_loop.run(name, GranularityEvaluator(), samples, scorer).result()


def click_ious(sample: EvalSample, protocol: GranularityProtocol) -> PromptWork:
    """Gives IoU [outputs, targets] of every distinct click of one image."""
    _, masks = scored_masks(sample, protocol.skip_crowd)
    groups: dict[tuple, list[np.ndarray]] = {}
    for mask in masks:
        clicks = pooled_clicks(mask, protocol.clicks_per_mask)
        x, y = clicks[0]
        groups.setdefault(tuple(clicks), [m for m in masks if m[y, x]])
    if not groups:
        return ()
    clicks_xy = sample.on_canvas([click for clicks in groups for click in clicks])
    owner = np.repeat(np.arange(len(groups)), [len(clicks) for clicks in groups])
    targets = list(groups.values())
    scores = yield PromptQuery(
        click_boxes(clicks_xy, sample.image.shape[:2], protocol.click_box_px),
        np.full(len(clicks_xy), protocol.point_type),
        [targets[group] for group in owner],
    )
    best = np.argsort(-scores.pred_ious, axis=1, kind="stable")[:, : protocol.outputs_per_click]
    kept = np.take_along_axis(scores.iou, best[..., None], axis=1)
    return tuple(
        kept[owner == group].reshape(-1, kept.shape[-1])[:, : len(masks)]
        for group, masks in enumerate(targets)
    )


def pooled_clicks(mask: np.ndarray, count: int) -> list[tuple[int, int]]:
    """Up to `count` clicks in a non-empty mask, each at the centre of the remaining area.

    After each click the largest circle around it is removed from the mask; fewer clicks are
    returned when nothing is left.
    """
    left = mask.copy()
    clicks = []
    rows, columns = np.ogrid[: mask.shape[0], : mask.shape[1]]
    while len(clicks) < count:
        click = centre_click(left)
        if click is None:
            break
        clicks.append(click)
        radius = distance_inside(left)[click[1], click[0]]
        left &= (columns - click[0]) ** 2 + (rows - click[1]) ** 2 >= radius**2
    return clicks
