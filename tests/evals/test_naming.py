"""Accuracy of names, on answers that are known by construction."""

import numpy as np
import pytest

from semsam_jax.core.structs import TextTable
from semsam_jax.evals.eval_loop import EvalLoop
from semsam_jax.evals.naming import NameEvaluator, evaluate_names
from semsam_jax.evals.part_ap import ClassList
from tests.evals.fakes import ReadingModel, reading_sample

STRIPS = np.repeat([[1, 1, 2, 2, 3, 3, 4, 4]], 8, axis=0)
TEXT = TextTable(objects=np.zeros((3, 4), np.float32), parts=np.zeros((4, 4), np.float32))
CLASSES = ClassList(
    object_ids=np.array([10, 11, 12]),
    is_thing=np.ones(3, bool),
    part_ids=np.array([13, 14, 15, 16]),
)
NAMES = ("dog", "cat", "Dog", "head", "leg", "ear", "tail")


@pytest.mark.parametrize("prompts_per_call", [2, 16])
def test_the_best_name_of_the_chosen_mask_counts(prompts_per_call):
    # The model calls strip s object s - 1 and part s - 1, and 0 instead of object 3, which is not
    # there. "Dog" is as good as "dog". Wrong are a cat called dog and a head called ear.
    first = reading_sample(
        STRIPS, object_ids=[10, 11, 10, 11], part_ids=[-1, -1, -1, 16], image_id="a"
    )
    second = reading_sample(
        STRIPS, object_ids=[11, -1, 12, 12], part_ids=[-1, -1, 13, -1], image_id="b"
    )
    result = evaluate_names(
        ReadingModel(),
        {},
        TEXT,
        [first, second],
        CLASSES,
        NAMES,
        prompts_per_call=prompts_per_call,
        eval_loop=EvalLoop(images_per_device=2),
    )
    assert result.total.tolist() == [2, 2, 1, 1, 0, 0, 1]
    assert result.right.tolist() == [2, 1, 1, 0, 0, 0, 1]
    assert result.accuracy == pytest.approx(5 / 7)
    assert result.scalars() == {"accuracy": pytest.approx(500 / 7), "num_instances": 7.0}
    np.testing.assert_array_equal(result.class_accuracy[[0, 1, 4]], [1.0, 0.5, np.nan])


def test_no_named_instance_is_no_figure():
    nothing = reading_sample(STRIPS, object_ids=[-1] * 4)
    result = evaluate_names(ReadingModel(), {}, TEXT, [nothing], CLASSES, NAMES)
    assert np.isnan(result.accuracy)
    one, two = NameEvaluator(NAMES), NameEvaluator(NAMES)
    one.process(np.array([0, 1]), np.array([2, 0]))
    two.merge(one)
    assert two.result().right.tolist() == [1, 0, 0, 0, 0, 0, 0]
