"""Panoptic quality: hand-worked cases and a slow second implementation on real data."""

import collections
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semsam_jax.core.errors import DataError
from semsam_jax.evals.panoptic import PanopticEvaluator, PanopticSegments

IS_THING = np.asarray([True, True, False])
COCO = Path(__file__).parents[2] / "data_pipelines/sample/data/coco/annotations"


def segments(rows, classes, crowd=()):
    return PanopticSegments(np.asarray(rows), classes, frozenset(crowd))


def quality(truth, prediction):
    evaluator = PanopticEvaluator(IS_THING)
    evaluator.process(truth, prediction)
    return evaluator.result()


def test_perfect_prediction_scores_one():
    truth = segments([[1, 1, 2, 2], [3, 3, 3, 0]], {1: 0, 2: 1, 3: 2})
    result = quality(truth, truth)
    assert result.all["pq"] == result.things["pq"] == result.stuff["pq"] == 1.0
    assert (result.things["num_classes"], result.stuff["num_classes"]) == (2, 1)


def test_shifted_segment_by_hand():
    truth = segments([[1] * 8 + [0] * 2], {1: 0})
    shifted = segments([[0] * 2 + [1] * 8], {1: 0})
    # 6 pixels shared; the 2 pixels on void do not count: IoU = 6 / 8
    result = quality(truth, shifted)
    assert result.by_class[0].sq == pytest.approx(6 / 8)
    assert result.all["pq"] == pytest.approx(6 / 8)


def test_half_overlap_is_no_match():
    truth = segments([[1, 1, 2, 2]], {1: 0, 2: 2})
    prediction = segments([[1, 2, 2, 2]], {1: 0, 2: 2})
    result = quality(truth, prediction)
    assert (result.by_class[0].tp, result.by_class[0].fp, result.by_class[0].fn) == (0, 1, 1)
    assert result.by_class[2].pq == pytest.approx(2 / 3)
    assert result.all["pq"] == pytest.approx((0 + 2 / 3) / 2)


def test_wrong_class_is_a_miss_and_a_false_alarm():
    truth = segments([[1, 1]], {1: 0})
    result = quality(truth, segments([[1, 1]], {1: 1}))
    assert (result.by_class[0].fn, result.by_class[1].fp) == (1, 1)
    assert result.all["pq"] == 0.0


def test_formula_with_counts():
    truth = segments([[1, 1, 1, 1, 2, 2, 3, 3]], {1: 0, 2: 0, 3: 0})
    prediction = segments([[1, 1, 1, 0, 2, 2, 4, 5]], {1: 0, 2: 0, 4: 0, 5: 0})
    result = quality(truth, prediction)  # TP 2 with IoU .75 and 1, FN 1, FP 2
    assert result.by_class[0].pq == pytest.approx(1.75 / (2 + 0.5 + 1.0))
    assert result.by_class[0].rq == pytest.approx(2 / 3.5)


def test_predictions_on_void_are_no_false_alarm():
    truth = segments([[0, 0, 0, 1]], {1: 0})
    assert quality(truth, segments([[2, 2, 2, 1]], {1: 0, 2: 1})).all["pq"] == 1.0
    half = segments([[0, 0, 1, 1]], {1: 2})
    assert 1 in quality(half, segments([[0, 2, 2, 1]], {1: 2, 2: 1})).by_class  # exactly half


def test_crowd_is_neither_missed_nor_matched():
    truth = segments([[1, 1, 1, 2]], {1: 0, 2: 2}, crowd=[1])
    assert 0 not in quality(truth, segments([[0, 0, 0, 2]], {2: 2})).by_class
    # a prediction of the crowd's class inside it is ignored, of another class it is wrong
    assert 0 not in quality(truth, segments([[5, 5, 0, 2]], {5: 0, 2: 2})).by_class
    assert quality(truth, segments([[5, 5, 0, 2]], {5: 1, 2: 2})).by_class[1].fp == 1


def test_images_without_anything():
    empty = segments([[0, 0]], {})
    result = quality(empty, empty)
    assert np.isnan(result.all["pq"])
    assert result.num_images == 1
    assert quality(segments([[1, 1]], {1: 0}), empty).by_class[0].fn == 1


def test_listed_segment_without_pixels():
    truth = segments([[1, 1]], {1: 0, 2: 1})
    prediction = segments([[1, 1]], {1: 0, 3: 2})
    result = quality(truth, prediction)
    assert result.by_class[1].fn == 1  # annotated, so missed
    assert 2 not in result.by_class  # never drawn, so no false alarm


def test_broken_input_is_named():
    truth = segments([[1, 1]], {1: 0})
    with pytest.raises(DataError, match="pixels with ids"):
        quality(truth, segments([[1, 7]], {1: 0}))
    with pytest.raises(DataError, match="classes are below 3"):
        quality(truth, segments([[1, 1]], {1: 3}))
    with pytest.raises(DataError, match="resize the prediction"):
        quality(truth, segments([[1]], {1: 0}))


def slow_quality(pairs, num_classes):
    """The published algorithm once more, with dictionaries and one segment at a time."""
    stat = {c: collections.Counter() for c in range(num_classes)}
    for truth, prediction in pairs:
        overlap = collections.Counter(
            zip(
                truth.segment_map.ravel().tolist(),
                prediction.segment_map.ravel().tolist(),
                strict=True,
            )
        )
        size_t, size_p = collections.Counter(), collections.Counter()
        for (t, p), n in overlap.items():
            size_t[t] += n
            size_p[p] += n
        seen_t, seen_p = set(), set()
        for (t, p), n in overlap.items():
            if t not in truth.classes or p not in prediction.classes or t in truth.crowd:
                continue
            if truth.classes[t] != prediction.classes[p]:
                continue
            iou = n / (size_t[t] + size_p[p] - n - overlap[0, p])
            if iou > 0.5:
                stat[truth.classes[t]]["tp"] += 1
                stat[truth.classes[t]]["iou"] += iou
                seen_t.add(t)
                seen_p.add(p)
        crowd = {}
        for t, c in truth.classes.items():
            if t in truth.crowd:
                crowd[c] = t
            elif t not in seen_t:
                stat[c]["fn"] += 1
        for p, c in prediction.classes.items():
            if p in seen_p:
                continue
            free = overlap[0, p] + (overlap[crowd[c], p] if c in crowd else 0)
            if free / size_p[p] <= 0.5:
                stat[c]["fp"] += 1
    out = {}
    for c, s in stat.items():
        if s["tp"] + s["fp"] + s["fn"]:
            out[c] = s["iou"] / (s["tp"] + 0.5 * s["fp"] + 0.5 * s["fn"])
    return out


def perturbed(truth, num_classes, rng):
    """Shifts, merges, drops and relabels segments, and fills some of the void."""
    moved = np.roll(truth.segment_map, rng.integers(-9, 10, 2), axis=(0, 1))
    classes = dict(truth.classes)
    for segment in list(classes):
        chance = rng.uniform()
        if chance < 0.15:
            moved[moved == segment] = 0
        elif chance < 0.3:
            classes[segment] = int(rng.integers(num_classes))
        elif chance < 0.4:
            moved[moved == segment] = rng.choice(list(classes))
    height, width = moved.shape
    top, left = rng.integers(height // 2), rng.integers(width // 2)
    extra = 1 + max(classes, default=0)
    moved[top : top + height // 3, left : left + width // 3] = extra
    classes[extra] = int(rng.integers(num_classes))
    present = set(np.unique(moved).tolist())
    return PanopticSegments(moved, {s: c for s, c in classes.items() if s in present})


@pytest.fixture(scope="module")
def real():
    rng = np.random.default_rng(1)
    listing = json.loads((COCO / "panoptic_val2017.json").read_text())
    number = {c["id"]: i for i, c in enumerate(listing["categories"])}
    is_thing = np.asarray([bool(c["isthing"]) for c in listing["categories"]])
    pairs = []
    for record in listing["annotations"]:
        png = np.asarray(Image.open(COCO / "panoptic_val2017" / record["file_name"]), np.int64)
        ids = png[..., 0] + 256 * png[..., 1] + 65536 * png[..., 2]
        info = record["segments_info"]
        truth = PanopticSegments(
            ids,
            {s["id"]: number[s["category_id"]] for s in info},
            frozenset(s["id"] for s in info if s["iscrowd"]),
        )
        pairs.append((truth, perturbed(truth, len(is_thing), rng)))
    return is_thing, pairs


def test_real_annotations_are_perfect_with_themselves(real):
    is_thing, pairs = real
    evaluator = PanopticEvaluator(is_thing)
    for truth, _ in pairs:
        keep = {s: c for s, c in truth.classes.items() if s not in truth.crowd}
        pixels = np.where(np.isin(truth.segment_map, list(keep)), truth.segment_map, 0)
        evaluator.process(truth, PanopticSegments(pixels, keep))
    result = evaluator.result()
    assert result.all == {"pq": 1.0, "sq": 1.0, "rq": 1.0, "num_classes": result.all["num_classes"]}
    assert result.all["num_classes"] > 20


def test_real_annotations_perturbed_equal_the_slow_algorithm(real):
    is_thing, pairs = real
    assert any(truth.crowd for truth, _ in pairs)
    evaluator = PanopticEvaluator(is_thing)
    for truth, prediction in pairs:
        evaluator.process(truth, prediction)
    result = evaluator.result()
    slow = slow_quality(pairs, len(is_thing))
    assert set(slow) == set(result.by_class)
    for index, want in slow.items():
        assert result.by_class[index].pq == pytest.approx(want, abs=1e-12)
    assert 0.05 < result.all["pq"] < 0.95
    for name, flag in (("things", True), ("stuff", False)):
        want = [pq for c, pq in slow.items() if is_thing[c] == flag]
        assert getattr(result, name)["pq"] == pytest.approx(np.mean(want))


def test_order_and_merging_change_nothing(real):
    is_thing, pairs = real
    whole = PanopticEvaluator(is_thing)
    for pair in pairs:
        whole.process(*pair)
    merged = PanopticEvaluator(is_thing)
    for pair in pairs[::-1]:
        part = PanopticEvaluator(is_thing)
        part.process(*pair)
        merged.merge(part)
    assert merged.result() == whole.result()
    merged.reset()
    assert merged.result().num_images == 0
