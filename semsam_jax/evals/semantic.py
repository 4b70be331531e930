"""Semantic segmentation: mean IoU over classes.

    IoU_c = TP_c / (TP_c + FP_c + FN_c), pixels summed over all images
    mIoU  = mean of IoU_c over the classes that occur in truth or prediction

Pixels without a label are left out altogether, whatever was predicted there.

Source: PASCAL VOC and ADE20k benchmarks.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Int

from semsam_jax.core.errors import DataError
from semsam_jax.evals.evaluator import Evaluator, add_sparse, exact_mean, sparse


@dataclasses.dataclass(frozen=True)
class SemanticResult:
    """Values in 0..1; nan where nothing was labelled.

    Attributes:
        miou: mean over classes.
        pixel_accuracy: share of labelled pixels that got their class.
        class_iou: float64 [v], nan for classes that do not occur.
        confusion: int64 [v, v + 1] pixels by true class and prediction; the last column
            counts pixels without a prediction.
    """

    miou: float
    pixel_accuracy: float
    class_iou: np.ndarray
    confusion: np.ndarray

    def scalars(self) -> dict[str, float]:
        """Flat numbers for a log, percent."""
        return {"miou": 100 * self.miou, "pixel_accuracy": 100 * self.pixel_accuracy}


class SemanticEvaluator(Evaluator):
    """Sums the confusion matrix.

    Args:
        num_classes: classes are 0..num_classes-1; any other truth is unlabelled, any other
            prediction is wrong.
    """

    def __init__(self, num_classes: int) -> None:
        self._size = num_classes
        self.reset()

    def reset(self) -> None:
        """Forgets everything that was processed."""
        self._confusion = np.zeros((self._size, self._size + 1), np.int64)

    def process(self, truth: Int[np.ndarray, "h w"], prediction: Int[np.ndarray, "h2 w2"]) -> None:
        """Adds one image: class of each pixel, for truth and prediction."""
        if truth.shape != prediction.shape:
            raise DataError(
                f"SemanticEvaluator: prediction is {prediction.shape}, truth is {truth.shape}; "
                f"resize the prediction to the annotation."
            )
        is_labelled = (truth >= 0) & (truth < self._size)
        true = truth[is_labelled].astype(np.int64)
        pred = prediction[is_labelled].astype(np.int64)
        pred[(pred < 0) | (pred >= self._size)] = self._size
        columns = self._size + 1
        counts = np.bincount(true * columns + pred, minlength=self._size * columns)
        self._confusion += counts.reshape(self._size, columns)

    def state(self) -> dict:
        """Entries of the confusion matrix that are not zero."""
        return {"confusion": sparse(self._confusion)}

    def add(self, state: Mapping) -> None:
        """Adds the confusion matrix of another evaluator."""
        add_sparse(self._confusion, state["confusion"])

    def result(self) -> SemanticResult:
        """Computes the means of everything processed so far."""
        hit = np.diag(self._confusion).astype(np.float64)
        union = self._confusion.sum(1) + self._confusion[:, :-1].sum(0) - hit
        class_iou = np.divide(hit, union, out=np.full(self._size, np.nan), where=union > 0)
        total = self._confusion.sum()
        return SemanticResult(
            miou=exact_mean(class_iou[union > 0]),
            pixel_accuracy=float(hit.sum() / total) if total else float("nan"),
            class_iou=class_iou,
            confusion=self._confusion.copy(),
        )
