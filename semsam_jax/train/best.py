"""Keeps the best model of a run, by validation score."""

import math
import os
from collections.abc import Mapping

import jax

from semsam_jax.core import checkpoint_io
from semsam_jax.core.model_files import has_model, save_model
from semsam_jax.core.paths import as_path

FOLDER = "best"


class BestCheckpoint:
    """WORKDIR/best holds the model with the highest score so far.

    Args:
        workdir: folder of the run; what an earlier part of the run kept counts.
        is_on: False disables it.

    Attributes:
        folder: where the model is.
        score: of the model that is kept, None without one.
        step: at which it was made.
        evaluation: what `HeldOutEvaluation.run` found then; empty if unknown.
    """

    def __init__(self, workdir: str | os.PathLike, is_on: bool):
        self.folder = as_path(workdir) / FOLDER
        self._is_on = is_on
        self.score: float | None = None
        self.step: int | None = None
        self.evaluation: dict = {}
        if is_on and (has_model(self.folder) or checkpoint_io.complete_steps(self.folder)):
            meta = checkpoint_io.read_meta(self.folder)
            self.score, self.step = meta["score"], meta["step"]
            self.evaluation = meta.get("evaluation") or {}

    def update(self, found: Mapping, params: Mapping, meta: Mapping, step: int) -> bool:
        """Keeps a model if its score is the highest so far.

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
        if self.score is not None and score <= self.score:
            return False
        self.score, self.step, self.evaluation = score, step, dict(found)
        if jax.process_index() == 0:
            about = {**meta, "score": score, "step": step, "evaluation": self.evaluation}
            save_model(self.folder, jax.device_get(params), about, overwrite=True)
        return True
