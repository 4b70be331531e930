"""1-click evaluation against the numbers that the original evaluation code produced."""

import dataclasses

import numpy as np
import pytest

from semsam_jax.convert.from_torch import from_torch
from semsam_jax.convert.torch_reader import read_state_dict, unwrap
from semsam_jax.evals.one_click import evaluate_one_click
from semsam_jax.evals.samples import EvalSample
from semsam_jax.models.presets import PRESETS
from semsam_jax.models.semantic_sam import SemanticSAM
from tests.golden.table import DATA, compare, golden

CONFIG = dataclasses.replace(PRESETS["tiny"], has_generic=False)
# A pixel on the threshold may flip; more than that is an error.
IOU_TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def result():
    state = unwrap(read_state_dict(DATA / "tiny_ref.pth"))
    params = from_torch(state, CONFIG).params
    recorded = golden("tiny_eval_amg")
    image = golden("tiny_inputs")["image_b"]
    canvas = np.zeros((128, 160, 3), np.uint8)
    canvas[: image.shape[0], : image.shape[1]] = image
    sample = EvalSample(
        image=canvas,
        size_hw=image.shape[:2],
        masks=list(recorded["eval/gt_masks"]),
        image_id="b",
        clicks_xy=recorded["eval/click_xy_pixels"],
    )
    return evaluate_one_click(SemanticSAM(CONFIG), params, [sample], prompts_per_call=4)


def test_iou_of_the_chosen_token(result):
    compare("tiny_eval_amg", "eval/iou_max", result.table.iou_max, IOU_TOLERANCE)


def test_iou_of_the_best_token(result):
    compare("tiny_eval_amg", "eval/iou_oracle", result.table.iou_oracle, IOU_TOLERANCE)


def test_predicted_quality(result):
    compare("tiny_eval_amg", "eval/pred_ious", result.table.pred_iou[None], 5e-5)
