"""The suite `continuous`: rows and scores of `evals.continuous` for one checkpoint."""

from collections.abc import Iterable, Mapping

from flax import linen as nn

from semsam_jax.evals.continuous import (
    GRID,
    ContinuousResult,
    blended_model,
    evaluate_best_granularity,
    evaluate_continuous,
)
from semsam_jax.evals.eval_loop import EvalLoop
from semsam_jax.evals.report import TableRow
from semsam_jax.evals.samples import EvalSample
from semsam_jax.inference.granularity import granularity_scale


def measure_continuous(
    model: nn.Module,
    params: dict,
    meta: Mapping,
    samples: Iterable[EvalSample],
    prompts_per_call: int,
    eval_loop: EvalLoop,
) -> tuple[ContinuousResult, list[TableRow], dict[str, float], dict[str, str]]:
    """Measures everything.

    Returns:
        The result of the clicks for the picture, rows of the table, scores, and notes.
    """
    order = list(meta["level_order"])
    scale = granularity_scale(meta, len(order))
    blended = blended_model(model, scale, order)
    common = {"prompts_per_call": prompts_per_call, "eval_loop": eval_loop}
    result = evaluate_continuous(blended, params, samples, **common)
    rows = _rows(result)
    scalars = {f"continuous/{name}": value for name, value in result.scalars().items()}
    grid = range(len(GRID))
    tokens = range(len(GRID), len(GRID) + len(order))
    for key, name, columns in (
        ("continuous_clicks", f"best of {len(grid)} granularities", grid),
        ("continuous_clicks_tokens", f"best of {len(order)} tokens", tokens),
    ):
        found = evaluate_best_granularity(blended, params, samples, columns, name=key, **common)
        scalars |= {f"{key}/{scalar}": value for scalar, value in found.scalars().items()}
        for q, value in found.noc.items():
            note = f"oracle; clicks, lower is better; {found.failed[q]} never got there"
            rows.append(TableRow(f"NoC@{round(100 * q)}, {name}", value, "", note))
    stops = ", ".join(f"{stop:.2f}" for stop in scale.stops)
    kind = "calibrated" if scale.is_calibrated else "even: never calibrated"
    notes = {f"granularity of level 1 to {len(order)} ({kind})": stops}
    return result, rows, scalars, notes


def _rows(result: ContinuousResult) -> list[TableRow]:
    chains = f"{result.num_in_chains} of {result.num_masks} masks share their click with others"
    rows = [
        TableRow("1-IoU at the ground-truth granularity", 100 * result.given, "", chains),
        TableRow("the same with single masks at 1", 100 * result.given_all),
        TableRow(
            "|obtained - requested granularity| x 100", 100 * result.error, "", "lower is better"
        ),
    ]
    for name, values in (("granularities", result.best_of), ("tokens", result.best_of_tokens)):
        rows += [
            TableRow(f"1-IoU, best of {k} {name}", 100 * float(value), "", "oracle")
            for k, value in enumerate(values, start=1)
        ]
    clicks = f"{result.num_clicks} clicks"
    return [
        *rows,
        TableRow("Kendall's tau of granularity and area x 100", 100 * result.tau, "", clicks),
        TableRow(
            "steps at which the mask shrinks, %", 100 * result.shrinking, "", "lower is better"
        ),
        TableRow("share of a mask inside larger granularities, %", 100 * result.nested),
        TableRow("largest change of area in a step of 0.1, %", 100 * result.jump),
        TableRow("distinct masks of a click (IoU below 0.9)", result.distinct),
    ]
