"""The HTTP API and the page's routes, in one application with a tiny model."""

import base64
import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from semsam_jax import load_model
from semsam_jax.core import rle
from semsam_jax.demo import engine as engine_module
from semsam_jax.demo.engine import Engine, _unknown
from semsam_jax.demo.limits import Limits
from semsam_jax.demo.sessions import SessionStore
from semsam_jax.inference.outlines import polygon_mask
from semsam_jax.inference.results import UnknownName
from semsam_jax.inference.tiles import checked_overlap
from tests.demo.conftest import encoded, picture

HW = (120, 160)
IMAGE = base64.b64encode(encoded(picture(*HW), "PNG")).decode()
CLICK = {"image": IMAGE, "points": [[56, 60]]}


def masks_of(answer):
    assert answer.status_code == 200, answer.text
    return answer.json()["masks"]


def test_health_says_which_model(client):
    found = client.get("/health").json()
    assert (found["status"], found["levels"], found["knows_names"]) == ("healthy", 6, True)
    assert found["model"] == "tiny model"


def test_one_click_gives_the_best_level_or_all_of_them(client):
    best = client.post("/v1/segment", json=CLICK).json()
    assert (best["width"], best["height"]) == HW[::-1]
    assert len(best["masks"]) == 1
    everything = client.post("/v1/segment", json=CLICK | {"level": "all"}).json()["masks"]
    assert [mask["level"] for mask in everything] == [1, 2, 3, 4, 5, 6]
    assert best["masks"][0]["score"] == max(mask["score"] for mask in everything)
    three = masks_of(client.post("/v1/segment", json=CLICK | {"level": 3}))
    assert three[0]["segmentation"] == everything[2]["segmentation"]
    assert rle.decode(three[0]["segmentation"]).sum() == three[0]["area"]


def test_granularities_lie_between_the_levels(client):
    stops = client.get("/health").json()["stops"]
    assert (stops[0], stops[-1], len(stops)) == (1, 0, 6)
    levels = masks_of(client.post("/v1/segment", json=CLICK | {"level": "all"}))
    body = CLICK | {"granularity": [1, 0.5, 0]}
    found = masks_of(client.post("/v1/segment", json=body))
    assert [mask["granularity"] for mask in found] == [1, 0.5, 0]
    for i, level in ((0, 1), (2, 6)):
        assert found[i]["level"] == level
        # A mask without pixels gives way to the nearest level that has some.
        assert found[i]["area"] == levels[level - 1]["area"] or not levels[level - 1]["area"]
    one = masks_of(client.post("/v1/segment", json=CLICK | {"granularity": 0.5}))
    assert one == [found[1]]
    assert levels[0]["granularity"] is None


def test_everything_as_one_tree(client):
    large = base64.b64encode(encoded(picture(300, 1800))).decode()
    body = {"image": large, "min_score": 0.0, "grid": 16, "tree": True, "granularity": [0.1, 0.9]}
    nodes = masks_of(client.post("/v1/everything", json=body | {"labels": "dog; head"}))
    masks = [rle.decode(node["segmentation"]) for node in nodes]
    assert {mask.shape for mask in masks} == {(300, 1800)}
    assert any(node["depth"] for node in nodes)
    for node, mask in zip(nodes, masks, strict=True):
        assert mask.sum() == node["area"] > 0
        if node["parent"] is None:
            assert (node["depth"], node["granularity"], node["part"]) == (0, 1, None)
            continue
        assert not (mask & ~masks[node["parent"]]).any()
        assert node["depth"] == nodes[node["parent"]]["depth"] + 1
        assert node["granularity"] < nodes[node["parent"]]["granularity"]
    for parent in {node["parent"] for node in nodes}:
        own = [m for m, node in zip(masks, nodes, strict=True) if node["parent"] == parent]
        assert np.sum(own, axis=0).max() == 1


def test_an_image_is_sent_once(client):
    key = client.post("/v1/image", json={"image": f"data:image/png;base64,{IMAGE}"}).json()
    again = client.post("/v1/segment", json={"image_id": key["image_id"], "points": [[56, 60]]})
    assert again.json()["masks"] == masks_of(client.post("/v1/segment", json=CLICK))
    assert again.json()["image_id"] == key["image_id"]  # the same file is the same image
    for field in ("labels", "format"):  # of a request for masks
        wrong = client.post("/v1/image", json={"image": IMAGE, field: "png"})
        assert wrong.status_code == 400
        assert field in wrong.json()["error"]


def test_formats_describe_the_same_mask(client):
    body = CLICK | {"level": 1}
    found = {
        kind: masks_of(client.post("/v1/segment", json=body | {"format": kind}))[0]["segmentation"]
        for kind in ("rle", "polygons", "png")
    }
    mask = rle.decode(found["rle"])
    png = Image.open(io.BytesIO(base64.b64decode(found["png"].partition(",")[2])))
    assert ((np.asarray(png) > 0) == mask).all()
    drawn = np.zeros(HW, bool)
    for polygon in found["polygons"]:
        drawn |= polygon_mask(polygon, *HW)
    # Polygons are outer rings: a hole belongs to them.
    assert (drawn != ndimage.binary_fill_holes(mask)).mean() < 0.02


def test_boxes_are_one_object_each_and_names_come_along(client):
    boxes = [[20, 20, 90, 100], [100, 25, 140, 70]]
    body = {"image": IMAGE, "boxes": boxes, "labels": "dog, cat; head", "level": 2}
    answer = client.post("/v1/segment", json=body).json()
    assert [mask["prompt"] for mask in answer["masks"]] == [0, 1]
    assert answer["masks"][0]["object"]["name"] in ("dog", "cat")
    assert answer["masks"][0]["part"]["name"] == "head"
    assert answer["unknown"] == []  # this model has a text tower


def test_everything_has_masks_in_pixels_of_the_file(client):
    large = base64.b64encode(encoded(picture(1400, 1800))).decode()
    body = {"image": large, "min_score": 0.0, "grid": 8}
    masks = masks_of(client.post("/v1/everything", json=body))
    assert masks
    assert {tuple(mask["segmentation"]["size"]) for mask in masks} == {(1400, 1800)}


def test_tiles_are_of_the_file_at_full_resolution(client, monkeypatch):
    asked = []

    class Generator:
        names = None

        def __init__(self, model, **options):
            self.tile_overlap = checked_overlap(options["tile"], options["tile_overlap"])
            asked.append((options["tile"], options["tile_overlap"], options["points_per_side"]))

        def generate(self, pixels):
            asked.append(pixels.shape)
            return []

    monkeypatch.setattr(engine_module, "MaskGenerator", Generator)
    large = base64.b64encode(encoded(picture(1400, 1800))).decode()
    body = {"image": large, "tile": 512, "overlap": 64, "grid": 8}
    assert masks_of(client.post("/v1/everything", json=body)) == []
    assert asked == [(512, 64, 8), (1400, 1800, 3)]
    for wrong, status, word in (
        ({"tile": 128, "overlap": 64}, 413, "tile: 588 tiles"),
        ({"tile": 256, "overlap": 200}, 400, "overlap: an overlap of 200; expected 16..128"),
        ({"tile": None}, 400, "overlap: an overlap of 64 has no effect without tile"),
        ({"tile": 64}, 400, "tile"),
        ({"grid": 7}, 400, "expected one of 8, 16, 24, 32"),
        ({"level": 7}, 400, "expected 1..6 or all"),
        ({"image": None, "image_id": "unknown"}, 400, "image_id"),
    ):
        answer = client.post("/v1/everything", json=body | wrong)
        assert answer.status_code == status
        assert word in answer.json()["error"]


def test_names_like_a_text(client, checkpoint):
    assert client.get("/v1/names", params={"like": "dog"}).json() == {
        "source": "model",
        "names": [],
    }
    model = load_model(checkpoint)
    model = dataclasses.replace(model, meta=model.meta | {"text": {"source": "table"}})
    engine = Engine(model, Limits(), SessionStore(Limits()))
    assert engine.name_source == "table"
    assert engine.similar_names("dog")[0] == "dog"
    assert engine.similar_names("zebrra")[0] == "zebra"
    assert _unknown((UnknownName("gras", ("glass",)),)) == [{"name": "gras", "nearest": ("glass",)}]


BAD = {
    "no image": ({"points": [[1, 1]]}, 400, "image"),
    "two images": (CLICK | {"image_id": "x"}, 400, "image: give either"),
    "not base64": (CLICK | {"image": "$$$"}, 400, "base64"),
    "not an image": (CLICK | {"image": "aGVsbG8="}, 415, "JPEG"),
    "unknown key": (CLICK | {"pionts": []}, 400, "pionts"),
    "outside": (CLICK | {"points": [[161, 5]]}, 400, "points: 161,5: outside the image, which is"),
    "box": ({"image": IMAGE, "boxes": [[9, 9, 5, 5]]}, 400, "boxes: 9,9,5,5: empty; expected"),
    "NaN": (CLICK | {"points": [[float("nan"), 5]]}, 400, "finite"),
    "infinity": (CLICK | {"boxes": [[0, 0, float("inf"), 5]]}, 400, "finite"),
    "level": (CLICK | {"level": 9}, 400, "level: got '9'; expected 1 (coarsest) to 6"),
    "level 0": (CLICK | {"level": 0}, 400, "level: expected 'best' or 'all' or greater than"),
    "level text": (CLICK | {"level": "finest"}, 400, "level"),
    "granularity": (CLICK | {"granularity": 1.01}, 400, "granularity"),
    "granularities": (
        CLICK | {"granularity": [2, 3]},
        400,
        "granularity: expected a valid number or",
    ),
    "granularity text": (CLICK | {"granularity": "fine"}, 400, "granularity"),
    "granularity NaN": (CLICK | {"granularity": float("nan")}, 400, "granularity"),
    "no granularity": (CLICK | {"granularity": []}, 400, "granularity"),
    "level, granularity": (
        CLICK | {"granularity": 0.5, "level": 2},
        400,
        "granularity: got it together with level",
    ),
    "labels": (CLICK | {"labels": ","}, 400, "labels: no names"),
    "too many labels": (CLICK | {"labels": "a" * 5000}, 400, "labels: longer than 4000"),
    "too many clicks": (CLICK | {"points": [[1, 1]] * 17}, 400, "points: at most 16"),
    "too many boxes": (
        CLICK | {"points": [], "boxes": [[1, 1, 2, 2]] * 65},
        400,
        "boxes: at most 64",
    ),
    "forgotten": ({"image_id": "x" * 32, "points": [[1, 1]]}, 410, "no longer"),
    "nothing": ({"image": IMAGE}, 400, "points or boxes"),
    "negative only": (CLICK | {"point_labels": [0]}, 400, "points: nothing to segment"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_requests_are_refused_in_a_sentence(client, name):
    body, status, word = BAD[name]
    content = json.dumps(body)  # NaN and Infinity as Python writes them
    answer = client.post("/v1/segment", content=content, headers={"content-type": JSON})
    assert answer.status_code == status, answer.text
    assert word in answer.json()["error"]
    assert answer.json()["error"].endswith(".")


def test_errors_of_the_page_do_not_name_fields_of_the_api(client):
    upload = client.post("/api/image", content=encoded(picture(*HW))).json()
    body = {"image": upload["image"], "points": [[56, 60, 1]], "box": [], "names": ","}
    answer = client.post("/api/click", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("No names given; expected for example")


JSON = "application/json"


@pytest.mark.parametrize("content", [b"{", b"[1]", b"[" * 60_000, b"\xff\xfe", b"", b'"x"'])
@pytest.mark.parametrize("path", ["/v1/segment", "/v1/predict", "/label-studio/predict"])
def test_bodies_that_are_no_request(client, path, content):
    answer = client.post(path, content=content, headers={"content-type": JSON})
    assert answer.status_code == 400
    assert answer.json()["error"].endswith(".")


def test_a_body_that_is_too_large_is_not_read(client):
    answer = client.post("/v1/segment", content=b"x" * (12 << 20), headers={"content-type": JSON})
    assert answer.status_code == 413
    chunked = client.post("/v1/segment", content=iter([b"x"] * 3), headers={"content-type": JSON})
    assert chunked.status_code == 411


def test_a_body_of_another_kind_is_no_json(client):
    """Forms of other sites cannot send JSON without asking the browser first."""
    answer = client.post(
        "/v1/segment", content=json.dumps(CLICK), headers={"content-type": "text/plain"}
    )
    assert answer.status_code == 400
    assert "expected application/json" in answer.json()["error"]


def test_the_api_describes_itself(client):
    schema = client.get("/openapi.json").json()
    assert {"/v1/segment", "/v1/everything", "/v1/names", "/health"} <= set(schema["paths"])
    assert not [path for path in schema["paths"] if path.startswith("/api/")]
    page = client.get("/docs").text
    assert "/v1/segment" in page
    assert "point_labels" in page
    assert "<script" not in page


def test_edited_masks_names_and_every_kind_of_file(client):
    upload = client.post("/api/image", content=encoded(picture(*HW))).json()
    drawn = np.zeros(HW, np.uint8)
    drawn[10:30, 20:60] = 255
    url = "data:image/png;base64," + base64.b64encode(encoded(drawn, "PNG")).decode()
    body = {"image": upload["image"], "picture": url, "level": 2, "score": 0.5}
    edit = client.post("/api/edit", json=body).json()
    assert edit["area"] == pytest.approx(20 * 40 / (HW[0] * HW[1]), abs=1e-4)
    shown = client.post("/api/masks", json={"image": upload["image"], "masks": [edit["number"]]})
    content = base64.b64decode(shown.json()["masks"][0]["picture"].partition(",")[2])
    assert (np.asarray(Image.open(io.BytesIO(content))) == drawn).all()
    wrong = client.post("/api/edit", json=body | {"picture": url[:-30]})
    assert wrong.status_code == 400
    ask = {"image": upload["image"], "file_name": "my café.jpg"}
    ask["masks"] = [{"number": edit["number"], "name": "dog / head"}]
    names = {}
    for kind in ("coco", "labelme", "yolo", "masks", "panoptic", "overlay"):
        answer = client.post("/api/download", json=ask | {"kind": kind})
        assert answer.status_code == 200, answer.text
        names[kind] = answer.headers["content-disposition"].partition('"')[2].rstrip('"')
        if kind == "coco":
            assert answer.json()["categories"][0]["name"] == "dog:head"
            assert answer.json()["images"][0]["file_name"] == "my café.jpg"
        if kind == "panoptic":
            import zipfile

            archive = zipfile.ZipFile(io.BytesIO(answer.content))
            segments = json.loads(archive.read("panoptic.json"))["annotations"][0]["segments_info"]
            assert segments[0]["area"] == 800
            ids = np.asarray(Image.open(io.BytesIO(archive.read("my café.png")))).astype(int)
            assert ((ids[..., 0] + 256 * ids[..., 1]) == (drawn > 0)).all()
    assert names == {
        "coco": "my caf__coco.json",
        "labelme": "my caf_.json",
        "yolo": "my caf__yolo.zip",
        "masks": "my caf__masks.zip",
        "panoptic": "my caf__panoptic.zip",
        "overlay": "my caf__overlay.png",
    }
