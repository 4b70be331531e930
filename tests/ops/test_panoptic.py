import json
from pathlib import Path

import numpy as np
import pytest

from semsam_jax.inference.upsample import axis_weights
from semsam_jax.ops import panoptic
from tests.golden.table import CLASS_LOGITS, EXACT, HALF_PRECISION, compare

DATA = Path(__file__).parents[1] / "golden" / "data"


@pytest.fixture(scope="module")
def recorded():
    arrays = np.load(DATA / "generic_openseed.npz")
    params = json.loads(str(arrays["post/params"]))
    height, width = arrays["post/out_hw"].tolist()
    rows, columns = axis_weights(32, 128, 128, height), axis_weights(40, 160, 160, width)
    masks = np.einsum("hi,qij,wj->qhw", rows, arrays["infer/pred_masks"][0], columns)
    return arrays, params, arrays["infer/pred_logits"][0], masks.astype(np.float32)


def test_semantic_map_equals_reference(recorded):
    _, params, logits, masks = recorded
    got = panoptic.semantic_map(logits, masks, params["pano_temp"])
    compare("generic_openseed", "post/sem_seg", got, HALF_PRECISION)


def test_panoptic_map_equals_reference(recorded):
    arrays, params, logits, masks = recorded
    got = panoptic.panoptic_map(
        logits,
        masks,
        params["thing_classes"],
        score_threshold=params["object_mask_threshold"],
        overlap_threshold=params["overlap_threshold"],
        temperature=params["pano_temp"],
    )
    compare("generic_openseed", "post/panoptic_seg", got.segment_map, EXACT)
    want = json.loads(str(arrays["post/panoptic_segments"]))
    assert [(s.id, s.is_thing, s.category) for s in got.segments] == [
        (s["id"], s["isthing"], s["category_id"]) for s in want
    ]


def test_instances_equal_reference(recorded):
    arrays, params, logits, masks = recorded
    got = panoptic.top_instances(
        logits, masks, max_instances=params["topk"], things=params["thing_classes"]
    )
    want = np.unpackbits(arrays["post/inst_masks_packed"], axis=-1)[..., :120].astype(bool)
    compare("generic_openseed", "post/inst_scores", got.scores, CLASS_LOGITS)
    compare("generic_openseed", "post/inst_classes", got.categories, EXACT)
    assert (got.masks != want).sum() <= 3  # a pixel may sit on the threshold
    cx, cy, w, h = (arrays["infer/pred_boxes"][0][got.queries] * [120, 96, 120, 96]).T
    boxes = np.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], 1)
    compare("generic_openseed", "post/inst_boxes_xyxy", boxes, 5e-3)


def test_stuff_is_merged_things_are_not_and_the_loser_of_an_overlap_goes():
    masks = np.full((4, 4, 8), -9.0, np.float32)
    masks[0, :, :2] = masks[1, :, 2:4] = 9
    masks[2, :, 4:] = masks[3, :, 4:7] = 9
    logits = np.full((4, 2), -9.0, np.float32)
    logits[:2, 0], logits[2, 1], logits[3, 1] = 3, 5, 2
    merged = panoptic.panoptic_map(logits, masks, things=[1], temperature=1.0)
    assert [(s.id, s.category) for s in merged.segments] == [(1, 0), (2, 1)]
    np.testing.assert_array_equal(merged.segment_map[0], [1, 1, 1, 1, 2, 2, 2, 2])
    apart = panoptic.panoptic_map(logits, masks, things=[0, 1], temperature=1.0)
    assert len(apart.segments) == 3


def test_nothing_confident_gives_an_empty_map():
    logits = np.full((3, 2), -9.0, np.float32)
    result = panoptic.panoptic_map(logits, np.ones((3, 4, 5), np.float32), things=[0])
    assert result.segments == ()
    assert result.segment_map.shape == (4, 5)
    assert not result.segment_map.any()
