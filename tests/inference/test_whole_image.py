import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from semsam_jax.core import rle
from semsam_jax.core.errors import CheckpointError, PromptError
from semsam_jax.inference import whole_image
from semsam_jax.inference.loading import model_from_params
from semsam_jax.inference.whole_image import (
    ask_generic,
    can_label_images,
    find_panoptic,
    segment_whole_image,
    work_size,
)
from semsam_jax.models import presets
from semsam_jax.ops import panoptic
from tests.inference.conftest import generic_params, tiny_meta

NAMES = [f"class {i}" for i in range(9)]
_SURE_OF_ALL = {
    "mask_thresholds": {"pred_iou": -9.0, "stability": 0.0},
    "name_thresholds": {"object": 0.0, "part": 0.0},
}


@pytest.fixture(scope="module")
def generic_model(golden):
    config = presets.PRESETS["tiny"]
    params = generic_params()
    model = model_from_params(params, tiny_meta(config, class_heads_trained=True))
    rows = dict(zip(NAMES, golden["generic_openseed"]["text_table"], strict=True))
    return dataclasses.replace(model, name_embeddings=rows)


def test_queries_equal_reference(generic_model, golden, image_a):
    want = golden["generic_openseed"]
    answer = ask_generic(generic_model, image_a, NAMES, "native")
    np.testing.assert_allclose(answer.class_logits, want["infer/pred_logits"][0], atol=2e-4)
    np.testing.assert_allclose(answer.low_res_logits, want["infer/pred_masks"][0], atol=1e-3)
    cx, cy, w, h = (want["infer/pred_boxes"][0] * [160, 128, 160, 128]).T
    boxes = np.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], 1)
    np.testing.assert_allclose(answer.boxes, boxes, atol=1e-2)


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_files_of_a_labelled_image(generic_model, image_a, tmp_path, task):
    image = np.asarray(Image.fromarray(image_a).resize((201, 150)))
    records = segment_whole_image(generic_model, image, task, NAMES, "native", tmp_path)
    assert json.loads((tmp_path / "masks.json").read_text()) == records
    assert np.asarray(Image.open(tmp_path / "overlay.png")).shape == (150, 201, 3)
    for record in records:
        mask = rle.decode(record["segmentation"])
        assert mask.shape == (150, 201)
        assert mask.sum() == record["area"]
        assert record["object"]["name"] in NAMES
    if task != "instance":
        red, green, blue = np.asarray(Image.open(tmp_path / "segments.png")).astype(int).T
        ids = (red + 256 * green + 65536 * blue).T
        assert set(np.unique(ids)) - {0} <= {record["id"] for record in records}
    assert not list(tmp_path.glob(".*"))


def test_masks_stand_in_for_a_generic_branch_that_is_sure_of_nothing(
    generic_model, image_a, tmp_path, monkeypatch, capsys
):
    found = find_panoptic(generic_model, image_a, NAMES, "native")
    assert found.records
    assert not found.is_from_masks
    monkeypatch.setattr(panoptic, "confident_queries", lambda logits, _: np.zeros(0, int))
    model = dataclasses.replace(generic_model, meta=generic_model.meta | _SURE_OF_ALL)
    records = segment_whole_image(model, image_a, "panoptic", NAMES, "native", tmp_path)
    assert "grid of clicks" in capsys.readouterr().err
    masks = np.stack([rle.decode(record["segmentation"]) for record in records])
    assert len(masks) > 1
    assert masks.sum(0).max() == 1  # every pixel belongs to at most one
    assert {record["object"]["name"] for record in records} <= set(NAMES)


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_a_checkpoint_can_label_images_by_masks(
    generic_model, image_a, tmp_path, monkeypatch, capsys, task
):
    def never(*_):
        raise AssertionError("the generic branch was used")

    monkeypatch.setattr(whole_image, "_ask_generic", never)
    meta = generic_model.meta | _SURE_OF_ALL | {"panoptic_source": "masks"}
    model = dataclasses.replace(generic_model, meta=meta)
    records = segment_whole_image(model, image_a, task, NAMES, "native", tmp_path)
    assert capsys.readouterr().err == ""
    assert records
    segments = find_panoptic(model, image_a, NAMES, "native").records
    if task == "instance":
        assert records == [segment for segment in segments if segment["is_thing"]]
    if task == "semantic":
        assert len(records) < len(segments)
        for record in records:
            same = [s for s in segments if s["category_id"] == record["category_id"]]
            assert record["id"] == record["category_id"]
            assert record["object"]["name"] == same[0]["object"]["name"]
            assert record["area"] == sum(s["area"] for s in same)
            mean = sum(s["score"] * s["area"] for s in same) / record["area"]
            assert record["score"] == record["object"]["score"] == pytest.approx(mean)
            union = sum(rle.decode(s["segmentation"]).astype(int) for s in same)
            np.testing.assert_array_equal(rle.decode(record["segmentation"]), union)
    masks = np.stack([rle.decode(record["segmentation"]) for record in records])
    assert masks.sum(0).max() == 1


def test_what_a_model_needs_to_label_images(generic_model, tiny_model, image_a):
    assert can_label_images(generic_model)
    assert not can_label_images(tiny_model)
    meta = tiny_model.meta | {"class_heads_trained": True}
    assert not can_label_images(dataclasses.replace(tiny_model, meta=meta))
    meta |= {"panoptic_source": "masks"}
    assert can_label_images(dataclasses.replace(tiny_model, meta=meta))
    model = dataclasses.replace(
        generic_model, meta=generic_model.meta | {"panoptic_source": "queries"}
    )
    with pytest.raises(CheckpointError, match=r"panoptic_source is 'queries'.*calibrate"):
        find_panoptic(model, image_a, NAMES, "native")


def test_work_size_is_bounded():
    assert work_size((600, 800)) == (600, 800)
    height, width = work_size((20000, 5000))
    assert height * width <= 1_010_000


def test_what_an_image_cannot_be_labelled_with(generic_model, tiny_model, image_a):
    with pytest.raises(PromptError, match=r"'class 1' name parts.* object names only"):
        ask_generic(generic_model, image_a, {"parts": ["class 1"]}, "native")
    with pytest.warns(UserWarning, match="names of parts are ignored: 'class 1', 'class 2'."):
        answer = ask_generic(generic_model, image_a, "class 3;class 1,class 2", "native")
    assert answer.names.objects == ("class 3",)
    meta = tiny_model.meta | {"class_heads_trained": True}
    model = dataclasses.replace(
        tiny_model, meta=meta, name_embeddings=generic_model.name_embeddings
    )
    with pytest.raises(CheckpointError, match="generic"):
        ask_generic(model, image_a, NAMES, "native")
