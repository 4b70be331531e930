"""Evaluation within a run: held-out images, spread over all devices and processes."""

from collections.abc import Mapping, Sequence
from types import ModuleType

import jax
import numpy as np
from flax import linen as nn
from jax.experimental import multihost_utils

from semsam_jax.core import lora
from semsam_jax.evals.dataset_samples import EvalDataset
from semsam_jax.evals.eval_loop import EvalLoop
from semsam_jax.evals.extra import load_suites
from semsam_jax.evals.levels import calibrate_levels
from semsam_jax.evals.one_click import OneClickResult, evaluate_one_click
from semsam_jax.train.state import TrainState
from semsam_jax.train.writers import MetricWriter


def inference_params(state: TrainState) -> dict:
    """The parameters of a state as inference uses them: averaged where the run averages,
    with low-rank updates merged, and whole on every process. All processes call it.
    """
    params = state.params if state.ema_params is None else state.ema_params
    if jax.process_count() > 1:
        params = multihost_utils.process_allgather(params, tiled=True)
    return lora.merged(params)


class HeldOutEvaluation:
    """Scores held-out images: one click per human-made instance, and other suites on demand.

    Args:
        model: the network.
        data: the images; None turns the evaluation off.
        meta: of the checkpoints that the run writes.
        suites: names of `evals.suites.SUITES`.
        parts: images on which AP of parts is measured as well; None measures none.

    Attributes:
        result: clicks of the last evaluation.
        params: that it was made with, as inference uses them.
    """

    def __init__(
        self,
        model: nn.Module,
        data: EvalDataset | None,
        meta: Mapping,
        suites: Sequence[str] = ("one_click",),
        parts: EvalDataset | None = None,
    ):
        self._parts = parts
        self._model, self._data, self._meta, self._suites = model, data, meta, tuple(suites)
        self.result: OneClickResult | None = None
        self.params: dict = {}

    def run(self, state: TrainState, writer: MetricWriter) -> dict | None:
        """Evaluates a state; returns {"iou_max", "iou_oracle", "num_instances"} in 0..1."""
        if self._data is None:
            return None
        self.params = inference_params(state)
        images = self._data.samples()
        count = max(1, min(len(images), len(jax.local_devices())))
        eval_loop = EvalLoop(devices=tuple(jax.local_devices()[:count]))
        self.result = evaluate_one_click(self._model, self.params, images, eval_loop=eval_loop)
        scalars = {f"one_click/{name}": value for name, value in self.result.scalars().items()}
        scalars |= self._others(eval_loop)
        # The figures of one click keep the short names that dashboards show first; what the
        # images say nothing about (no such size or class among them) is left out.
        named = {f"eval/{k.removeprefix('one_click/')}": v for k, v in scalars.items()}
        known = {name: value for name, value in named.items() if not np.isnan(value)}
        writer.write_scalars(int(state.step), known)
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

    def _others(self, eval_loop: EvalLoop) -> dict[str, float]:
        """Scalars of the suites beside one click; their libraries are an extra."""
        names = [name for name in self._suites if name != "one_click"]
        if not names and self._parts is None:
            return {}
        suites = load_suites()
        wanted = [(name, self._data) for name in names]
        wanted += [("part", self._parts)] if self._parts is not None else []
        scalars: dict[str, float] = {}
        for name, data in wanted:
            if name == "levels" and not len(self.result.table):
                continue  # without a click no level has a size
            scalars |= suites.SUITES[name](self._context(suites, data, eval_loop)).scalars
        return scalars

    def _context(self, suites: ModuleType, data: EvalDataset, eval_loop: EvalLoop) -> object:
        context = suites.EvalContext(
            model=self._model,
            params=self.params,
            meta=self._meta,
            clicked=data.samples(),
            images=data.image_samples(),
            whole=data.canvas_samples(),
            class_list=data.class_list,
            eval_loop=eval_loop,
        )
        if data is self._data:
            context.clicks = self.result  # measured already
        return context
