"""Average recall of all masks of an image."""

import numpy as np
import pytest

from semsam_jax.core.rle import encode_masks
from semsam_jax.evals.proposals import evaluate_proposals
from tests.evals.fakes import reading_sample
from tests.evals.test_one_click import SEGMENTS


def truth_of(sample):
    rles = encode_masks([sample.mask(i) for i in range(len(sample.masks))])
    return rles, np.linspace(1, 0.5, len(rles))


def test_the_truth_recalls_itself():
    result = evaluate_proposals(truth_of, [reading_sample(SEGMENTS)])
    assert result.ar == {10: 1.0, 100: 1.0, 1000: 1.0}


def test_one_of_three():
    def first_only(sample):
        rles, scores = truth_of(sample)
        return rles[:1], scores[:1]

    result = evaluate_proposals(first_only, [reading_sample(SEGMENTS)])
    assert result.ar[1000] == pytest.approx(1 / 3)


def test_hundreds_of_masks_of_one_image():
    def many(sample):
        rles, scores = truth_of(sample)
        return rles * 100, np.concatenate([scores - k for k in range(100)])

    result = evaluate_proposals(many, [reading_sample(SEGMENTS)])
    assert result.num_detections == 300
    assert result.ar == {10: 1.0, 100: 1.0, 1000: 1.0}


def test_size_classes_are_those_of_the_original_image():
    # 64x16 pixels of the canvas are 256x64 of the image, which is a large mask.
    sample = reading_sample(np.repeat([[0, 1, 0]], 16, axis=0).repeat(4, axis=1), scale=0.25)
    result = evaluate_proposals(truth_of, [sample])
    assert result.ar_by_size["large"] == result.ap_by_size["large"] == 1.0
    for size in ("small", "medium"):
        assert np.isnan(result.ar_by_size[size])


def test_nothing_found_and_nothing_there():
    def nothing(sample):
        return [], np.zeros(0)

    assert evaluate_proposals(nothing, [reading_sample(SEGMENTS)]).ar[1000] == 0.0
    empty = reading_sample(SEGMENTS, masks=[np.zeros((36, 48), bool)])
    assert np.isnan(evaluate_proposals(truth_of, [reading_sample(SEGMENTS, masks=[])]).ar[1000])
    assert np.isnan(evaluate_proposals(nothing, [empty]).ar[1000])
