"""Number of clicks (NoC) and IoU@k: iterative clicks at the largest error.

The first click is the centre of the object. Each further click goes to the centre of the
largest error region (`clicks.next_click`): positive for false negatives, negative for false
positives.

    NoC@q = mean over instances of the first number of clicks with IoU >= q (limit if never)
    IoU@k = mean over instances of the IoU after k clicks

The model takes one click at a time, so clicks are combined by set operations: the mask chosen for a
positive click is added to the current mask, the mask chosen for a negative click is subtracted.
`predicted` chooses the token with the highest predicted quality; `oracle` the token that leaves the
highest IoU. (The reference fills NoC from the first click alone, limit 20: docs/reference.md,
section 11.)

Source: RITM (arXiv 2102.06583); thresholds 0.80, 0.85, 0.90 and 20 clicks are customary.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
from flax import linen as nn

from semsam_jax.evals.clicks import CLICK_BOX_PX, centre_click, click_boxes, next_click
from semsam_jax.evals.eval_loop import EvalLoop
from semsam_jax.evals.evaluator import Evaluator, exact_mean
from semsam_jax.evals.one_click import scored_masks
from semsam_jax.evals.prompt_runner import PromptQuery, PromptRunner, PromptWork
from semsam_jax.evals.samples import EvalSample

THRESHOLDS = (0.80, 0.85, 0.90)


@dataclasses.dataclass(frozen=True)
class InteractiveProtocol:
    """Settings of the interaction.

    Attributes:
        max_clicks: clicks per instance, and the count of an instance that never reaches the
            threshold.
        thresholds: the q of NoC@q; an instance gets no further clicks once it reaches the largest,
            and keeps that IoU in IoU@k.
        choice: which token answers a click.
        token: this one answers every click, whatever the choice.
        click_box_px, point_type, isolate, skip_crowd: as in the 1-click protocol.
    """

    max_clicks: int = 20
    thresholds: tuple[float, ...] = THRESHOLDS
    choice: Literal["predicted", "oracle"] = "predicted"
    token: int | None = None
    click_box_px: float = CLICK_BOX_PX
    point_type: int = 0
    isolate: bool = True
    skip_crowd: bool = True


@dataclasses.dataclass(frozen=True)
class InteractiveResult:
    """Means over instances.

    Attributes:
        noc: threshold -> mean number of clicks.
        failed: threshold -> number of instances that never reached it.
        iou_at: float64 [max_clicks] mean IoU after 1, 2, ... clicks.
        num_instances: what was averaged.
    """

    noc: dict[float, float]
    failed: dict[float, int]
    iou_at: np.ndarray
    num_instances: int

    def scalars(self) -> dict[str, float]:
        """Flat numbers for a log; IoU in percent."""
        out = {f"noc{round(100 * q)}": value for q, value in self.noc.items()}
        out |= {f"iou@{k + 1}": 100 * float(v) for k, v in enumerate(self.iou_at)}
        return out | {"num_instances": float(self.num_instances)}


class InteractiveEvaluator(Evaluator):
    """Collects one curve of IoUs per instance."""

    def __init__(self, protocol: InteractiveProtocol) -> None:
        self._protocol = protocol
        self.reset()

    def reset(self) -> None:
        """Forgets everything that was processed."""
        self._curves: list[np.ndarray] = []

    def process(self, *curves: np.ndarray | Sequence[float]) -> None:
        """Takes the IoU of instances after each click, per instance float [<= max_clicks].

        A shorter curve is continued with its last value.
        """
        for curve in curves:
            missing = self._protocol.max_clicks - len(curve)
            self._curves.append(np.pad(np.asarray(curve, np.float64), (0, missing), mode="edge"))

    def state(self) -> dict:
        """The curve of every instance."""
        return {"curves": np.asarray(self._curves).reshape(-1, self._protocol.max_clicks)}

    def add(self, state: Mapping) -> None:
        """Adds the curves of another evaluator."""
        self._curves += list(state["curves"])

    def result(self) -> InteractiveResult:
        """Computes the means; nan without instances."""
        limit = self._protocol.max_clicks
        curves = np.asarray(self._curves).reshape(-1, limit)
        noc, failed = {}, {}
        for q in self._protocol.thresholds:
            reached = curves >= q
            noc[q] = exact_mean(np.where(reached.any(1), reached.argmax(1) + 1, limit))
            failed[q] = int((~reached.any(1)).sum())
        iou_at = np.asarray([exact_mean(curves[:, k]) for k in range(limit)])
        return InteractiveResult(noc, failed, iou_at, len(curves))


def evaluate_interactive(
    model: nn.Module,
    params: dict,
    samples: Iterable[EvalSample],
    *,
    prompts_per_call: int = 16,
    protocol: InteractiveProtocol | None = None,
    eval_loop: EvalLoop | None = None,
    name: str = "interactive",
) -> InteractiveResult:
    """Runs the interaction for every instance; arguments as `evaluate_one_click`."""
    protocol = protocol or InteractiveProtocol()
    eval_loop = eval_loop or EvalLoop()
    runner = PromptRunner.on(eval_loop, model, params, prompts_per_call, protocol.isolate)
    scorer = runner.scorer(functools.partial(click_curves, protocol=protocol))
    evaluator = InteractiveEvaluator(protocol)
    return eval_loop.run(name, evaluator, samples, scorer).result()


def click_curves(sample: EvalSample, protocol: InteractiveProtocol) -> PromptWork:
    """Gives the IoU after each click, for every scored instance of one image."""
    _, truths = scored_masks(sample, protocol.skip_crowd)
    curves: list[list[float]] = [[] for _ in truths]
    current = [np.zeros(sample.frame_hw, bool) for _ in truths]
    clicks = {i: (*centre_click(truth), True) for i, truth in enumerate(truths)}
    for _ in range(protocol.max_clicks):
        active = sorted(clicks)
        if not active:
            break
        xy = sample.on_canvas([clicks[i][:2] for i in active])
        boxes = click_boxes(xy, sample.image.shape[:2], protocol.click_box_px)
        answers = yield PromptQuery(boxes, np.full(len(active), protocol.point_type))
        for row, i in enumerate(active):
            is_positive = clicks.pop(i)[2]
            masks = answers.masks[row]
            options = (current[i] | masks) if is_positive else (current[i] & ~masks)
            ious = np.asarray([mask_iou(option, truths[i]) for option in options])
            by = ious if protocol.choice == "oracle" else answers.pred_ious[row]
            token = int(np.argmax(by)) if protocol.token is None else protocol.token
            current[i] = options[token]
            curves[i].append(float(ious[token]))
            if ious[token] < max(protocol.thresholds):
                clicks[i] = next_click(truths[i], current[i])
    return tuple(np.asarray(curve) for curve in curves)


def mask_iou(a: np.ndarray, b: np.ndarray) -> float:
    """IoU of two bool masks; 0 where both are empty."""
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 0.0
