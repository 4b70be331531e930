"""1-click evaluation against the numbers that the original evaluation code produced."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from semsam_jax.convert.from_torch import from_torch
from semsam_jax.convert.names import unwrap
from semsam_jax.convert.torch_reader import read_state_dict
from semsam_jax.evals.eval_loop import EvalLoop
from semsam_jax.evals.one_click import evaluate_one_click
from semsam_jax.evals.samples import EvalSample
from semsam_jax.models.presets import PRESETS
from semsam_jax.models.semantic_sam import SemanticSAM
from tests.golden.table import DATA, compare, golden

CONFIG = dataclasses.replace(PRESETS["tiny"], has_generic=False)
# A pixel on the threshold may flip; more than that is an error.
IOU_TOLERANCE = 1e-3


@functools.cache
def evaluate(devices: int = 1, images_per_device: int = 1, prompts_per_call: int = 4):
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
    darker = dataclasses.replace(sample, image=canvas // 2, image_id="c")
    eval_loop = EvalLoop(
        devices=tuple(jax.local_devices()[:devices]), images_per_device=images_per_device
    )
    model = SemanticSAM(CONFIG)
    samples = [sample, darker]
    return evaluate_one_click(
        model, params, samples, prompts_per_call=prompts_per_call, eval_loop=eval_loop
    ).table


@pytest.fixture(scope="module")
def table():
    whole = evaluate()
    return whole.select(whole.image_id == "b")


def test_iou_of_the_chosen_token(table):
    compare("tiny_eval_amg", "eval/iou_max", table.iou_max, IOU_TOLERANCE)


def test_iou_of_the_best_token(table):
    compare("tiny_eval_amg", "eval/iou_oracle", table.iou_oracle, IOU_TOLERANCE)


def test_predicted_quality(table):
    compare("tiny_eval_amg", "eval/pred_ious", table.pred_iou[None], 5e-5)


def test_numbers_do_not_depend_on_devices_or_batch():
    one, other = evaluate(), evaluate(devices=2, images_per_device=2, prompts_per_call=3)
    np.testing.assert_array_equal(other.iou, one.iou)
    # Products of other shapes round their last bits differently.
    np.testing.assert_allclose(other.pred_iou, one.pred_iou, atol=5e-5)
