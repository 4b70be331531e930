"""CVAT's detection and interaction functions, driven by cvat_sdk's own interfaces."""

import numpy as np
import pytest
from PIL import Image

from semsam_jax import load_model
from semsam_jax.adapters import cvat, cvat_click
from semsam_jax.core.errors import PromptError
from semsam_jax.inference.mask_generator import MaskGenerator
from semsam_jax.inference.results import ScoredName
from tests.demo.conftest import picture

tools = pytest.importorskip("cvat_sdk.auto_annotation", reason="pip install cvat-sdk")
HW = (120, 160)
IMAGE = Image.fromarray(picture(*HW))


class Context(tools.DetectionFunctionContext):
    frame_name = "a.png"
    conv_mask_to_poly = False

    def __init__(self, conf_threshold=None, conv_mask_to_poly=False):
        self.least, self.conv_mask_to_poly = conf_threshold, conv_mask_to_poly

    @property
    def conf_threshold(self):
        return self.least


class Prompts(tools.InteractionPrompts):
    pos_points, neg_points, bounding_box = [(56.0, 60.0)], [(150.0, 110.0)], None


@pytest.fixture(scope="module")
def model(checkpoint):
    return load_model(checkpoint)


def create(checkpoint, **arguments):
    few = {"points_per_side": 4, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    return cvat.create(str(checkpoint), **few, **arguments)


def test_masks_of_an_image_as_cvat_takes_them(checkpoint):
    from cvat_sdk.masks import decode_mask

    function = create(checkpoint)
    assert [label.name for label in function.spec.labels] == ["object"]
    shapes = function.detect(Context(), IMAGE)
    assert shapes
    for shape in shapes:
        assert (shape.type.value, shape.frame, shape.label_id) == ("mask", 0, 1)
        assert decode_mask(shape.points, image_width=HW[1], image_height=HW[0]).any()
    polygons = function.detect(Context(conv_mask_to_poly=True), IMAGE)
    assert {shape.type.value for shape in polygons} == {"polygon"}
    assert all(len(shape.points) >= 6 for shape in polygons)
    assert function.detect(Context(conf_threshold=99.0), IMAGE) == []


def test_masks_carry_the_label_of_their_surest_name(checkpoint, monkeypatch):
    function = create(checkpoint, labels="dog,cat;head")
    assert {label.name: label.id for label in function.spec.labels} == {
        "dog": 1,
        "cat": 2,
        "head": 3,
    }
    records = MaskGenerator(
        load_model(checkpoint), 4, pred_iou_thresh=0.0, stability_score_thresh=0.0,
        output_mode="coco_rle",
    ).generate(IMAGE)[:3]  # fmt: skip
    scored = [ScoredName("dog", 0.4), ScoredName("dog", 0.1, False), ScoredName("dog", 0.3)]
    for record, name in zip(records, scored, strict=True):
        record["object"] = name.record()
    records[2]["part"] = ScoredName("head", 0.6).record()
    monkeypatch.setattr(MaskGenerator, "generate", lambda self, image: records)
    assert [shape.label_id for shape in function.detect(Context(), IMAGE)] == [1, 3]
    with pytest.raises(PromptError, match="level"):
        create(checkpoint, level="9")


def test_a_click_in_cvat(model):
    from cvat_sdk.masks import decode_mask

    function = cvat_click.InteractionFunction(model, "2")
    assert function.spec.min_neg_points == 0
    ready = function.preprocess_image(None, IMAGE)
    found = function.detect(None, ready, Prompts())
    wanted = ready.predict([[56, 60], [150, 110]], [1, 0], level=2).masks[0]
    assert [shape.type for shape in found] == ["mask"] * bool(wanted.any())
    for shape in found:
        mask = decode_mask(shape.points, image_width=HW[1], image_height=HW[0])
        assert (mask == np.asarray(wanted)).all()
