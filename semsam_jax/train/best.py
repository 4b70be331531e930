"""Keeps the best model of a run, by validation score."""

import math
import os
import shutil
from collections.abc import Mapping

import jax
from jax.experimental import multihost_utils

from semsam_jax.core import checkpoint_io
from semsam_jax.core.model_files import has_model, save_model
from semsam_jax.core.paths import as_path, is_local

FOLDER = "best"
_SCORED_ON = ("eval_dataset", "eval_images")
"""Keys of the configuration that decide which images a score is of."""


class BestCheckpoint:
    """WORKDIR/best holds the model with the highest score so far.

    Args:
        workdir: folder of the run.
        is_on: False disables it.
        config: `RunConfig.to_dict()`; scores of other validation images are not compared.
        is_resumed: what an earlier part of the run kept counts. Otherwise a model that is there is
            of another run, whose score means nothing here; it is renamed.

    Attributes:
        folder: where the model is.
        score: of the model that is kept, None without one.
        step: at which it was made.
        evaluation: what `HeldOutEvaluation.run` found then; empty if unknown.
        note: what happened to a model that was there, or "".
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        is_on: bool,
        config: Mapping | None = None,
        is_resumed: bool = True,
    ):
        self.folder = as_path(workdir) / FOLDER
        self._is_on = is_on
        self.score: float | None = None
        self.step: int | None = None
        self.evaluation: dict = {}
        self.note = ""
        if not has_model(self.folder) and not checkpoint_io.complete_steps(self.folder):
            return
        meta = checkpoint_io.read_meta(self.folder)
        changed = [
            f"{key} was {meta['config'].get(key)!r}"
            for key in _SCORED_ON
            if config is not None and config[key] != meta.get("config", config).get(key)
        ]
        if not is_resumed or (is_on and changed):
            self._set_aside("; ".join(changed) or "it is of an earlier run in this workdir")
        elif is_on:
            self.score, self.step = meta["score"], meta["step"]
            self.evaluation = meta.get("evaluation") or {}

    def update(self, found: Mapping, params: Mapping, meta: Mapping, step: int) -> bool:
        """Keeps a model if its score is the highest so far or equals it.

        A run that leaves the masks as they are still learns names.

        Args:
            found: its evaluation; the score is the mean IoU of one click, `iou_max`.
            params: whole arrays, as inference uses them.
            meta: of the run.
            step: of the run.

        Returns:
            Whether it was kept.
        """
        score = found["iou_max"]
        if not self._is_on or math.isnan(score):  # images without masks have no score
            return False
        if self.score is not None and score < self.score:
            return False
        self.score, self.step, self.evaluation = score, step, dict(found)
        if jax.process_index() == 0:
            about = {**meta, "score": score, "step": step, "evaluation": self.evaluation}
            save_model(self.folder, jax.device_get(params), about, overwrite=True)
        return True

    def _set_aside(self, why: str) -> None:
        """Renames a model whose score cannot be compared with those of this run."""
        aside = self.folder.with_name(f"{FOLDER}-earlier")
        self.note = f"{self.folder} does not count in this run ({why}); renamed {aside.name}"
        if jax.process_count() > 1:  # all have read it
            multihost_utils.sync_global_devices(f"{self.folder} is set aside")
        if jax.process_index() == 0:
            if aside.exists():
                shutil.rmtree(aside) if is_local(aside) else aside.rmtree()
            self.folder.rename(aside)
