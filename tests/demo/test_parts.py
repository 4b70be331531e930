"""The parts of the demo without a server: executors, sessions, middleware, uploads."""

import asyncio
import base64
import threading

import numpy as np
import pytest

from semsam_jax.core.errors import ConfigError
from semsam_jax.demo import cli
from semsam_jax.demo.executors import Executors
from semsam_jax.demo.gate import Gate
from semsam_jax.demo.limits import HTTPError, Limits
from semsam_jax.demo.sessions import SessionStore
from semsam_jax.demo.uploads import WORK_SIDE, Upload, read_upload
from tests.demo.conftest import encoded, picture

LIMITS = Limits(quick_waiting=3, quick_per_client=2, slow_waiting=2, images=4, images_per_client=2)


def record(size=100):
    return {"segmentation": {"size": [1, 1], "counts": "x" * size}}


def an_image():
    return Upload(picture(20, 30), (20, 30))


def test_executors_refuse_what_is_too_much_and_recover():
    async def scenario():
        executors, hold = Executors(LIMITS), threading.Event()
        first = [asyncio.create_task(executors.run("quick", "a", hold.wait)) for _ in range(2)]
        await asyncio.sleep(0.01)
        with pytest.raises(HTTPError) as own:
            await executors.run("quick", "a", hold.wait)
        other = asyncio.create_task(executors.run("quick", "b", lambda: "b"))
        await asyncio.sleep(0.01)
        with pytest.raises(HTTPError) as full:
            await executors.run("quick", "c", lambda: "c")
        assert await executors.run("slow", "a", lambda: "slow") == "slow"
        other.cancel()  # this visitor goes away; the place is taken until the work is over
        hold.set()
        await asyncio.gather(*first)
        await asyncio.sleep(0.05)
        assert await executors.run("quick", "a", lambda: 7) == 7
        executors.close()
        return own.value.status, full.value.status

    assert asyncio.run(scenario()) == (429, 503)


def test_errors_of_the_work_arrive():
    async def scenario():
        executors = Executors(LIMITS)
        with pytest.raises(ZeroDivisionError):
            await executors.run("quick", "a", lambda: 1 / 0)
        assert await executors.run("quick", "a", lambda: 1) == 1
        executors.close()

    asyncio.run(scenario())


def test_images_are_forgotten_oldest_of_the_same_visitor_first():
    now = [0.0]
    sessions = SessionStore(LIMITS, lambda: now[0])
    keys = [sessions.add(an_image(), "a") for _ in range(2)]
    other = [sessions.add(an_image(), "b") for _ in range(2)]
    sessions.get(keys[0])
    newest = sessions.add(an_image(), "a")
    with pytest.raises(HTTPError) as gone:
        sessions.get(keys[1])
    assert gone.value.is_gone
    assert gone.value.status == 410
    for key in (*other, keys[0], newest):
        sessions.get(key)
    sessions.add(an_image(), "c")
    assert len(sessions) == LIMITS.images
    now[0] = LIMITS.image_idle_sec + 1
    sessions.forget_idle()
    assert len(sessions) == 0


def test_masks_are_forgotten_when_they_take_too_much_room():
    sessions = SessionStore(LIMITS)
    session = sessions.get(sessions.add(an_image(), "a"))
    first = session.remember([record()] * 3, 5000)
    assert session.recall(first) == [record()] * 3
    second = session.remember([record(4000)], 5000)
    assert session.recall(second) == [record(4000)]
    with pytest.raises(HTTPError, match="no longer in memory"):
        session.recall(first)
    third = session.remember([record(9000)], 5000)
    assert session.recall(third)


def test_encoded_images_are_put_away_beyond_the_limit():
    sessions = SessionStore(Limits(feature_bytes=250))
    opened = [sessions.get(sessions.add(an_image(), str(i))) for i in range(4)]
    for session in opened:
        session.predictor = object()
        sessions.put_features_away(100)
    assert [session.predictor is not None for session in opened] == [False, False, True, True]


def send(gate, path="/", method="GET", headers=(), client="1.2.3.4", query=b""):
    """One request to a gate; returns its status and headers."""
    scope = {"type": "http", "path": path, "method": method, "client": (client, 1)}
    scope |= {"headers": list(headers), "server": ("127.0.0.1", 7860), "query_string": query}
    if method == "POST":
        scope["headers"].append((b"content-length", b"0"))
    sent = []

    async def run():
        async def receive():
            return {"type": "http.request", "body": b"", "more_body": False}

        async def keep(message):
            sent.append(message)

        await gate(scope, receive, keep)

    asyncio.run(run())
    return sent[0]["status"], {k.decode(): v.decode() for k, v in sent[0]["headers"]}


async def hello(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


def test_the_gate_behind_a_proxy_with_a_name_and_a_path():
    seen = []

    async def app(scope, receive, send):
        seen.append(scope["path"])
        await hello(scope, receive, send)

    middleware = Gate(app, LIMITS, is_local=True, public_url="https://Lab.example:81/tools/x/")
    public, site = (b"host", b"lab.example:81"), (b"origin", b"https://lab.example:81")
    own = (b"host", b"127.0.0.1:7860")  # a proxy may put its own name for the server there
    for host in (public, own):
        assert send(middleware, "/tools/x/", headers=[host])[0] == 200
        assert send(middleware, "/", headers=[host])[0] == 200
        for path in ("/tools/x/api/click", "/api/click"):
            assert send(middleware, path, "POST", headers=[host, site])[0] == 200
        evil = (b"origin", b"https://evil.example")
        assert send(middleware, "/api/click", "POST", headers=[host, evil])[0] == 403
    assert seen == ["/", "/", "/api/click", "/api/click"] * 2
    status, headers = send(middleware, "/tools/x", headers=[public])
    assert (status, headers["location"]) == (307, "/tools/x/")
    assert send(middleware, "/tools/xyz", headers=[public])[0] == 404
    assert send(middleware, headers=[(b"host", b"evil.example")])[0] == 403


@pytest.mark.parametrize("url", ["lab.example", "ftp://x", "http://", "http://a/b?c", "http://a:b"])
def test_public_urls_that_are_none(url):
    with pytest.raises(ConfigError, match="--public-url"):
        cli._checked_url("--public-url", url)


def test_the_gate_knows_its_paths_names_and_origins():
    middleware = Gate(hello, LIMITS, is_local=True)
    home = (b"host", b"127.0.0.1:7860")
    assert send(middleware, headers=[home])[0] == 200
    assert "default-src 'self'" in send(middleware, headers=[home])[1]["content-security-policy"]
    assert send(middleware, headers=[(b"host", b"LOCALHOST:7860")])[0] == 200
    assert send(middleware, headers=[(b"host", b"evil.example:7860")])[0] == 403
    assert send(middleware)[0] == 403
    assert send(Gate(hello, LIMITS, is_local=False), headers=[(b"host", b"my.lab")])[0] == 200
    post = {"path": "/api/click", "method": "POST"}
    assert send(middleware, **post, headers=[home])[0] == 200
    assert send(middleware, **post, headers=[home, (b"origin", b"http://127.0.0.1:7860")])[0] == 200
    assert send(middleware, **post, headers=[home, (b"origin", b"http://127.0.0.1:1")])[0] == 403
    assert send(middleware, **post, headers=[home, (b"origin", b"null")])[0] == 403
    assert send(middleware, headers=[(b"host", b"localhost:8888")])[0] == 200  # a mapped port
    mapped = [(b"host", b"localhost:8888"), (b"origin", b"http://localhost:8888")]
    assert send(middleware, **post, headers=mapped)[0] == 200
    assert send(middleware, headers=[(b"host", b"localhost.evil.example:8888")])[0] == 403
    assert send(middleware, headers=[(b"host", b"evil.example:1:8888")])[0] == 403
    assert send(middleware, "/secret", headers=[home])[0] == 404
    assert send(middleware, "/static/../x", headers=[home])[0] == 404
    assert send(middleware, "/", "DELETE", headers=[home])[0] == 405


def test_a_proxy_may_drop_the_port_and_default_ports_do_not_count():
    gate = Gate(hello, LIMITS, is_local=True, public_url="https://lab.example:8443")
    site = (b"origin", b"https://lab.example:8443")
    for host in (b"lab.example", b"lab.example:8443"):
        assert send(gate, "/", headers=[(b"host", host)])[0] == 200
        assert send(gate, "/api/click", "POST", headers=[(b"host", host), site])[0] == 200
    other = (b"origin", b"https://lab.example:9")
    own = (b"host", b"lab.example")
    assert send(gate, "/api/click", "POST", headers=[own, other])[0] == 403
    assert send(gate, "/", headers=[(b"host", b"lab.example.evil.example")])[0] == 403
    plain = Gate(hello, LIMITS, is_local=True, public_url="https://lab.example:443/x")
    site = (b"origin", b"https://lab.example")
    assert send(plain, "/api/click", "POST", headers=[own, site])[0] == 200


def test_a_token_is_asked_for_everywhere_but_for_the_health():
    token = "a-long-secret-token"
    gate = Gate(hello, LIMITS, is_local=False, token=token, public_url="https://lab.example/x")
    for path in ("/", "/docs", "/static/app.js", "/v1/names", "/label-studio/versions"):
        assert send(gate, path)[0] == 401
    assert send(gate, "/v1/predict", "POST")[0] == 401
    assert send(gate, "/health")[0] == 200
    for wrong in (b"Bearer a-long-secret-toke", b"Basic !!!", b"Basic eDp5", b"Bearer \xff"):
        assert send(gate, "/docs", headers=[(b"authorization", wrong)])[0] == 401
    right = [b"Bearer " + token.encode(), b"Token " + token.encode()]
    right.append(b"Basic " + base64.b64encode(b"anybody:" + token.encode()))
    for header in right:
        assert send(gate, "/docs", headers=[(b"authorization", header)])[0] == 200
    assert send(gate, "/docs", headers=[(b"token", token.encode())])[0] == 200
    assert send(gate, "/", query=b"token=wrong")[0] == 401
    status, headers = send(gate, "/", query=b"token=" + token.encode())
    assert (status, headers["location"]) == (307, "/x/")
    assert "HttpOnly" in headers["set-cookie"]
    cookie = headers["set-cookie"].partition(";")[0].encode()
    assert send(gate, "/", headers=[(b"cookie", cookie)])[0] == 200


def test_other_sites_may_use_the_api_if_they_are_named():
    gate = Gate(hello, LIMITS, is_local=True, origins=("https://tool.example",))
    home, site = (b"host", b"127.0.0.1:7860"), (b"origin", b"https://tool.example")
    assert send(gate, "/v1/segment", "POST", headers=[home, site])[0] == 200
    assert send(gate, "/v1/segment", "OPTIONS", headers=[home, site])[0] == 200
    evil = (b"origin", b"https://evil.example")
    assert send(gate, "/v1/segment", "POST", headers=[home, evil])[0] == 403
    assert send(gate, "/v1/segment", "OPTIONS", headers=[home, evil])[0] == 403
    closed = Gate(hello, LIMITS, is_local=True)
    assert send(closed, "/v1/segment", "OPTIONS", headers=[home])[0] == 405


def test_the_gate_counts_requests_of_each_address():
    async def scenario():
        release, answers = asyncio.Event(), []

        async def slow(scope, receive, send):
            await release.wait()
            await hello(scope, receive, send)

        middleware = Gate(slow, Limits(requests_per_client=2), is_local=False)

        async def ask(client):
            scope = {"type": "http", "path": "/api/click", "method": "POST", "headers": []}
            scope |= {"client": (client, 1), "server": ("x", 1)}

            async def receive():
                return {"type": "http.request", "body": b"", "more_body": False}

            async def keep(message):
                if message["type"] == "http.response.start":
                    answers.append((client, message["status"]))

            await middleware(scope, receive, keep)

        waiting = [asyncio.create_task(ask("a")) for _ in range(2)]
        await asyncio.sleep(0.01)
        await ask("a")
        other = asyncio.create_task(ask("b"))
        await asyncio.sleep(0.01)
        release.set()
        await asyncio.gather(*waiting, other)
        await ask("a")
        return answers

    assert asyncio.run(scenario()) == [
        ("a", 429),
        ("a", 200),
        ("a", 200),
        ("b", 200),
        ("a", 200),
    ]


def test_large_images_are_made_smaller():
    image = read_upload(encoded(picture(2000, 3000)), Limits())
    assert image.original_hw == (2000, 3000)
    assert max(image.pixels.shape) == WORK_SIDE
    whole = np.asarray(picture(2000, 3000))
    assert abs(image.pixels.mean() - whole.mean()) < 2


def test_images_larger_than_the_limits_are_refused():
    for limits in (Limits(pixels=100), Limits(side=10), Limits(aspect=1.0)):
        with pytest.raises(HTTPError) as refused:
            read_upload(encoded(picture(20, 30), "PNG"), limits)
        assert refused.value.status == 413


@pytest.mark.parametrize(
    ("host", "is_local"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("lab", False)],
)
def test_only_loopback_is_local(host, is_local):
    assert cli._is_loopback(host) is is_local


def test_a_taken_port_is_told_at_once():
    with cli._listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match="choose another"):
            cli._listen("127.0.0.1", port)
