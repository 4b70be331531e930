import dataclasses
import inspect
import json
import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest

from semsam_jax.core import rle
from semsam_jax.core.errors import PromptError
from semsam_jax.inference import hierarchy, mask_selection
from semsam_jax.inference.grid import crop_boxes, point_grid
from semsam_jax.inference.mask_generator import MaskGenerator
from semsam_jax.inference.mask_selection import Filters, inclusive_box
from semsam_jax.inference.predictor import Predictor
from semsam_jax.inference.tree import build_tree


def unpack(packed, width):
    return np.unpackbits(packed, axis=-1)[..., :width].astype(bool)


@pytest.mark.parametrize("area", [5, 13, 200])
@pytest.mark.parametrize("mode", ["holes", "islands"])
def test_small_regions_equal_reference(golden, area, mode):
    amg = golden["tiny_eval_amg"]
    mask, changed = mask_selection.remove_small_regions(amg["post/mask_in"], area, mode)
    np.testing.assert_array_equal(mask, amg[f"post/{mode}_{area}"])
    assert changed == bool(amg[f"post/{mode}_{area}_changed"])


def test_box_rle_and_grid_equal_reference(golden):
    amg = golden["tiny_eval_amg"]
    mask = amg["post/mask_in"]
    np.testing.assert_array_equal(inclusive_box(mask), amg["post/box_xyxy"])
    assert rle.run_lengths(mask, (0, 0), mask.shape).tolist() == amg["post/rle_counts"].tolist()
    np.testing.assert_allclose(point_grid(4), amg["post/point_grid4"])
    np.testing.assert_array_equal(rle.decode(rle.encode(mask)), mask)
    assert rle.box_xywh(np.zeros((3, 4), bool)) == [0, 0, 0, 0]


def test_filters_on_synthetic_logits_equal_reference(golden):
    amg = golden["tiny_eval_amg"]
    params = json.loads(str(amg["amg_synth/params"]))
    order = amg["amg_synth/token_index_order"]
    logits = amg["amg_synth/logits"].astype(np.float32)[:, order].reshape(-1, 72, 96)
    ious = amg["amg_synth/ious_by_token"][:, order].reshape(-1)
    names = ("pred_iou_thresh", "stability_score_thresh", "stability_score_offset")
    names += ("box_nms_thresh", "min_mask_region_area")
    filters = Filters(**{name: params[name] for name in names})

    def measure(rows):
        found = mask_selection.measure_masks(
            jnp.asarray(logits[rows]), np.array([72, 96]), filters.stability_score_offset, stride=1
        )
        return tuple(np.asarray(x) for x in found)

    kept = mask_selection.filter_masks(ious, measure, filters)
    np.testing.assert_array_equal(kept.boxes, amg["amg_synth/prefilter_boxes"])
    np.testing.assert_array_equal(kept.ious, amg["amg_synth/prefilter_iou"])
    kept = kept.take(mask_selection.suppress(kept, filters.box_nms_thresh))
    np.testing.assert_array_equal(kept.boxes, amg["amg_synth/post_nms_boxes_xyxy"])
    cleaned = [
        mask_selection.clean_mask(logits[row] > 0, filters.min_mask_region_area)
        for row in kept.rows
    ]
    boxes = np.stack([inclusive_box(mask) for mask, _ in cleaned])
    changed = np.array([changed for _, changed in cleaned])
    order = mask_selection.suppress_cleaned(boxes, changed, filters)
    kept = kept.take(order)
    masks = np.stack([cleaned[i][0] for i in order])
    np.testing.assert_array_equal(masks, unpack(amg["amg_synth/final_masks_packed"], 96))
    np.testing.assert_array_equal(kept.ious, amg["amg_synth/final_predicted_iou"])
    np.testing.assert_allclose(kept.stability, amg["amg_synth/final_stability"], rtol=1e-6)
    np.testing.assert_array_equal(masks.sum((1, 2)), amg["amg_synth/final_area"])


@pytest.mark.parametrize("name", ["amg_all", "amg_lv3"])
def test_generator_equals_reference(golden, tiny_model, image_a, name):
    amg = golden["tiny_eval_amg"]
    params = json.loads(str(amg[f"{name}/params"]))
    generator = MaskGenerator(tiny_model, **params, size="native", isolate=False)
    records = generator.generate(image_a)
    masks = np.stack([r["segmentation"] for r in records])
    want = unpack(amg[f"{name}/final_masks_packed"], 160)
    assert masks.shape == want.shape
    assert (masks != want).sum() <= 5  # a pixel may sit on the threshold
    for key, stored in (("predicted_iou", "predicted_iou"), ("stability_score", "stability")):
        got = [r[key] for r in records]
        np.testing.assert_allclose(got, amg[f"{name}/final_{stored}"], atol=2e-4)
    np.testing.assert_array_equal([r["bbox"] for r in records], amg[f"{name}/final_bbox_xywh"])
    np.testing.assert_array_equal([r["crop_box"] for r in records], amg[f"{name}/final_crop_box"])
    points = np.array([r["point_coords"][0] for r in records]) / [160, 128]
    np.testing.assert_allclose(points, amg[f"{name}/final_point_coords"][:, :2], atol=1e-6)


def test_measurements_of_all_clicks_equal_reference(golden, tiny_model, image_a):
    amg = golden["tiny_eval_amg"]
    params = json.loads(str(amg["amg_all/params"])) | {"pred_iou_thresh": 0.0}
    params["stability_score_thresh"] = 0.0
    generator = MaskGenerator(tiny_model, **params, size="native", isolate=False)
    frame = tiny_model.frame((128, 160), "native")
    pyramid = tiny_model.encode(image_a[None], [frame])
    kept, _, _ = generator._decode_grid(pyramid, frame, point_grid(6) * [160, 128])
    positive = amg["amg_all/all_iou_preds"] > 0
    assert positive.sum() == len(kept.rows)
    np.testing.assert_allclose(kept.ious, amg["amg_all/all_iou_preds"][positive], atol=5e-5)
    np.testing.assert_allclose(kept.stability, amg["amg_all/all_stability"][positive], atol=5e-4)


SETTINGS = {
    "points_per_side": 5,
    "pred_iou_thresh": 0.0,
    "stability_score_thresh": 0.1,
    "box_nms_thresh": 0.95,
    "size": "native",
}


def test_result_does_not_depend_on_the_batch_size(tiny_model, image_a):
    first = MaskGenerator(tiny_model, points_per_batch=25, **SETTINGS).generate(image_a)
    second = MaskGenerator(tiny_model, points_per_batch=7, **SETTINGS).generate(image_a)
    assert [(r["area"], r["level"], r["point_coords"]) for r in first] == [
        (r["area"], r["level"], r["point_coords"]) for r in second
    ]


def test_crops_and_output_modes(tiny_model, image_a):
    generator = MaskGenerator(
        tiny_model, crop_n_layers=1, level=[3, 6], output_mode="uncompressed_rle", **SETTINGS
    )
    records = generator.generate(image_a)
    assert records
    for record in records:
        assert record["level"] in (3, 6)
        assert sum(record["segmentation"]["counts"]) == 128 * 160
        assert sum(record["segmentation"]["counts"][1::2]) == record["area"]


def test_crop_boxes_cover_the_image():
    boxes = crop_boxes((600, 900), 2, 512 / 1500)
    assert len(boxes) == 1 + 4 + 16
    covered = np.zeros((600, 900), int)
    for (x0, y0, x1, y1), layer in boxes:
        if layer == 2:
            covered[y0:y1, x0:x1] += 1
    assert covered.min() >= 1
    assert len(crop_boxes((20, 900), 2, 0.3)) == 1


def test_masks_cut_by_a_crop_are_dropped():
    boxes = np.array([[0.0, 10, 99, 70], [25, 10, 60, 70], [0, 0, 10, 10]])
    cut = mask_selection.touches_crop_border(boxes, (0, 0, 100, 100), (400, 400))
    assert cut.tolist() == [True, False, False]


@pytest.mark.parametrize(
    "wrong",
    [
        {"points_per_side": 0},
        {"points_per_batch": 0},
        {"pred_iou_thresh": float("nan")},
        {"box_nms_thresh": -1.0},
        {"level": [7]},
        {"crop_n_layers": 9},
        {"crop_overlap_ratio": 1.5},
        {"output_mode": "png"},
        {"crop_n_points_downscale_factor": 0},
    ],
)
def test_arguments_without_meaning(tiny_model, wrong):
    with pytest.raises(PromptError, match=next(iter(wrong)).split("_")[0]):
        MaskGenerator(tiny_model, **wrong)


def test_nothing_found_is_an_empty_list(tiny_model, image_a):
    generator = MaskGenerator(tiny_model, points_per_side=2, pred_iou_thresh=99.0, size="native")
    assert generator.generate(image_a) == []


def squares():
    """A whole, its part, a part of the part, a part at another level, and one beside them."""
    boxes = [(0, 0, 40, 40), (5, 5, 25, 25), (8, 8, 14, 14), (28, 28, 36, 36), (50, 0, 60, 10)]
    masks = np.zeros((len(boxes), 48, 64), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    return masks


def test_a_tree_of_wholes_and_parts():
    packed = [rle.encode(mask) for mask in squares()]
    parent = hierarchy.parents(packed, [1, 3, 5, 2, 1])
    assert parent == [None, 0, 1, 0, None]
    assert hierarchy.depths(parent) == [0, 1, 2, 1, 0]
    # A finer level is no whole of a coarser one.
    assert hierarchy.parents(packed, [6, 3, 5, 2, 1]) == [None, None, 1, None, None]
    assert hierarchy.parents([], []) == []


def test_without_overlap_small_masks_lie_on_top():
    masks = squares()
    packed = [rle.encode(mask) for mask in masks]
    found = hierarchy.without_overlap(packed, np.ones(5), min_visible=0.2, min_piece=1)
    kept = {i: rle.decode(mask) for i, mask in found}
    assert list(kept) == [0, 1, 2, 3, 4]
    total = sum(mask.astype(int) for mask in kept.values())
    np.testing.assert_array_equal(total, masks.any(0))
    np.testing.assert_array_equal(kept[1], masks[1] & ~masks[2])
    # The whole, 1600 pixels of which 1136 stay, goes if it must show more; the others stay.
    strict = dict(hierarchy.without_overlap(packed, np.ones(5), min_visible=0.8, min_piece=1))
    assert list(strict) == [1, 2, 3, 4]
    small = dict(hierarchy.without_overlap(packed, np.ones(5), min_visible=0.2, min_piece=50))
    assert list(small) == [0, 1, 3, 4]  # 36 pixels are too small a piece
    same = [packed[4], packed[4]]
    scores = np.array([0.1, 0.9])
    ((better, _),) = hierarchy.without_overlap(same, scores, min_visible=0.0, min_piece=1)
    assert better == 1


def test_masks_of_a_large_image_need_little_memory():
    """Not one array of the image's size for each mask."""
    hw = (4000, 3000)
    corners = [(300 * i + 20 * j, 250 * i) for i in range(8) for j in range(8)]
    small = [rle.run_lengths(np.ones((40, 15), bool), corner, hw) for corner in corners]
    masks = [rle.compress(runs, hw) for runs in (np.array([0, hw[0] * hw[1]]), *small)]
    tracemalloc.start()
    try:
        kept = hierarchy.without_overlap(masks, np.ones(65), min_visible=0.2, min_piece=1)
        tree = build_tree(masks, [1] * 65, [0.9] * 65, hw)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    areas = [rle.mask_areas([mask])[0] for _, mask in kept]
    assert sum(areas) == hw[0] * hw[1]
    assert len(tree.nodes) == 65
    assert peak < 10 * hw[0] * hw[1]


def test_overlap_and_tree_of_the_generator(tiny_model, image_a):
    settings = {"points_per_side": 3, "pred_iou_thresh": -9.0, "stability_score_thresh": 0.0}
    settings |= {"box_nms_thresh": 0.99, "min_mask_region_area": 0}
    every = MaskGenerator(tiny_model, **settings, size=96, tree=True).generate(image_a)
    assert len(every) > 2
    for record in every:
        if record["parent"] is not None:
            above = every[record["parent"]]
            assert above["area"] > record["area"]
            assert above["level"] <= record["level"]
            assert above["depth"] == record["depth"] - 1
    flat = MaskGenerator(tiny_model, **settings, size=96, overlap="none", tree=True)
    found = flat.generate(image_a)
    assert 0 < len(found) <= len(every)
    assert sum(r["segmentation"].astype(int) for r in found).max() == 1
    for record in found:
        assert record["area"] == record["segmentation"].sum()
        assert record["parent"] is None or record["parent"] < len(found)


def test_no_mask_at_all_is_said_with_the_thresholds(tiny_model, image_a):
    generator = MaskGenerator(tiny_model, points_per_side=1, pred_iou_thresh=99.0, size=96)
    with pytest.warns(UserWarning, match="pred_iou_thresh 99 and stability_score_thresh 0.92"):
        records = generator.generate(image_a)
    assert len(records) == 0


def test_thresholds_come_from_the_checkpoint(tiny_model):
    stored = {"mask_thresholds": {"pred_iou": 0.3, "stability": 0.4}}
    model = dataclasses.replace(tiny_model, meta=tiny_model.meta | stored)
    filters = MaskGenerator(model).filters
    assert (filters.pred_iou_thresh, filters.stability_score_thresh) == (0.3, 0.4)
    filters = MaskGenerator(model, pred_iou_thresh=0.7).filters
    assert (filters.pred_iou_thresh, filters.stability_score_thresh) == (0.7, 0.4)
    filters = MaskGenerator(tiny_model).filters
    assert (filters.pred_iou_thresh, filters.stability_score_thresh) == (0.88, 0.92)


def positions(function):
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    found = inspect.signature(function).parameters.values()
    return " ".join(one.name for one in found if one.kind in kinds)


def test_positions_are_those_of_segment_anything():
    """An argument of code that was written for SAM never becomes another one here."""
    assert positions(Predictor.set_image) == "self image image_format"
    assert positions(Predictor.predict) == (
        "self point_coords point_labels box mask_input multimask_output return_logits"
    )
    assert positions(MaskGenerator) == (
        "model points_per_side points_per_batch pred_iou_thresh stability_score_thresh "
        "stability_score_offset box_nms_thresh crop_n_layers crop_nms_thresh crop_overlap_ratio "
        "crop_n_points_downscale_factor"
    )
