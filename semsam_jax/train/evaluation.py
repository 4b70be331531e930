"""One-click evaluation within a run, and the picture of what was learned."""

import jax
import numpy as np

from semsam_jax.core import lora
from semsam_jax.evals.levels import calibrate_levels
from semsam_jax.evals.one_click import OneClickResult, evaluate_one_click
from semsam_jax.evals.samples import EvalSample
from semsam_jax.models.semantic_sam import SemanticSAM
from semsam_jax.train.state import TrainState
from semsam_jax.train.writers import MetricWriter


class Evaluator:
    """Scores held-back photos with one click per human-made instance.

    Args:
        model: the network.
        samples: the photos; empty turns the evaluation off.

    Attributes:
        result: of the last evaluation.
        params: that it was made with, as inference uses them.
    """

    def __init__(self, model: SemanticSAM, samples: list[EvalSample]):
        self._model, self._samples = model, samples
        self.result: OneClickResult | None = None
        self.params: dict = {}

    def run(self, state: TrainState, writer: MetricWriter) -> dict | None:
        """Evaluates a state; returns {"iou_max", "iou_oracle", "num_instances"} in 0..1."""
        if not self._samples:
            return None
        params = state.params if state.ema_params is None else state.ema_params
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            params = multihost_utils.process_allgather(params, tiled=True)
        self.params = lora.merged(params)
        self.result = evaluate_one_click(self._model, self.params, self._samples)
        scalars = {f"eval/{key}": value for key, value in self.result.scalars().items()}
        writer.write_scalars(int(state.step), scalars)
        return {
            "iou_max": float(np.round(self.result.iou_max, 6)),
            "iou_oracle": float(np.round(self.result.iou_oracle, 6)),
            "num_instances": self.result.num_instances,
        }

    def level_order(self, current: list[int]) -> list[int]:
        """Token of level 1..k by mean mask area of the last evaluation."""
        if self.result is None or not len(self.result.table):
            return current
        return list(calibrate_levels(self.result.table).level_order)
