"""A granularity between 0 (the finest part) and 1 (the whole), as a user asks for it.

Every truth mask is clicked at its centre, and the model answers at 0, 0.1, ..., 1. The masks that
contain the click are its chain; with areas A the place of a mask in a chain of several sizes is

    g = (sqrt(A) - sqrt(A_min)) / (sqrt(A_max) - sqrt(A_min))

    given      = mean IoU of a mask and the answer at its own g (rounded to a tenth)
    error      = mean |g of that answer's area, cut to 0..1, - g asked|
    best of k  = mean over masks of the largest IoU that k different answers reach, on average over
                 all choices of k: of the eleven, and of the tokens

What the slider does, over the eleven answers of a click, in the order of g:

    tau        = Kendall's tau-a of g and area: 1 if a larger g never gives a smaller mask
    shrinking  = share of the steps to a larger g whose mask is smaller
    nested     = mean share of a mask that lies inside the mask of a larger g, over all pairs
    jump       = largest change of the area in a step, as a share of the click's largest mask
    distinct   = masks of which no two have IoU 0.9 or more, picked in the order of g

Clicks go on until a mask is good in the protocol of UnSAMv2 (arXiv 2511.13714): the best of the
granularities for every mask, chosen by the truth, which stays the same for all clicks. That is an
oracle; `given` is what a user meets, and best of k is fair to the number of tries. UnSAMv2 tries
ten, from 0.1, which is its finest, to 1.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from semsam_jax.core.structs import Predictions, Pyramid
from semsam_jax.evals.clicks import CLICK_BOX_PX, centre_click, click_boxes
from semsam_jax.evals.eval_loop import EvalLoop
from semsam_jax.evals.evaluator import Evaluator, exact_mean
from semsam_jax.evals.interactive import (
    InteractiveEvaluator,
    InteractiveProtocol,
    InteractiveResult,
    click_curves,
)
from semsam_jax.evals.levels import kendall_tau_descending
from semsam_jax.evals.one_click import scored_masks
from semsam_jax.evals.prompt_runner import PromptQuery, PromptRunner, PromptWork
from semsam_jax.evals.samples import EvalSample
from semsam_jax.inference.granularity import GranularityScale, token_weights
from semsam_jax.models.semantic_sam import SemanticSAM

GRID = tuple(step / 10 for step in range(11))
_SAME_IOU = 0.9


class BlendedModel(nn.Module):
    """A model with the answers to some granularities before those of its own tokens.

    Stands in for the model in `PromptRunner`, with the parameters {"model": those of the model}.

    Attributes:
        model: `SemanticSAM`, or any module with its two methods.
        weights: [g][k], share (0..1) of each of k tokens in the blend of each of g added answers,
            as from `token_weights`; None requests them from the model's granularity token.
    """

    model: nn.Module
    weights: tuple[tuple[float, ...], ...] | None

    def encode_image(self, *args: object, **options: object) -> Pyramid:
        """The image half of the model."""
        return self.model.encode_image(*args, **options)

    def decode_prompts(self, *args: object, **options: object) -> Predictions:
        """The prompt half of the model, with the new answers."""
        if self.weights is not None:
            return _with_blends(self.model.decode_prompts(*args, **options), self.weights)
        prompts = args[1].boxes.shape[:2]
        grid = jnp.broadcast_to(jnp.asarray(GRID, jnp.float32), (*prompts, len(GRID)))
        answer = self.model.decode_prompts(*args, **options, granularity=grid)
        return jax.tree.map(lambda x: jnp.roll(x, len(GRID), axis=3), answer)


def blended_model(
    model: nn.Module, scale: GranularityScale, level_order: Sequence[int]
) -> BlendedModel:
    """The model with the answers to `GRID` in front, as `Predictor` gives them."""
    if isinstance(model, SemanticSAM) and model.config.decoder.granularity_token:
        return BlendedModel(model, None)
    weights = token_weights(scale, GRID, level_order)
    return BlendedModel(model, tuple(map(tuple, weights.tolist())))


@dataclasses.dataclass(frozen=True)
class ContinuousResult:
    """Means over masks (the first three) and over clicks, nan where there is nothing.

    Attributes:
        given: 1-IoU with the granularity from the truth, masks in a chain of several sizes.
        given_all: the same over all masks; a mask alone under its click is asked for with 1.
        error: of the granularity that came, in a chain of several sizes.
        best_of: float64 [11], 1-IoU of the best of 1, 2, ... granularities.
        best_of_tokens: float64 [k], the same of the tokens.
        tau, shrinking, nested, jump, distinct: see the head of the module.
        area: float64 [n, 11] area of each click's answers, as a share of its largest.
        num_masks, num_in_chains, num_clicks: what was averaged.
    """

    given: float
    given_all: float
    error: float
    best_of: np.ndarray
    best_of_tokens: np.ndarray
    tau: float
    shrinking: float
    nested: float
    jump: float
    distinct: float
    area: np.ndarray
    num_masks: int
    num_in_chains: int
    num_clicks: int

    def scalars(self) -> dict[str, float]:
        """Flat numbers for a log; IoU and shares in percent."""
        percent = ("given", "given_all", "shrinking", "nested", "jump")
        out = {name: 100 * float(getattr(self, name)) for name in percent}
        out |= {name: float(getattr(self, name)) for name in ("tau", "error", "distinct")}
        for name, values in (("best_of", self.best_of), ("best_of_tokens", self.best_of_tokens)):
            out |= {f"{name}/{k}": 100 * float(v) for k, v in enumerate(values, start=1)}
        counts = ("num_masks", "num_in_chains", "num_clicks")
        return out | {name: float(getattr(self, name)) for name in counts}


class ContinuousEvaluator(Evaluator):
    """Collects a row for every mask and a row for every click."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forgets everything that was processed."""
        self._rows: dict[str, list[np.ndarray]] = {}

    def process(self, rows: Mapping[str, np.ndarray]) -> None:
        """Takes the rows of one image, column by column (`continuous_rows`)."""
        for name, values in rows.items():
            self._rows.setdefault(name, []).extend(np.asarray(values, np.float64))

    def state(self) -> dict:
        """All rows, column by column."""
        return {name: np.asarray(values) for name, values in self._rows.items()}

    def add(self, state: Mapping) -> None:
        """Adds the rows of another evaluator."""
        self.process(state)

    def result(self) -> ContinuousResult:
        """Computes the means."""
        rows = self.state()
        iou = rows.get("iou", np.zeros((0, len(GRID))))
        asked = rows.get("asked", np.zeros(0))
        given = iou[np.arange(len(iou)), np.rint(10 * asked).astype(int)]
        is_chain = rows.get("is_chain", np.zeros(0)) > 0
        area = rows.get("area", np.zeros((0, len(GRID))))
        step = np.diff(area, axis=1)
        return ContinuousResult(
            given=exact_mean(given[is_chain]),
            given_all=exact_mean(given),
            error=exact_mean(rows.get("error", np.zeros(0))[is_chain]),
            best_of=best_of(iou[:, : len(GRID)]),
            best_of_tokens=best_of(iou[:, len(GRID) :]),
            tau=exact_mean(kendall_tau_descending(area[:, ::-1])),
            shrinking=exact_mean(step < 0),
            nested=exact_mean(rows.get("nested", np.zeros(0))),
            jump=exact_mean(np.abs(step).max(1)) if len(step) else math.nan,
            distinct=exact_mean(rows.get("distinct", np.zeros(0))),
            area=area,
            num_masks=len(iou),
            num_in_chains=int(is_chain.sum()),
            num_clicks=len(area),
        )


def evaluate_continuous(
    model: BlendedModel,
    params: dict,
    samples: Iterable[EvalSample],
    *,
    prompts_per_call: int = 16,
    eval_loop: EvalLoop | None = None,
    name: str = "continuous",
) -> ContinuousResult:
    """Clicks every mask once and looks at the answers to all of `GRID`."""
    eval_loop = eval_loop or EvalLoop()
    runner = PromptRunner.on(eval_loop, model, {"model": params}, prompts_per_call, isolate=True)
    scorer = runner.scorer(continuous_rows)
    return eval_loop.run(name, ContinuousEvaluator(), samples, scorer).result()


def evaluate_best_granularity(
    model: BlendedModel,
    params: dict,
    samples: Iterable[EvalSample],
    columns: Sequence[int],
    *,
    prompts_per_call: int = 16,
    protocol: InteractiveProtocol | None = None,
    eval_loop: EvalLoop | None = None,
    name: str = "continuous_clicks",
) -> InteractiveResult:
    """Clicks with one of some answers throughout; the best of them for every mask.

    Args:
        model: see `blended_model`.
        params: of the model.
        samples: images with masks.
        columns: the answers to choose from, by their place.
        prompts_per_call: clicks of one call; changes no result.
        protocol: limits of the clicking; its choice is not used.
        eval_loop: see `evaluate_one_click`.
        name: of the records.
    """
    protocol = protocol or InteractiveProtocol()
    eval_loop = eval_loop or EvalLoop()
    runner = PromptRunner.on(
        eval_loop, model, {"model": params}, prompts_per_call, protocol.isolate
    )
    work = functools.partial(best_curves, columns=columns, protocol=protocol)
    return eval_loop.run(
        name, InteractiveEvaluator(protocol), samples, runner.scorer(work)
    ).result()


def continuous_rows(sample: EvalSample) -> PromptWork:
    """Gives the rows of one image: a mapping for `ContinuousEvaluator.process`."""
    _, masks = scored_masks(sample, skip_crowd=True)
    if not masks:
        return ({},)
    centres = [centre_click(mask) for mask in masks]
    boxes = click_boxes(sample.on_canvas(centres), sample.image.shape[:2], CLICK_BOX_PX)
    answers = yield PromptQuery(boxes, np.zeros(len(boxes), np.int64))
    seen: set[tuple[int, int]] = set()
    of_masks, of_clicks = [], []
    for mask, (x, y), found in zip(masks, centres, answers.masks, strict=True):
        chain = np.array([m.sum() for m in masks if m[y, x]], np.float64)
        of_masks.append(mask_row(mask, chain, found))
        if (x, y) not in seen:
            seen.add((x, y))
            of_clicks.append(click_row(found[: len(GRID)]))
    joined = {
        name: np.stack([row[name] for row in rows])
        for rows in (of_masks, of_clicks)
        for name in rows[0]
    }
    return (joined,)


def best_curves(
    sample: EvalSample, columns: Sequence[int], protocol: InteractiveProtocol
) -> PromptWork:
    """IoU after each click of every mask, of the best answer at that number of clicks.

    A threshold is reached by the best answer as soon as by any, so that numbers of clicks are those
    of the answer with the fewest.
    """
    best: list[np.ndarray] = []
    for column in columns:
        fixed = dataclasses.replace(protocol, token=column)
        curves = yield from click_curves(sample, fixed)
        full = [np.pad(c, (0, protocol.max_clicks - len(c)), mode="edge") for c in curves]
        best = full if not best else [np.maximum(a, b) for a, b in zip(best, full, strict=True)]
    return tuple(best)


def chain_place(area: float, chain: Float[np.ndarray, " c"]) -> float:
    """Granularity of an area in a chain, cut to 0..1; 1 in a chain of one size."""
    low, high = math.sqrt(chain.min()), math.sqrt(chain.max())
    if high <= low:
        return 1.0
    return min(1.0, max(0.0, (math.sqrt(area) - low) / (high - low)))


def mask_row(
    mask: Bool[np.ndarray, "h w"], chain: Float[np.ndarray, " c"], found: Bool[np.ndarray, "k h w"]
) -> dict[str, np.ndarray]:
    """What the answers to a click say of one mask under it.

    Args:
        mask: the truth.
        chain: areas of all masks that contain the click.
        found: the answers to `GRID`, then those of the tokens.
    """
    shared = (found & mask).sum((1, 2))
    iou = shared / np.maximum(1, (found | mask).sum((1, 2)))
    asked = round(10 * chain_place(float(mask.sum()), chain)) / 10
    got = chain_place(float(found[round(10 * asked)].sum()), chain)
    return {
        "iou": iou,
        "asked": np.float64(asked),
        "error": np.float64(abs(got - asked)),
        "is_chain": np.float64(chain.max() > chain.min()),
    }


def click_row(found: Bool[np.ndarray, "g h w"]) -> dict[str, np.ndarray]:
    """What the answers to one click say of the slider, in the order of g."""
    flat = found.reshape(len(found), -1).astype(np.float32)
    shared = (flat @ flat.T).astype(np.float64)  # sums of zeros and ones below 2^24: exact
    area = shared.diagonal().copy()
    small, large = np.triu_indices(len(found), k=1)
    has_pixels = area[small] > 0
    inside = shared[small, large][has_pixels] / area[small][has_pixels]
    union = np.maximum(1, area[:, None] + area[None] - shared)
    kept: list[int] = []
    for i in np.flatnonzero(area):
        if all(shared[i, k] / union[i, k] < _SAME_IOU for k in kept):
            kept.append(int(i))
    return {
        "area": area / max(1.0, area.max()),
        "nested": np.float64(exact_mean(inside) if len(inside) else 0.0),
        "distinct": np.float64(len(kept)),
    }


def best_of(iou: Float[np.ndarray, "n k"]) -> Float[np.ndarray, " k"]:
    """Mean of the best of 1, 2, ..., k columns, on average over all choices of that many.

    The i-th smallest of k values is the best of j drawn ones with chance C(i - 1, j - 1) / C(k, j).
    """
    ordered = np.sort(iou, axis=1)
    count = iou.shape[1]
    means = []
    for tries in range(1, count + 1):
        chance = [math.comb(i, tries - 1) / math.comb(count, tries) for i in range(count)]
        means.append(exact_mean(ordered @ np.asarray(chance)))
    return np.asarray(means)


def _with_blends(answer: Predictions, weights: Sequence[Sequence[float]]) -> Predictions:
    """Answers [l, b, p, k, ...] with the weighted sums of the tokens in front of them.

    The masks of summed embeddings have the sums of the logits; limits are those of the prompt.
    """
    shares = np.asarray(weights, np.float32)

    def blended(x: Array | None) -> Array | None:
        if x is None:
            return None
        mixed = jnp.einsum("gk,lbpk...->lbpg...", shares, x, precision=jax.lax.Precision.HIGHEST)
        return jnp.concatenate([mixed.astype(x.dtype), x], axis=3)

    return Predictions(
        mask_embed=blended(answer.mask_embed),
        boxes=blended(answer.boxes),
        pred_ious=blended(answer.pred_ious),
        mask_limits=blended(answer.mask_limits),
    )
