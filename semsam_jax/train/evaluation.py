"""Evaluation within a run: held-back photos, spread over all devices and processes."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from flax import linen as nn

from semsam_jax.core import lora
from semsam_jax.evals.dataset_samples import EvalDataset
from semsam_jax.evals.driver import Driver
from semsam_jax.evals.levels import calibrate_levels
from semsam_jax.evals.one_click import OneClickResult
from semsam_jax.evals.suites import SUITES, Setting
from semsam_jax.train.state import TrainState
from semsam_jax.train.writers import MetricWriter


class Evaluator:
    """Scores held-back photos: one click per human-made instance, and other suites on demand.

    Args:
        model: the network.
        data: the photos; None turns the evaluation off.
        meta: of the checkpoints that the run writes.
        suites: names of `evals.suites.SUITES`.

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
    ):
        self._model, self._data, self._meta, self._suites = model, data, meta, tuple(suites)
        self.result: OneClickResult | None = None
        self.params: dict = {}

    def run(self, state: TrainState, writer: MetricWriter) -> dict | None:
        """Evaluates a state; returns {"iou_max", "iou_oracle", "num_instances"} in 0..1."""
        if self._data is None:
            return None
        params = state.params if state.ema_params is None else state.ema_params
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            params = multihost_utils.process_allgather(params, tiled=True)
        self.params = lora.merged(params)
        setting = self._setting()
        self.result = setting.clicks
        scalars = {f"one_click/{name}": value for name, value in self.result.scalars().items()}
        for name in self._suites:
            scalars |= SUITES[name](setting).scalars
        # The figures of one click keep the short names that dashboards show first; what the
        # photos say nothing about (no such size or class among them) is left out.
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

    def _setting(self) -> Setting:
        data = self._data
        count = min(len(data.samples()), len(jax.local_devices()))
        return Setting(
            model=self._model,
            params=self.params,
            meta=self._meta,
            clicked=data.samples(),
            photos=data.photo_samples(),
            whole=data.canvas_samples(),
            class_list=data.class_list,
            driver=Driver(devices=tuple(jax.local_devices()[: max(1, count)])),
        )
