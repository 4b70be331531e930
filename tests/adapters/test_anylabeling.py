"""X-AnyLabeling's requests and answers, as its client writes and reads them."""

import base64

import numpy as np
import pytest

from semsam_jax.adapters import anylabeling
from semsam_jax.demo.engine import Engine
from semsam_jax.inference.outlines import polygon_mask
from tests.demo.conftest import encoded, picture

HW = (120, 160)
IMAGE = "data:image/png;base64," + base64.b64encode(encoded(picture(*HW), "PNG")).decode()
PARAMS = {"conf_threshold": 0.0, "iou_threshold": 0.0, "epsilon_factor": 0.001}
POINT = {"type": "point", "data": [56, 60], "label": 1}
SHAPE_KEYS = {"label", "shape_type", "points", "score", "group_id", "description", "attributes",
              "difficult", "direction", "flags", "kie_linking"}  # fmt: skip


def predict(client, model="semantic_sam_best", image=IMAGE, **params):
    body = {"model": model, "image": image, "params": PARAMS | params}
    answer = client.post("/v1/predict", json=body, headers={"Token": ""})
    assert answer.status_code == 200, answer.text
    return answer.json()


def area(shapes):
    drawn = np.zeros(HW, bool)
    for shape in shapes:
        assert shape["shape_type"] == "polygon"
        assert shape["points"][0] == shape["points"][-1]
        drawn |= polygon_mask(shape["points"][:-1], *HW)
    return int(drawn.sum())


def test_models_are_levels_with_the_buttons_that_they_need(client):
    found = client.get("/v1/models").json()
    assert found["success"] is True
    models = found["data"]
    assert list(models)[:2] == ["semantic_sam_best", "semantic_sam_level_1"]
    assert len(models) == 8
    buttons = [widget["name"] for widget in models["semantic_sam_level_3"]["widgets"]]
    assert {"button_add_point", "button_remove_point", "button_add_rect"} <= set(buttons)
    buttons = [widget["name"] for widget in models["semantic_sam_everything"]["widgets"]]
    assert {"button_run", "edit_text", "edit_conf"} <= set(buttons)
    info = client.get("/v1/models/semantic_sam_best/info").json()
    assert info["data"]["model_id"] == "semantic_sam_best"
    assert client.get("/health").json()["status"] == "healthy"


def test_clicks_and_a_rectangle_give_a_shape_to_be_named(client):
    found = predict(client, marks=[POINT])
    shapes = found["data"]["shapes"]
    assert set(shapes[0]) == SHAPE_KEYS
    assert shapes[0]["label"] == "AUTOLABEL_OBJECT"
    assert area(shapes) > 0
    box = {"type": "rectangle", "data": [90, 100, 20, 20], "label": 1}  # drawn from the right
    negative = {"type": "point", "data": [150, 110], "label": 0}
    assert predict(client, marks=[box, negative])["success"] is True
    areas = [
        area(predict(client, f"semantic_sam_level_{i}", marks=[POINT])["data"]["shapes"])
        for i in range(1, 7)
    ]
    assert len(set(areas)) > 1
    assert predict(client)["data"]["shapes"] == []  # opening an image asks without marks


def test_the_pieces_of_masks_share_a_group_that_no_other_answer_has():
    masks = np.zeros((3, *HW), bool)
    masks[0, 5:15, 5:15] = masks[0, 5:15, 30:40] = True
    masks[1, 50:60, 5:15] = masks[1, 50:60, 30:40] = True
    masks[2, 90:99, 5:15] = True
    answers = [anylabeling.shapes([{"segmentation": mask}], 0.001) for mask in masks]
    (a, b), (c, d), (single,) = [[shape["group_id"] for shape in shapes] for shapes in answers]
    assert a == b != c == d
    assert 0 <= a < 2**31
    assert single is None


def test_everything_is_kept_when_it_has_a_wanted_name(client):
    found = predict(client, "semantic_sam_everything", conf_threshold=0.01)
    assert found["data"]["shapes"]
    assert "replace" not in found["data"]  # the annotator's switch decides
    named = predict(client, "semantic_sam_everything", text_prompt="dog.cat")
    assert {shape["label"] for shape in named["data"]["shapes"]} <= {"dog", "cat"}


def test_the_suggested_score_stands_for_the_thresholds_of_the_model(client, monkeypatch):
    asked = []

    def find(self, pixels, names, level, quality, grid):
        asked.append(quality)
        return [], [], 0

    monkeypatch.setattr(Engine, "find_everything", find)
    models = client.get("/v1/models").json()["data"]
    widgets = models["semantic_sam_everything"]["widgets"]
    shown = next(widget["value"] for widget in widgets if widget["name"] == "edit_conf")
    for score in (shown, None, 0.0, 0, 0.25):
        assert predict(client, "semantic_sam_everything", conf_threshold=score)["success"]
    body = {"model": "semantic_sam_everything", "image": IMAGE, "params": {}}
    assert client.post("/v1/predict", json=body).json()["success"]
    assert asked == [None, None, 0.0, 0.0, 0.25, None]


def test_what_an_annotator_drew_is_not_replaced_by_a_click_or_by_nothing(client):
    """X-AnyLabeling empties an image before it adds the shapes of an answer with `replace`."""
    nothing = predict(client, "semantic_sam_everything", text_prompt="zqxv", conf_threshold=0.5)
    assert nothing["data"] == {"shapes": [], "description": "", "replace": False}
    assert predict(client, marks=[POINT])["data"]["replace"] is False
    assert predict(client)["data"]["replace"] is False
    assert predict(client, image="%%%", marks=[POINT])["data"]["replace"] is False


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"model": "yolo"}, "MODEL_NOT_FOUND"),
        ({"image": "%%%", "marks": [POINT]}, "INVALID_IMAGE"),
        ({"marks": [{"type": "point", "data": [1]}]}, "INVALID_PARAMS"),
        ({"marks": [{"type": "circle", "data": [1, 2]}]}, "INVALID_PARAMS"),
        ({"marks": "x"}, "INVALID_PARAMS"),
        ({"marks": [{"type": "point", "data": [900, 1], "label": 1}]}, "INFERENCE_ERROR"),
        ({"epsilon_factor": -1, "marks": [POINT]}, "INVALID_PARAMS"),
        ({"text_prompt": 3, "marks": [POINT]}, "INVALID_PARAMS"),
    ],
)
def test_errors_are_answers_with_a_code(client, change, code):
    found = predict(client, **change)
    assert found["success"] is False
    assert found["error"]["code"] == code
    assert found["error"]["message"].endswith(".")
