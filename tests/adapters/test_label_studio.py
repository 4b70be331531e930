"""Label Studio's requests and answers, as its own connector writes and reads them."""

import base64
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest

from semsam_jax.adapters.label_studio import read_control, read_interaction
from semsam_jax.core import rle
from semsam_jax.core.errors import DataError, PromptError
from semsam_jax.demo.engine import Engine
from semsam_jax.demo.limits import HTTPError, Limits
from semsam_jax.demo.task_images import TaskImages
from semsam_jax.inference.outlines import polygon_mask
from tests.adapters.test_label_studio_brush import decode
from tests.demo.conftest import encoded, picture

HW = (120, 160)
PNG = encoded(picture(*HW), "PNG")
DATA_URL = "data:image/png;base64," + base64.b64encode(PNG).decode()
BRUSH = """<View>
  <!-- smart tools mark, brush labels receive -->
  <Image name="image" value="$picture" zoom="true"/>
  <BrushLabels name="tag" toName="image"><Label value="Dog"/><Label value="Cat"/></BrushLabels>
  <KeyPointLabels name="point" toName="image" smart="true"><Label value="Dog"/></KeyPointLabels>
  <RectangleLabels name="box" toName="image" smart="true"><Label value="Cat"/></RectangleLabels>
</View>"""
POLYGON = BRUSH.replace("BrushLabels", "PolygonLabels")


def keypoint(x, y, is_positive=1, label="Dog"):
    value = {"x": x, "y": y, "width": 0.6, "keypointlabels": [label]}
    about = {"original_width": HW[1], "original_height": HW[0], "image_rotation": 0}
    about |= {"from_name": "point", "to_name": "image", "type": "keypointlabels", "id": "a"}
    return about | {"value": value, "is_positive": is_positive}


def rectangle(x, y, width, height):
    value = {"x": x, "y": y, "width": width, "height": height, "rotation": 0}
    mark = keypoint(x, y) | {"type": "rectanglelabels", "from_name": "box"}
    return mark | {"value": value | {"rectanglelabels": ["Cat"]}}


def request(config, *marks, address=DATA_URL):
    return {
        "tasks": [{"id": 7, "data": {"picture": address}, "annotations": [], "predictions": []}],
        "model_version": "semantic-sam",
        "project": "3.1764300000",
        "label_config": config,
        "params": {"login": None, "password": None, "context": {"result": list(marks)}},
    }


def predict(client, body, path="/label-studio"):
    answer = client.post(f"{path}/predict", json=body)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["results"]) == 1
    return answer.json()["results"][0]


def test_a_project_is_connected(client):
    assert client.get("/label-studio/health").json()["status"] == "UP"
    body = {"project": "3.17", "schema": BRUSH, "hostname": "http://x", "access_token": "y"}
    answer = client.post("/label-studio/setup", json=body | {"extra_params": None})
    assert answer.json() == {"model_version": "semantic-sam"}
    assert client.post("/label-studio/webhook", json={"action": "PROJECT_UPDATED"}).is_success
    without = client.post("/label-studio/setup", json=body | {"schema": "<View/>"})
    assert without.status_code == 400
    assert "<Image>" in without.json()["error"]


def test_a_click_gives_a_brush_mask_of_its_label(client):
    found = predict(client, request(BRUSH, keypoint(35, 50)))
    (region,) = found["result"]
    about = ("from_name", "to_name", "type", "original_width", "original_height", "image_rotation")
    assert [region[key] for key in about] == ["tag", "image", "brushlabels", 160, 120, 0]
    assert region["value"]["brushlabels"] == ["Dog"]
    assert region["value"]["format"] == "rle"
    mask = decode(region["value"]["rle"], HW)[..., 3] > 0
    assert mask.any()
    assert 0 <= region["score"] <= 2
    key = base64.b64encode(PNG).decode()
    body = {"image": key, "points": [[0.35 * 160, 60]], "format": "png"}
    best = client.post("/v1/segment", json=body).json()["masks"][0]
    assert best["area"] == mask.sum()


def test_the_level_is_part_of_the_address_or_a_parameter(client):
    areas = []
    for level in (1, 5):
        body = request(BRUSH, keypoint(35, 50))
        found = predict(client, body, f"/label-studio/level/{level}")
        assert found["model_version"] == f"semantic-sam-level-{level}"
        body["params"]["level"] = level
        again = predict(client, body)
        rle = [r["result"][0]["value"]["rle"] for r in (found, again) if r["result"]]
        assert all(one == rle[0] for one in rle)
        areas.append(sum(int((decode(one, HW)[..., 3] > 0).sum()) for one in rle))
    assert areas[0] != areas[1]
    wrong = client.get("/label-studio/level/9/health")
    assert wrong.status_code == 400


def test_a_box_and_a_negative_click_give_polygons(client):
    marks = [rectangle(12, 15, 45, 70), keypoint(90, 90, 0)]
    found = predict(client, request(POLYGON, *marks))
    assert found["result"]
    drawn = np.zeros(HW, bool)
    for region in found["result"]:
        assert region["type"] == "polygonlabels"
        assert region["value"]["polygonlabels"] == ["Cat"]
        points = np.array(region["value"]["points"])
        assert points.min() >= 0
        assert points.max() <= 100
        drawn |= polygon_mask(points * [1.6, 1.2], *HW)
    assert drawn.any()


def test_marks_are_read_in_pixels():
    marks = [keypoint(25, 50), keypoint(75, 50, 0), rectangle(10, 20, 30, 40)]
    found = read_interaction({"result": marks})
    assert found.request.point_coords == [[40.0, 60.0], [120.0, 60.0]]
    assert found.request.point_labels == [1, 0]
    assert found.request.box == [16.0, 24.0, 64.0, 72.0]
    assert (found.label, found.image_hw) == ("Dog", HW)
    assert read_interaction({"result": []}) is None
    assert read_interaction(None) is None


def test_a_turned_rectangle_is_enclosed():
    mark = rectangle(50, 25, 25, 25)  # 40 by 30 pixels at 80,30
    mark["value"]["rotation"] = 90  # clockwise about its upper left corner
    found = read_interaction({"result": [mark]})
    assert found.request.box == pytest.approx([50.0, 30.0, 80.0, 70.0])


BAD_MARKS = {
    "rotated": keypoint(1, 1) | {"image_rotation": 90},
    "NaN": keypoint(float("nan"), 1),
    "no size": {key: v for key, v in keypoint(1, 1).items() if key != "original_width"},
    "text": keypoint("1", 1),
    "turned by text": rectangle(1, 1, 5, 5)
    | {"value": {"x": 1, "y": 1, "width": 5, "height": 5, "rotation": "90"}},
}


@pytest.mark.parametrize("name", BAD_MARKS)
def test_damaged_marks_are_refused(name):
    with pytest.raises(PromptError):
        read_interaction({"result": [BAD_MARKS[name]]})


def test_configurations():
    control = read_control(BRUSH)
    assert (control.kind, control.image_key) == ("brushlabels", "picture")
    assert control.labels == ("Dog", "Cat")
    bomb = '<!DOCTYPE x [<!ENTITY a "b">]><View>&a;</View>'
    for config in (None, "", "<View", "<View/>", bomb, BRUSH.replace("BrushLabels", "Choices")):
        with pytest.raises(DataError):
            read_control(config)


def test_without_a_mark_the_labels_are_looked_for(client):
    body = request(BRUSH)
    found = predict(client, body)  # the tiny model is sure of nothing, or names what it finds
    assert {r["value"]["brushlabels"][0] for r in found["result"]} <= {"Dog", "Cat"}


def test_found_labels_are_those_of_the_project(client, monkeypatch):
    asked = []

    def find(engine, pixels, names, *others):
        asked.append(names)
        mask = {"segmentation": rle.encode(np.ones(HW, bool)), "score": 0.5}
        sure = [
            {"name": name.strip(), "score": 0.5, "is_sure": True} for name in names[:-1].split(",")
        ]
        return [mask | {"object": name} for name in sure], [], 0

    monkeypatch.setattr(Engine, "find_everything", find)
    config = BRUSH.replace('value="Dog"', 'value="Dog, small; brown"')
    found = predict(client, request(config))
    assert asked == ["Dog  small  brown, Cat;"]
    labels = [region["value"]["brushlabels"] for region in found["result"]]
    assert labels == [["Dog, small; brown"], ["Cat"]]
    config = BRUSH.replace('value="Dog"', f'value="{"d" * 5000}"')
    answer = client.post("/label-studio/predict", json=request(config))
    assert answer.status_code == 400
    assert "names are longer than" in answer.json()["error"]


@pytest.fixture
def studio():
    """A host that hands out one image to those who know the token."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append((self.path, self.headers.get("authorization")))
            if self.path == "/data/away.png":
                self.send_response(302)
                self.send_header("location", "http://127.0.0.2:9/evil.png")
                self.end_headers()
                return
            is_known = self.headers.get("authorization") in ("Token legacy", "Bearer bought")
            self.send_response(200 if is_known else 401)
            self.end_headers()
            self.wfile.write(PNG if is_known else b"")

        def do_POST(self):
            seen.append((self.path, None))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"access": "bought"}')

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", seen
    server.shutdown()
    server.server_close()


def test_images_come_from_label_studio_and_nowhere_else(studio):
    url, seen = studio
    images = TaskImages(Limits(), url, "legacy")
    for address in ("/data/upload/1/a.png", f"{url}/data/upload/1/a.png"):
        assert images.fetch(address) == PNG
    assert images.fetch("s3://bucket/a.png", 7) == PNG
    assert seen[-1][0].startswith("/tasks/7/resolve/?fileuri=")
    assert TaskImages(Limits(), url, "aa.bb.cc").fetch("/data/a.png") == PNG
    assert images.fetch(DATA_URL) == PNG
    images.fetch("//127.0.0.2/x.png")  # no other host: a path
    assert seen[-1][0] == "/127.0.0.2/x.png"
    for address, sent in (
        ("/data/my dog é.png?a=b c", "/data/my%20dog%20%C3%A9.png?a=b%20c"),
        (f"{url}/data/猫 (1).png", "/data/%E7%8C%AB%20(1).png"),
        ("/data/my%20dog.png", "/data/my%20dog.png"),  # coded already
        ("/data/\ud800.png", "/data/?.png"),
    ):
        assert images.fetch(address) == PNG
        assert seen[-1][0] == sent
    refused = ("http://127.0.0.2:9/a.png", "file:///etc/passwd", f"{url}.evil.example/a", "", None)
    for address in (*refused, "/data/away.png", 7):
        with pytest.raises(HTTPError):
            images.fetch(address)
    assert not [path for path, _ in seen if "evil" in path]
    with pytest.raises(HTTPError, match="LABEL_STUDIO_API_KEY"):
        TaskImages(Limits(), url, "wrong").fetch("/data/a.png")
    with pytest.raises(HTTPError, match="--label-studio-url"):
        TaskImages(Limits()).fetch("/data/a.png")
    with pytest.raises(HTTPError, match="larger"):
        TaskImages(Limits(upload_bytes=100), url, "legacy").fetch("/data/a.png")


def test_damaged_requests_are_refused(client):
    good = request(BRUSH, keypoint(35, 50))
    for change in (
        {"tasks": "x"},
        {"tasks": [good["tasks"][0]] * 17},
        {"label_config": "<View/>"},
        {"tasks": [{"data": {"picture": "/data/upload/a.png"}}]},
        {"params": {"context": {"result": [BAD_MARKS["rotated"]]}}},
        {"params": {"level": "finest", "context": good["params"]["context"]}},
    ):
        answer = client.post("/label-studio/predict", json=good | change)
        assert answer.status_code == 400, change
        assert answer.json()["error"].endswith(".")
