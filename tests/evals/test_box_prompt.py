"""Box prompts on pictures with known answers."""

import numpy as np
import pytest

from semsam_jax.evals.box_prompt import evaluate_box_prompt, tight_box
from tests.evals.fakes import ReadingModel, reading_sample
from tests.evals.test_one_click import SEGMENTS


def test_tight_box_by_hand():
    mask = np.zeros((10, 12), bool)
    mask[2:5, 3:9] = True
    assert tight_box(mask) == (6.0, 3.5, 6.0, 3.0)


def test_known_ious():
    result = evaluate_box_prompt(ReadingModel(), {}, [reading_sample(SEGMENTS)])
    assert result.iou_max == pytest.approx(np.mean([27 / 72, 45 / 63, 1]))
    assert result.iou_oracle == 1.0


def test_image_without_masks():
    sample = reading_sample(SEGMENTS, masks=[])
    assert evaluate_box_prompt(ReadingModel(), {}, [sample]).num_instances == 0
