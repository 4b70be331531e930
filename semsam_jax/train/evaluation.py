"""Evaluation within a run: held-out images, spread over all devices and processes."""

from collections.abc import Callable, Mapping, Sequence
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
from semsam_jax.evals.one_click import OneClickResult, class_figures, evaluate_one_click
from semsam_jax.evals.samples import ClassNames
from semsam_jax.evals.thresholds import measure_thresholds
from semsam_jax.inference.loading import model_from_params
from semsam_jax.text.tables import table_of
from semsam_jax.train.state import TrainState
from semsam_jax.train.writers import MetricWriter

_NAMED_FIGURES = {
    "mask_ap": "generic/mask_ap/ap",
    "mask_ap50": "generic/mask_ap/ap50",
    "name_accuracy": "names/accuracy",
}
_IMAGES_FOR_THRESHOLDS = 12
_POINTS_PER_SIDE = 16
_MAX_CLASSES = 50
"""Per-class figures of longer lists are not logged."""


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
        suites: names of `evals.suites.SUITES`; `generic` on images with parts brings `part`.
        parts: images on which AP of parts is measured as well; None measures none.
        is_stopped: asked before each image.

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
        is_stopped: Callable[[], bool] = lambda: False,
    ):
        self._parts, self._is_stopped = parts, is_stopped
        self._model, self._data, self._meta, self._suites = model, data, meta, tuple(suites)
        self.result: OneClickResult | None = None
        self.params: dict = {}

    def run(self, state: TrainState, writer: MetricWriter) -> dict | None:
        """Evaluates a state.

        Returns:
            iou_max and iou_oracle in 0..1, and num_instances; where names are evaluated,
            mask_ap, mask_ap50 and name_accuracy in 0..1; where the data has classes, `classes`,
            the figures of each (`evals.report.CLASS_FIGURES`). None without images.

        Raises:
            EvaluationStopped: when `is_stopped` says so.
        """
        if self._data is None:
            return None
        self.params = inference_params(state)
        images = self._data.samples()
        count = max(1, min(len(images), len(jax.local_devices())))
        devices = tuple(jax.local_devices()[:count])
        eval_loop = EvalLoop(devices=devices, is_stopped=self._is_stopped)
        self.result = evaluate_one_click(self._model, self.params, images, eval_loop=eval_loop)
        scalars = {f"one_click/{name}": value for name, value in self.result.scalars().items()}
        others, classes = self._others(eval_loop)
        scalars |= others
        if len(classes) <= _MAX_CLASSES:
            scalars |= {
                f"class/{name}/{key}": value
                for name, row in classes.items()
                for key, value in row.items()
                if key != "masks"
            }
        # The figures of one click keep the short names that dashboards show first; what the
        # images say nothing about (no such size or class among them) is left out.
        named = {f"eval/{k.removeprefix('one_click/')}": v for k, v in scalars.items()}
        known = {name: value for name, value in named.items() if not np.isnan(value)}
        writer.write_scalars(int(state.step), known)
        found = {
            "iou_max": float(np.round(self.result.iou_max, 6)),
            "iou_oracle": float(np.round(self.result.iou_oracle, 6)),
            "num_instances": self.result.num_instances,
        }
        for name, key in _NAMED_FIGURES.items():
            if f"eval/{key}" in known:
                found[name] = round(known[f"eval/{key}"] / 100, 6)
        return found | ({"classes": classes} if classes else {})

    def levels(self) -> dict[str, list]:
        """What the last evaluation says of the levels, for the meta; nothing without a click."""
        if self.result is None or not len(self.result.table):
            return {}
        found = calibrate_levels(self.result.table)
        return {"level_order": list(found.level_order), "level_sizes": list(found.level_sizes)}

    def names(self) -> ClassNames | None:
        """The classes of the images that the model can name; None where it names none."""
        if self._data is None or not self._meta.get("class_heads_trained"):
            return None
        source = (self._meta.get("text") or {}).get("source")
        if source == "none" or not self._data.has_classes:
            return None
        names = self._data.class_names()
        if source != "table":
            return names
        table = table_of(self._meta["text"], None)

        def known(group: Mapping[int, str]) -> dict[int, str]:
            # As in training, where names with the row of another one are not learned.
            found = (table.find_own(list(group.values()), [0] * len(group)) >= 0).tolist()
            return {
                n: text
                for (n, text), is_known in zip(group.items(), found, strict=True)
                if is_known
            }

        return ClassNames(known(names.objects), known(names.parts))

    def thresholds(self, params: dict, meta: Mapping) -> dict[str, dict[str, float]]:
        """Thresholds of a model (`evals.thresholds`); nothing without images or prompts.

        Args:
            params: whole, as inference uses them.
            meta: of the model.
        """
        if self._data is None or not meta.get("prompts_trained", True):
            return {}
        names = self.names() or ClassNames()
        return measure_thresholds(
            model_from_params(jax.device_get(params), dict(meta), cache_programs=True),
            self._data.samples(),
            names.objects,
            names.parts,
            max_images=_IMAGES_FOR_THRESHOLDS,
        )

    def _others(self, eval_loop: EvalLoop) -> tuple[dict[str, float], dict[str, dict]]:
        """Scalars of the other suites than one_click, and scores of each class."""
        names = [name for name in self._suites if name != "one_click"]
        class_names = self._data.class_names()
        classes = class_figures(self.result.table, class_names)
        if not names and self._parts is None:
            return {}, classes
        suites = load_suites()
        wanted = [(name, self._data) for name in names]
        names_parts = class_names.parts and self._meta.get("parts_trained", True)
        if names_parts and "generic" in names and "part" not in names and self._parts is None:
            wanted.append(("part", self._data))
        scalars: dict[str, float] = {}
        if self._parts is not None and self._meta.get("class_heads_trained"):
            wanted.append(("part", self._parts))
        elif self._parts is not None:
            scalars |= self._clicked_parts(eval_loop)
        for name, data in wanted:
            if name == "levels" and not len(self.result.table):
                continue  # without a click no level has a size
            outcome = suites.SUITES[name](self._context(suites, data, eval_loop))
            scalars |= outcome.scalars
            # Parts of another dataset have classes of their own.
            for text, figures in outcome.by_class.items() if data is self._data else ():
                classes.setdefault(text, {}).update(figures)
        return scalars, classes

    def _clicked_parts(self, eval_loop: EvalLoop) -> dict[str, float]:
        """IoU of a click on each part, of a model that knows no names."""
        parts = self._parts.samples("part")
        result = evaluate_one_click(self._model, self.params, parts, eval_loop=eval_loop)
        return {f"part/click/{name}": value for name, value in result.scalars().items()}

    def _context(self, suites: ModuleType, data: EvalDataset, eval_loop: EvalLoop) -> object:
        context = suites.EvalContext(
            model=self._model,
            params=self.params,
            meta={**self._meta, **self.levels()},  # as the checkpoint of this state will have it
            clicked=data.samples(),
            images=data.image_samples(),
            whole=data.canvas_samples(),
            class_list=data.class_list,
            class_names=data.class_names,
            eval_loop=eval_loop,
            points_per_side=_POINTS_PER_SIDE,
        )
        if data is self._data:
            context.clicks = self.result  # measured already
        return context
