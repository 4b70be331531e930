"""Instance AP: hand-worked cases and pycocotools on perturbed inputs."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools import mask as rle_codec
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from semsam_jax.core.errors import DataError
from semsam_jax.evals.instance_ap import InstanceEvaluator, InstanceSet

SIZE = (60, 80)
NUM_CLASSES = 4


def encode(box):
    x, y, w, h = (int(v) for v in box)
    mask = np.zeros(SIZE, np.uint8)
    mask[y : y + h, x : x + w] = 1
    return rle_codec.encode(np.asfortranarray(mask))


def instances(boxes, classes, scores=None, crowd=None):
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    return InstanceSet(
        classes=np.asarray(classes, np.int64),
        rles=[encode(box) for box in boxes],
        boxes_xywh=boxes,
        scores=None if scores is None else np.asarray(scores, np.float64),
        is_crowd=None if crowd is None else np.asarray(crowd, bool),
    )


NOTHING = instances([], [], [])


def run(rows, kind="mask", **options):
    evaluator = InstanceEvaluator(NUM_CLASSES, kind, **options)
    for image_id, (truth, detected) in rows.items():
        evaluator.process(image_id, SIZE, truth, detected)
    return evaluator.result()


@pytest.mark.parametrize("kind", ["mask", "box"])
def test_perfect_detections(kind):
    boxes = [[2, 3, 40, 40], [50, 10, 20, 20]]
    truth, detected = instances(boxes, [0, 2]), instances(boxes, [0, 2], [0.9, 0.3])
    result = run({"a": (truth, detected)}, kind)
    assert result.ap == result.ap50 == result.ap75 == 1.0
    assert result.ar == {1: 1.0, 10: 1.0, 100: 1.0}
    assert result.class_ap[0] == result.class_ap[2] == 1.0
    assert np.isnan(result.class_ap[1])
    assert result.ap_by_size["small"] == result.ap_by_size["medium"] == 1.0
    assert np.isnan(result.ap_by_size["large"])


def test_shifted_box_passes_some_thresholds():
    # 20 of 25 columns shared on each side: IoU = 20 / 30 = 0.667 -> .50, .55, .60, .65 of ten
    truth, detected = instances([[0, 0, 25, 40]], [0]), instances([[5, 0, 25, 40]], [0], [0.5])
    for kind in ("mask", "box"):
        result = run({"a": (truth, detected)}, kind)
        assert result.ap == pytest.approx(0.4)
        assert (result.ap50, result.ap75) == (1.0, 0.0)


def test_false_alarm_above_a_hit_halves_precision():
    truth = instances([[0, 0, 20, 20]], [0])
    detected = instances([[40, 20, 20, 20], [0, 0, 20, 20]], [0, 0], [0.9, 0.5])
    assert run({"a": (truth, detected)}).ap == pytest.approx(0.5)


def test_empty_predictions_and_empty_truth():
    box = [[0, 0, 20, 20]]
    missed = run({"a": (instances(box, [0]), NOTHING)})
    assert (missed.ap, missed.num_detections) == (0.0, 0)
    nothing = run({"a": (instances([], []), instances(box, [0], [0.5]))})
    assert np.isnan(nothing.ap)
    assert np.isnan(run({}).ap)


def random_rows(rng, num_images=12):
    rows = {}
    for number in range(num_images):
        n = int(rng.integers(0, 7))
        size = rng.choice([6, 12, 25, 40], (n, 2))
        corner = np.stack([rng.integers(0, 40, n), rng.integers(0, 20, n)], axis=1)
        truth_boxes = np.concatenate([corner, size], axis=1).reshape(-1, 4)
        classes = rng.integers(0, NUM_CLASSES - 1, n)
        crowd = rng.uniform(size=n) < 0.2
        copies = rng.permutation(np.repeat(np.arange(n), 2))[: int(rng.integers(0, 2 * n + 1))]
        boxes = truth_boxes[copies] + rng.integers(-2, 3, (len(copies), 4))
        boxes[:, :2] = np.maximum(boxes[:, :2], 0)
        labels = np.where(
            rng.uniform(size=len(copies)) < 0.8,
            classes[copies],
            rng.integers(0, NUM_CLASSES, len(copies)),
        )
        scores = np.round(rng.uniform(size=len(copies)), 1)  # many ties
        rows[f"{number:03d}"] = (
            instances(truth_boxes, classes, crowd=crowd),
            instances(boxes, labels, scores),
        )
    return rows


def original(rows, kind, is_class_agnostic=False):
    """The same with pycocotools: its own twelve figures."""
    images, truths, found = [], [], []
    for number, (truth, detected) in enumerate(rows.values(), start=1):
        images.append({"id": number, "height": SIZE[0], "width": SIZE[1]})
        for i, rle in enumerate(truth.rles):
            box = truth.boxes_xywh[i].tolist()
            area = float(rle_codec.area(rle)) if kind == "mask" else box[2] * box[3]
            truths.append(
                {
                    "id": len(truths) + 1,
                    "image_id": number,
                    "category_id": int(truth.classes[i]) + 1,
                }
                | {"segmentation": rle, "bbox": box, "area": area}
                | {"iscrowd": int(truth.is_crowd[i]) if truth.is_crowd is not None else 0}
            )
        for i, rle in enumerate(detected.rles):
            record = {"image_id": number, "category_id": int(detected.classes[i]) + 1}
            record |= {"score": float(detected.scores[i])}
            box = {"bbox": detected.boxes_xywh[i].tolist()}
            found.append(record | (box if kind == "box" else {"segmentation": rle}))
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        categories = [{"id": c + 1, "name": str(c)} for c in range(NUM_CLASSES)]
        reference.dataset = {"images": images, "annotations": truths, "categories": categories}
        reference.createIndex()
        evaluation = COCOeval(
            reference, reference.loadRes(found), "segm" if kind == "mask" else "bbox"
        )
        evaluation.params.useCats = int(not is_class_agnostic)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return np.where(evaluation.stats < 0, np.nan, evaluation.stats)


@pytest.mark.parametrize("kind", ["mask", "box"])
@pytest.mark.parametrize("is_class_agnostic", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_equal_to_pycocotools(kind, is_class_agnostic, seed):
    rows = random_rows(np.random.default_rng(seed))
    result = run(rows, kind, is_class_agnostic=is_class_agnostic)
    got = [result.ap, result.ap50, result.ap75]
    got += [result.ap_by_size[s] for s in ("small", "medium", "large")]
    got += [result.ar[n] for n in (1, 10, 100)]
    got += [result.ar_by_size[s] for s in ("small", "medium", "large")]
    np.testing.assert_allclose(got, original(rows, kind, is_class_agnostic), atol=1e-12)
    assert 0 < result.ap < 1


def test_order_and_merging_change_nothing(rng):
    rows = random_rows(rng)
    merged = InstanceEvaluator(NUM_CLASSES)
    for image_id, (truth, detected) in reversed(rows.items()):
        part = InstanceEvaluator(NUM_CLASSES)
        part.process(image_id, SIZE, truth, detected)
        merged.merge(part)
    assert merged.result().scalars() == pytest.approx(run(rows).scalars(), nan_ok=True, abs=0)


def test_recall_at_1000_counts_more_than_100_proposals():
    boxes = [[x, y, 3, 3] for x in range(0, 60, 4) for y in range(0, 40, 4)]
    truth = instances(boxes, [0] * 150)
    detected = instances(boxes, [0] * 150, np.linspace(1, 0.1, 150))
    result = run(
        {"a": (truth, detected)}, is_class_agnostic=True, max_detections=(1, 10, 100, 1000)
    )
    assert result.ar[1000] == 1.0
    assert result.ar[100] == pytest.approx(100 / 150)


def test_broken_input_is_named():
    one = instances([[0, 0, 5, 5]], [0])
    with pytest.raises(DataError, match="no scores"):
        run({"a": (one, one)})
    with pytest.raises(DataError, match=r"expected 0\.\.3"):
        run({"a": (instances([[0, 0, 5, 5]], [7]), NOTHING)})
    evaluator = InstanceEvaluator(NUM_CLASSES)
    evaluator.process("a", SIZE, one, NOTHING)
    with pytest.raises(DataError, match="twice"):
        evaluator.process("a", SIZE, one, NOTHING)
    bare = InstanceSet(np.asarray([0]), boxes_xywh=np.ones((1, 4)))
    with pytest.raises(DataError, match="no masks"):
        run({"a": (bare, NOTHING)})
