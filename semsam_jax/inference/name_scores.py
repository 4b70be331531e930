"""Scores of names: probabilities that a name is right, as far as a checkpoint was calibrated.

Focal losses leave scores of rare classes low. A checkpoint stores a line for the logits of each
kind of names (`name_scales` in its meta, written by `calibrate --names` and at the end of a run),
which makes scores honest and changes no order.

Source: Platt, Probabilistic outputs for support vector machines, 1999.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from scipy.special import expit

from semsam_jax.core.errors import CheckpointError

KINDS = ("object", "part")


@dataclasses.dataclass(frozen=True)
class ScoreScale:
    """score = sigmoid(gain * logit + offset).

    Attributes:
        gain: above 0.
        offset: in logits.
    """

    gain: float = 1.0
    offset: float = 0.0

    def scores(self, logits: np.ndarray | float) -> np.ndarray:
        """Scores of logits, float64 in 0..1."""
        return np.asarray(expit(self.gain * np.asarray(logits, np.float64) + self.offset))


AS_THEY_ARE = (ScoreScale(), ScoreScale())
"""Scales of objects and parts that change nothing."""


def name_scales(meta: Mapping) -> tuple[ScoreScale, ScoreScale]:
    """Scales of object and part names, as the checkpoint says.

    Raises:
        CheckpointError: what it stores is no scale.
    """
    stored = meta.get("name_scales")
    found = []
    for kind in KINDS:
        values = (1.0, 0.0) if stored is None else stored.get(kind, (1.0, 0.0))
        try:
            gain, offset = (float(value) for value in values)
        except (TypeError, ValueError):
            gain = offset = np.nan
        if not (np.isfinite(offset) and 0 < gain < np.inf):
            raise CheckpointError(
                f"meta.name_scales.{kind}: got {str(values)[:60]}; expected a gain above 0 and an "
                f"offset: run `semsam calibrate --names` on this checkpoint."
            )
        found.append(ScoreScale(gain, offset))
    return tuple(found)
