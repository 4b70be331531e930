"""Keeps the best model of a run, by validation score."""

import math
from pathlib import Path

import jax

from semsam_jax.core import checkpoint_io
from semsam_jax.core.model_files import has_model, save_model

FOLDER = "best"


class BestCheckpoint:
    """WORKDIR/best holds the model with the highest score so far.

    Args:
        workdir: folder of the run; what an earlier part of the run kept counts.
        is_on: False keeps nothing.
    """

    def __init__(self, workdir: Path, is_on: bool):
        self._folder = workdir / FOLDER
        self._is_on = is_on
        self.score: float | None = None
        if is_on and (has_model(self._folder) or checkpoint_io.complete_steps(self._folder)):
            self.score = checkpoint_io.read_meta(self._folder)["score"]

    def update(self, score: float, params: dict, meta: dict, step: int) -> bool:
        """Keeps a model if its score is the highest so far.

        Args:
            score: mean IoU on the validation images, 0..1.
            params: whole arrays, as inference uses them.
            meta: of the run.
            step: of the run.

        Returns:
            Whether it was kept.
        """
        if not self._is_on or math.isnan(score):  # images without a mask have no score
            return False
        if self.score is not None and score <= self.score:
            return False
        self.score = score
        if jax.process_index() == 0:
            self._write(params, {**meta, "score": score, "step": step})
        return True

    def _write(self, params: dict, meta: dict) -> None:
        save_model(self._folder, jax.device_get(params), meta, overwrite=True)
