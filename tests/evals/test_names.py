"""Measures of names: worked by hand, and on answers that are known by construction."""

import numpy as np
import pytest

from semsam_jax.core.structs import TextTable
from semsam_jax.evals.class_embeddings import KnownClasses
from semsam_jax.evals.eval_loop import EvalLoop
from semsam_jax.evals.names import (
    NameEvaluator,
    NameTable,
    calibrations,
    evaluate_names,
    reliability,
    score_rows,
    unique_names,
)
from semsam_jax.evals.part_ap import ClassList
from semsam_jax.evals.thresholds import best_threshold, fit_scale, name_thresholds
from semsam_jax.inference.name_scores import ScoreScale
from tests.evals.fakes import ReadingModel, reading_sample

SURE = round(1 / (1 + np.exp(-6.0)), 6)
STRIPS = np.repeat([[1, 1, 2, 2, 3, 3, 4, 4]], 8, axis=0)
KNOWN = KnownClasses(
    ClassList(np.array([10, 11, 12]), np.ones(3, bool), np.array([13, 14, 15, 16])),
    TextTable(objects=np.zeros((3, 4), np.float32), parts=np.zeros((4, 4), np.float32)),
    names=("dog", "cat", "Dog", "head", "leg", "ear", "tail"),
    notes={},
    is_complete=True,
)


@pytest.mark.parametrize("prompts_per_call", [2, 16])
def test_the_best_name_counts_of_the_chosen_mask_and_of_the_one_that_fits(prompts_per_call):
    """The chosen token calls strip s object s - 1 and part s - 1, of which there are 0 to 2 and 0
    to 3; "Dog" is as good as "dog". Wrong are a cat called dog, a head called ear, and a dog that
    is called nothing, so that all names tie. The first token fits exactly, is not chosen, and calls
    strip s object s and part s.
    """
    first = reading_sample(
        STRIPS, object_ids=[10, 11, 10, 11], part_ids=[-1, -1, -1, 16], image_id="a"
    )
    second = reading_sample(
        STRIPS, object_ids=[11, -1, 12, 12], part_ids=[-1, -1, 13, -1], image_id="b"
    )
    found = evaluate_names(
        ReadingModel(),
        {},
        KNOWN,
        [first, second],
        prompts_per_call=prompts_per_call,
        eval_loop=EvalLoop(images_per_device=2),
    )
    objects, parts = unique_names(KNOWN)
    assert (objects.texts, parts.texts) == (("dog", "cat"), ("head", "leg", "ear", "tail"))
    assert len(found) == 14
    assert found.accuracy() == pytest.approx(4 / 7)
    np.testing.assert_array_equal(found.class_accuracy("object", 2), [2 / 3, 1 / 2])
    np.testing.assert_array_equal(found.class_accuracy("part", 4), [0, np.nan, np.nan, 1])
    rows, scalars = score_rows(found)
    assert scalars["accuracy"] == pytest.approx(400 / 7)
    assert (scalars["num_instances"], rows[0].note) == (7, "7 masks")
    np.testing.assert_array_equal(found.iou, 1)
    for prompt in ("box", "click"):
        own = found.of("object", prompt)
        # Names of one score, here of no object, count against the right one.
        rows = sorted(zip(own.truth, own.rank, own.score.round(6), strict=True))
        assert rows == [(0, 1, 0.5), (0, 1, 0.5), (0, 1, SURE), (1, 0, SURE), (1, 1, SURE)]


def test_no_named_instance_is_no_figure():
    nothing = reading_sample(STRIPS, object_ids=[-1] * 4)
    found = evaluate_names(ReadingModel(), {}, KNOWN, [nothing])
    assert len(found) == 0
    assert np.isnan(found.accuracy())
    assert score_rows(found) == ([], {})


def table(**columns):
    """Four masks, each prompted twice: three objects (two of one name) and a part."""
    rows = {
        "kind": [0, 0, 0, 1, 0, 0, 0, 1],
        "prompt": [0, 0, 0, 0, 1, 1, 1, 1],
        "truth": [2, 2, 5, 0, 2, 2, 5, 0],
        "chosen_rank": [0, 0, 0, 0, 1, 0, 1, 9],
        "rank": [0, 3, 6, 0, 0, 0, 1, 9],
        "score": [0.9, 0.3, 0.5, 0.7, 0.95, 0.35, 0.2, 0.6],
        "iou": [0.8, 0.7, 0.9, 0.6, 0.8, 0.4, 0.9, 0.6],
    } | columns
    whole = ("kind", "prompt", "truth", "chosen_rank", "rank")
    return NameTable(*(np.array(v, np.int64 if k in whole else float) for k, v in rows.items()))


def test_top_1_top_5_and_the_most_frequent_name():
    found = table()
    boxes, clicks = found.of("object", "box"), found.of("object", "click")
    assert (boxes.top(1), boxes.top(5)) == (1 / 3, 2 / 3)
    assert (clicks.top(1), clicks.top(5)) == (2 / 3, 1.0)
    assert found.of("object").majority() == 2 / 3
    assert found.of("part", "click").top(5) == 0.0
    assert np.isnan(found.select(np.zeros(8, bool)).top(1))
    rows, scalars = score_rows(found)
    assert scalars["object/box/top1"] == pytest.approx(100 / 3)
    assert (scalars["object/count"], scalars["part/count"]) == (3, 1)
    assert rows[1].note == "3 masks, 2 names"
    assert scalars["accuracy"] == 25


def test_the_calibration_error_is_the_mean_gap_of_the_bins():
    """Masks that fit: 0.9 and 0.95 right, 0.3, 0.5 and 0.2 wrong."""
    found = calibrations(table())["object"]
    np.testing.assert_array_equal(found.count, [0, 0, 1, 1, 0, 1, 0, 0, 0, 2])
    gaps = [0.2, 0.3, 0.5, 2 * (1 - 0.925)]
    np.testing.assert_allclose(found.error, sum(gaps) / 5)
    assert np.isnan(reliability(table().select(np.zeros(8, bool))).error)
    suited = name_thresholds(table())
    assert suited["name_thresholds"] == {"object": 0.9, "part": 0.7}
    assert suited["name_calibration"]["object"]["names"] == 5
    assert suited["name_calibration"]["object"]["right"] == 0.4
    assert suited["name_scales"] == {"object": [1.0, 0.0], "part": [1.0, 0.0]}  # too few names


def test_scores_become_honest_and_keep_their_order():
    """Logits whose line is known: sigmoid(2 x + 1)."""
    rng = np.random.default_rng(0)
    logits = rng.normal(-1, 1, 4000)
    is_right = rng.random(4000) < 1 / (1 + np.exp(-(2 * logits + 1)))
    scale = fit_scale(logits, is_right)
    np.testing.assert_allclose((scale.gain, scale.offset), (2, 1), atol=0.15)
    columns = {
        "kind": np.zeros(4000),
        "prompt": np.zeros(4000),
        "truth": np.zeros(4000),
        "chosen_rank": np.where(is_right, 0, 1),
        "rank": np.where(is_right, 0, 1),
        "score": 1 / (1 + np.exp(-logits)),
        "iou": np.ones(4000),
    }
    suited = name_thresholds(table(**columns))
    measured = suited["name_calibration"]["object"]
    assert measured["error_before"] > 0.1
    assert measured["error"] < 0.02
    # The same names are sure, whatever the scale: the threshold moves with the scores.
    raw = best_threshold(columns["score"], is_right)
    gain, offset = suited["name_scales"]["object"]
    moved = 1 / (1 + np.exp(-(gain * np.log(raw / (1 - raw)) + offset)))
    assert suited["name_thresholds"]["object"] == pytest.approx(moved)
    assert fit_scale(-logits, is_right) == ScoreScale()  # it would turn the order around
    always = fit_scale(logits, np.ones(4000, bool))
    assert np.isfinite((always.gain, always.offset)).all()


def test_rows_do_not_depend_on_the_order_of_the_images():
    found = table()
    first, second = found.select(np.arange(8) < 3), found.select(np.arange(8) >= 3)
    one, other = NameEvaluator(), NameEvaluator()
    for part in (first, second):
        one.process(part)
    other.process(second)
    third = NameEvaluator()
    third.process(first)
    other.merge(third)
    for a, b in zip(one.state().values(), other.state().values(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(NameEvaluator().result()) == 0
