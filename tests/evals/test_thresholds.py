from types import SimpleNamespace

import numpy as np
import pytest

from semsam_jax.evals import thresholds
from semsam_jax.evals.samples import EvalSample
from semsam_jax.evals.thresholds import best_threshold, mask_thresholds, with_stored
from semsam_jax.inference.loading import load_model


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ([(0.9, True), (0.8, True), (0.3, False), (0.2, False)], 0.8),
        ([(0.9, True), (0.5, False), (0.4, True), (0.3, True)], 0.3),  # F1 0.75, 0.4 at 0.9
        ([(0.9, False), (0.8, False)], 1.0),  # never right: never sure
        ([(0.5, True)], 0.5),
        ([(0.5, True), (0.5, False), (0.5, False)], 0.5),  # all of one score, or none of them
    ],
)
def test_the_threshold_of_names_has_the_best_f1(rows, wanted):
    scores, is_right = map(np.array, zip(*rows, strict=True))
    assert best_threshold(scores, is_right) == wanted


def test_a_calibration_without_parts_leaves_those_that_were_measured_before():
    meta = {
        "name_scales": {"object": [1.0, 0.0], "part": [2.0, 1.0]},
        "name_thresholds": {"object": 0.3, "part": 0.2},
    }
    found = {"name_scales": {"object": [3.0, 0.5]}, "mask_thresholds": {"pred_iou": 0.6}}
    assert with_stored(meta, found) == {
        "name_scales": {"object": [3.0, 0.5], "part": [2.0, 1.0]},
        "mask_thresholds": {"pred_iou": 0.6},
    }


class Images:
    """Samples of a dataset in memory (`eval_loop.SampleSource`)."""

    def __init__(self, samples):
        self._samples = samples

    def __len__(self):
        return len(self._samples)

    def read(self, positions):
        return (self._samples[at] for at in positions)


def test_the_images_are_spread_over_all(checkpoint, monkeypatch):
    """The first ones of a sorted folder would often be of one class or one day."""
    seen = []

    class Answers:
        def __init__(self, model):
            pass

        def set_image(self, image):
            seen.append(int(image[0, 0, 0]))

        def predict_many(self, requests, multimask_output):
            logits = np.full((1, 16, 16), 2.0, np.float32)
            return [SimpleNamespace(low_res_logits=logits, scores=np.ones(1, np.float32))]

    monkeypatch.setattr(thresholds, "Predictor", Answers)
    images = [
        EvalSample(np.full((64, 64, 3), n, np.uint8), (64, 64), [], str(n)) for n in range(101)
    ]
    mask_thresholds(load_model(checkpoint), Images(images), max_images=3)
    assert seen == [0, 50, 100]


def test_stability_is_that_of_the_image_without_its_padding(checkpoint, monkeypatch):
    class Answers:
        """Half of each mask is sure in the image, and all of it in the padding below."""

        def __init__(self, model):
            pass

        def set_image(self, image):
            assert image.shape == (32, 64, 3)

        def predict_many(self, requests, multimask_output):
            logits = np.full((1, 16, 16), 2.0, np.float32)
            logits[:, :8, :8] = 0.0
            answer = SimpleNamespace(low_res_logits=logits, scores=np.ones(1, np.float32))
            return [answer] * len(requests)

    monkeypatch.setattr(thresholds, "Predictor", Answers)
    sample = EvalSample(np.zeros((64, 64, 3), np.uint8), (32, 64), [], "a")
    found = mask_thresholds(load_model(checkpoint), Images([sample]))
    assert found == {"mask_thresholds": {"pred_iou": 0.88, "stability": 0.5}}
