"""Box-prompt IoU: the tight box of every ground-truth mask is the prompt.

    Max and Oracle as in `one_click`, with a box instead of a click

Source: arXiv 2307.04767, ablation on box prompts (docs/reference.md, section 15: 76.1 on COCO,
Swin-T).
"""

import dataclasses
import functools
from collections.abc import Iterable

import numpy as np
from flax import linen as nn

from semsam_jax.evals.eval_loop import EvalLoop
from semsam_jax.evals.one_click import (
    OneClickEvaluator,
    OneClickResult,
    clicks_of,
    scored_masks,
    tabulate,
)
from semsam_jax.evals.prompt_runner import PromptRunner, PromptWork
from semsam_jax.evals.samples import EvalSample


@dataclasses.dataclass(frozen=True)
class BoxProtocol:
    """How boxes are passed to the model.

    Attributes:
        box_type: type index of a box (1 in our own training, 0 for released weights).
        isolate: prompts of a call do not see each other.
        skip_crowd: crowd regions are no samples.
    """

    box_type: int = 1
    isolate: bool = True
    skip_crowd: bool = True


def evaluate_box_prompt(
    model: nn.Module,
    params: dict,
    samples: Iterable[EvalSample],
    *,
    prompts_per_call: int = 16,
    protocol: BoxProtocol | None = None,
    eval_loop: EvalLoop | None = None,
    name: str = "box",
) -> OneClickResult:
    """Prompts every instance with its tight box; arguments as `evaluate_one_click`."""
    protocol = protocol or BoxProtocol()
    eval_loop = eval_loop or EvalLoop()
    runner = PromptRunner.on(eval_loop, model, params, prompts_per_call, protocol.isolate)
    scorer = runner.scorer(functools.partial(box_all, protocol=protocol))
    return eval_loop.run(name, OneClickEvaluator(), samples, scorer).result()


def box_all(sample: EvalSample, protocol: BoxProtocol) -> PromptWork:
    """Gives the rows of one image and the number of its masks that were not scored."""
    rows, masks = scored_masks(sample, protocol.skip_crowd)
    types = np.full(len(rows), protocol.box_type)
    clicks_xy, boxes = clicks_of(sample, rows, masks), box_prompts(sample, masks)
    table = yield from tabulate(sample, rows, masks, clicks_xy, boxes, types)
    return table, len(sample.masks) - len(rows) + sample.num_lost


def box_prompts(sample: EvalSample, masks: list[np.ndarray]) -> np.ndarray:
    """Tight boxes of masks of the scored frame: float32 [n, 4] cxcywh, fractions of the canvas."""
    boxes = np.asarray([tight_box(mask) for mask in masks], np.float64).reshape(-1, 4)
    # Pixels of the scored frame, to pixels of the valid canvas, to fractions of the canvas.
    share = np.asarray(sample.size_hw) / sample.frame_hw / sample.image.shape[:2]
    return (boxes * np.tile(share[::-1], 2)).astype(np.float32)


def tight_box(mask: np.ndarray) -> tuple[float, float, float, float]:
    """Box around a non-empty bool mask: cxcywh in pixels, right and lower edge exclusive."""
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x0, x1, y0, y1 = xs[0], xs[-1] + 1, ys[0], ys[-1] + 1
    return (x0 + x1) / 2, (y0 + y1) / 2, float(x1 - x0), float(y1 - y0)
