"""Requests that nobody thought of, against the running server."""

import http.client
import json
import socket

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.demo.conftest import encoded, picture

pytestmark = pytest.mark.nightly

FUZZ = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
SMALL = st.one_of(st.none(), st.integers(-5, 200), st.floats(), st.text(max_size=3))
HEADS = [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a"]
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["dog", "dog;head", "zqxv", ";", ",", "é" * 50, "a" * 700, "\ud800"]),
    st.lists(
        st.one_of(st.none(), st.integers(-5, 200), st.floats(), st.text(max_size=3)), max_size=5
    ),
    st.lists(
        st.lists(st.one_of(st.integers(-5, 200), st.floats(), st.none()), max_size=4), max_size=4
    ),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
ROUTES = {
    "encode": (),
    "click": ("points", "box", "names", "granularity"),
    "everything": ("names", "level", "quality", "grid", "granularity"),
    "panoptic": ("names",),
    "download": ("kind", "masks", "file_name"),
    "masks": ("masks",),
    "edit": ("picture", "level", "score"),
    "forget": (),
}
GOOD = {
    "points": [[30, 30, 1]],
    "box": [],
    "names": "dog",
    "level": 0,
    "quality": 1.0,
    "grid": 8,
    "kind": "coco",
    "masks": [0],
    "file_name": "a.jpg",
    "picture": "data:image/png;base64,iVBORw0KGgo=",
    "score": 0.5,
    "granularity": 0.5,
}


@pytest.fixture(scope="module")
def image(server):
    return server.upload(encoded(picture()))


def is_answered(server, image):
    body = {"image": image, "points": [[30, 30, 1]], "box": [], "names": ""}
    return server.post("click", body).status == 200


@FUZZ
@given(st.sampled_from([name for name in ROUTES if name != "forget"]), st.data())
def test_any_value_of_any_field(server, image, route, data):
    body = {"image": image} | {key: GOOD[key] for key in ROUTES[route]}
    for key in data.draw(st.lists(st.sampled_from(sorted(body)), min_size=1, max_size=2)):
        body[key] = data.draw(ODD)
    answer = server.post(route, json.dumps(body).encode("utf-8", "surrogatepass"))
    assert answer.status < 500, (route, body, answer.content)
    if answer.status >= 400:
        assert answer.json["error"]
        assert len(answer.content) < 2000


@FUZZ
@given(st.sampled_from(sorted(ROUTES)), st.one_of(st.binary(max_size=60), st.text(max_size=60)))
def test_any_body(server, route, body):
    content = body if isinstance(body, bytes) else body.encode("utf-8", "surrogatepass")
    assert 400 <= server.post(route, content).status < 500


@FUZZ
@given(
    st.binary(max_size=300),
    st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a"]),
)
def test_any_file(server, content, head):
    answer = server.post("image", head + content)
    assert 400 <= answer.status < 500, answer.content


@FUZZ
@given(
    st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=40),
    st.sampled_from(["GET", "POST", "PUT", "HEAD", "OPTIONS", "PATCH", "TRACE"]),
)
def test_any_path(server, path, method):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        connection.putrequest(method, f"/{path}", skip_host=False)
        connection.putheader("content-length", "0")
        connection.endheaders()
        status = connection.getresponse().status
    except (ValueError, http.client.HTTPException):
        return  # the client itself refuses the path, or the server closed the connection
    finally:
        connection.close()
    assert status < 500


@FUZZ
@given(st.lists(st.binary(min_size=1, max_size=80), max_size=4))
def test_any_bytes_on_the_line(server, pieces):
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as line:
        try:
            for piece in pieces:
                line.sendall(piece)
            line.shutdown(socket.SHUT_WR)
        except OSError:
            return  # the server may close at any piece


def test_the_server_still_answers(server, image):
    assert server.process.poll() is None
    assert is_answered(server, image)
    assert server.memory_mb("VmHWM") < 4000
