"""The outermost layer of the server: hosts, origins, tokens, numbers of requests."""

import asyncio
import base64

import pytest

from semsam_jax.core.errors import ConfigError
from semsam_jax.demo import cli
from semsam_jax.demo.gate import Gate
from semsam_jax.demo.limits import Limits

LIMITS = Limits()


def send(gate, path="/", method="GET", headers=(), client="1.2.3.4", query=b""):
    """One request to a gate; returns its status and headers."""
    scope = {"type": "http", "path": path, "method": method, "client": (client, 1)}
    scope |= {"headers": list(headers), "server": ("127.0.0.1", 7860), "query_string": query}
    if method == "POST" and b"content-length" not in dict(headers):
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


@pytest.mark.parametrize(
    ("limits", "headers", "status"),
    [
        (Limits(), [], 401),
        (Limits(), [(b"token", b"secret"), (b"content-length", b"999999999")], 413),
        (Limits(requests_per_client=0), [(b"token", b"secret")], 429),
    ],
)
def test_pages_of_a_named_site_can_read_refusals(limits, headers, status):
    gate = Gate(hello, limits, is_local=False, token="secret", origins=("https://tool.example",))
    site = (b"origin", b"https://tool.example")
    found, answer = send(gate, "/v1/segment", "POST", headers=[*headers, site])
    assert (found, answer["access-control-allow-origin"]) == (status, "https://tool.example")
    assert answer["vary"] == "origin"
    evil = (b"origin", b"https://evil.example")
    for other in ([evil], []):
        _, answer = send(gate, "/v1/segment", "POST", headers=[*headers, *other])
        assert "access-control-allow-origin" not in answer


def test_the_header_for_a_named_site_is_sent_once():
    async def app(scope, receive, send):
        headers = [(b"Access-Control-Allow-Origin", b"*")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    gate = Gate(app, LIMITS, is_local=False, origins=("https://tool.example",))
    _, answer = send(gate, "/v1/names", headers=[(b"origin", b"https://tool.example")])
    assert answer["Access-Control-Allow-Origin"] == "*"
    assert "access-control-allow-origin" not in answer


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
