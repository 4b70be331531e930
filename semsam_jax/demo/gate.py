"""The outermost layer of the server, which decides what requests are accepted.

It answers unknown paths itself, checks host, origin and token, limits the requests of each visitor,
and reads bodies up to a limit before any other code sees them.
"""

import asyncio
import base64
import binascii
import json
import re
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

from semsam_jax.demo.limits import HTTPError, Limits, too_many_bytes

Scope = MutableMapping[str, object]
Message = MutableMapping[str, object]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

HEALTH = ("/health", "/label-studio/health")
COOKIE = "semsam_token"
_PAGE = ("/", "/docs", "/openapi.json", "/favicon.ico", *HEALTH)
_PAGE_FOLDERS = ("/static/", "/examples/")
_API = ("/api/", "/v1/", "/label-studio/")
_IMAGE, _EDIT = "/api/image", "/api/edit"
_LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]")
_ALLOW_ORIGIN = b"access-control-allow-origin"
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    # Own files only: nothing may leave for another host, and no text becomes code.
    "content-security-policy": (
        "default-src 'self'; img-src 'self' data: blob:; connect-src 'self' data: blob:; "
        "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
    ),
}


class Gate:
    """ASGI layer: known paths only, few requests at a time, safe headers on every answer.

    Args:
        app: what is behind the gate.
        limits: counts and sizes.
        is_local: accept only requests that name this machine as their host, so that another site
            cannot reach the server through a visitor's browser. Any port is accepted, because a
            tunnel or a container may map it.
        public_url: address of the page behind a proxy: its host is accepted too, with any port, and
            its path may precede every path.
        token: required of every request except health checks; None requires none.
        origins: other sites whose pages may use the server, such as https://tool.example.
    """

    def __init__(
        self,
        app: App,
        limits: Limits,
        *,
        is_local: bool,
        public_url: str | None = None,
        token: str | None = None,
        origins: Sequence[str] = (),
    ):
        self._app = app
        self._limits = limits
        self._is_local = is_local
        public = urlsplit(public_url or "")
        self._public_site = _site(f"{public.scheme}://{public.netloc}")
        self._root = public.path.rstrip("/")
        self._is_secure = public.scheme == "https"
        self._token = token
        self._origins = {origin.lower().rstrip("/") for origin in origins}
        self._open: Counter[tuple[str, bool]] = Counter()
        self._bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers or passes on one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        send = _with_headers(send, self._allowed_origin(scope))
        if self._root and scope["path"] == self._root:  # the page's own links need the slash
            await _redirect(send, f"{self._root}/")
            return
        scope = self._without_root(scope)
        try:
            self._check(scope)
            if await self._logged_in(scope, send):
                return
        except HTTPError as error:
            await send_error(send, error)
            return
        key = (client_of(scope), is_api(scope))
        top = self._limits.requests_per_client if key[1] else self._limits.page_requests_per_client
        if self._open[key] >= top:
            await send_error(
                send,
                HTTPError(429, "Too many requests at once from your address. Wait for the others."),
            )
            return
        self._open[key] += 1
        try:
            await self._read_and_pass_on(scope, receive, send)
        finally:
            self._open[key] -= 1
            if not self._open[key]:
                del self._open[key]

    async def _read_and_pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        size = 0
        try:
            size = self._announced(scope)
            self._bytes += size
            async with asyncio.timeout(self._limits.upload_sec):
                body = await _read(receive, self._largest(str(scope["path"])))
        except TimeoutError:
            await send_error(send, HTTPError(408, "The upload took too long. Use a smaller copy."))
            return
        except HTTPError as error:
            await send_error(send, error, is_closing=False)
            return
        finally:
            self._bytes -= size
        is_read = False

        async def replay() -> Message:
            nonlocal is_read
            if is_read:
                return await receive()
            is_read = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)

    def _largest(self, path: str) -> int:
        if path == _IMAGE:
            return self._limits.upload_bytes
        if path == _EDIT:
            return self._limits.edit_bytes
        return self._limits.request_bytes if path.startswith("/api/") else self._limits.json_bytes

    def _announced(self, scope: Scope) -> int:
        """Announced bytes of a body; 0 if none are announced and it must be small."""
        limits, top = self._limits, self._largest(str(scope["path"]))
        length = _header(scope, b"content-length")
        if not length.isdecimal():
            if top > limits.edit_bytes:
                raise HTTPError(411, "The size of the request is missing.")
            return 0
        if int(length) > top:
            is_image = top >= limits.upload_bytes
            raise HTTPError(413, too_many_bytes(limits) if is_image else _TOO_LARGE)
        if self._bytes + int(length) > limits.upload_bytes_together:
            raise HTTPError(503, "Too many uploads at the moment. Try again shortly.")
        return int(length)

    def _check(self, scope: Scope) -> None:
        path, method = str(scope["path"]), scope["method"]
        known = path in _PAGE or path.startswith(_PAGE_FOLDERS) or is_api(scope)
        if not known or ".." in path or "\\" in path or "\0" in path:
            raise HTTPError(404, "There is nothing here.")
        allowed = ("GET", "HEAD", "POST") if is_api(scope) else ("GET", "HEAD")
        if method not in (*allowed, *(("OPTIONS",) if self._origins else ())):
            raise HTTPError(405, "This request is not supported.")
        host = _header(scope, b"host").lower()
        name = _without_port(host)
        is_known = name in _LOCAL_HOSTS or name == _without_port(self._public_site) != ""
        if self._is_local and not is_known:
            raise HTTPError(
                403,
                "This server answers only on this machine. Behind a proxy it needs --public-url.",
            )
        origin = _header(scope, b"origin").lower()
        if not is_api(scope) or not origin or self._allowed_origin(scope):
            return
        # A proxy may put its own name for this server into the host, or drop the port: the
        # visitor's site counts.
        if _site(origin) not in (host, self._public_site or host):
            raise HTTPError(403, "This request comes from another site.")

    def _allowed_origin(self, scope: Scope) -> str:
        """The origin of a request if it is one of the other sites, else empty."""
        origin = _header(scope, b"origin")
        return origin if origin.lower() in self._origins else ""

    async def _logged_in(self, scope: Scope, send: Send) -> bool:
        """Checks the token; True if the request is answered: a link with the token logs in."""
        if self._token is None or scope["path"] in HEALTH or scope["method"] == "OPTIONS":
            return False
        query = parse_qs(bytes(scope.get("query_string", b"")).decode("latin-1"))
        given = query.get("token", [""])[0]
        if scope["path"] == "/" and given:
            if not self._is_token(given):
                raise HTTPError(401, _WRONG_TOKEN)
            cookie = f"{COOKIE}={self._token}; Path={self._root}/; HttpOnly; SameSite=Lax"
            await _redirect(send, f"{self._root}/", cookie + "; Secure" * self._is_secure)
            return True
        if not any(self._is_token(one) for one in _given_tokens(scope)):
            raise HTTPError(401, _WRONG_TOKEN)
        return False

    def _is_token(self, given: str) -> bool:
        return secrets.compare_digest(given.encode("utf-8", "replace"), str(self._token).encode())

    def _without_root(self, scope: Scope) -> Scope:
        """Strips the public path, unless a proxy has done so already."""
        path = str(scope["path"])
        if not self._root or not path.startswith(f"{self._root}/"):
            return scope
        path = path.removeprefix(self._root)
        return {**scope, "path": path, "raw_path": path.encode()}


_TOO_LARGE = "The request is larger than allowed."
_WRONG_TOKEN = (
    "This server needs its token: open the link that it printed, or send the token in the header "
    "Authorization: Bearer TOKEN."
)


def is_api(scope: Scope) -> bool:
    """Whether a request asks for work, not for a file of the page."""
    path = str(scope["path"])
    return path.startswith(_API) and path not in HEALTH


def client_of(scope: Scope) -> str:
    """Address of the visitor."""
    client = scope.get("client")
    return str(client[0]) if client else "unknown"


async def send_error(send: Send, error: HTTPError, *, is_closing: bool = True) -> None:
    """Sends an error as JSON.

    Args:
        send: of the request.
        error: the error.
        is_closing: close the connection. False where the visitor may still be uploading a file: a
            reset would hide the answer.
    """
    body = json.dumps({"error": error.message, "is_gone": error.is_gone}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    headers += [(b"connection", b"close")] if is_closing else []
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _read(receive: Receive, top: int) -> bytes:
    content, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise HTTPError(400, "The request was not complete.")
        content += bytes(message.get("body", b""))
        more = bool(message.get("more_body"))
        if len(content) > top:
            raise HTTPError(413, _TOO_LARGE)
    return bytes(content)


def _header(scope: Scope, name: bytes) -> str:
    return dict(scope["headers"]).get(name, b"").decode("latin-1")


def _given_tokens(scope: Scope) -> list[str]:
    """All tokens of a request, wherever the known tools put them."""
    found = [_header(scope, b"token")]
    scheme, _, value = _header(scope, b"authorization").partition(" ")
    if scheme.lower() == "basic":
        try:
            value = base64.b64decode(value, validate=True).decode("utf-8").partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            value = ""
    found.append(value.strip())
    try:
        cookie = SimpleCookie(_header(scope, b"cookie")).get(COOKIE)
    except CookieError:
        cookie = None
    return [*found, cookie.value if cookie else ""]


def _site(origin: str) -> str:
    """Host and port of an origin, without the port that its scheme implies."""
    scheme, _, site = origin.lower().partition("://")
    return site.removesuffix(_DEFAULT_PORTS.get(scheme, "\0"))


def _without_port(host: str) -> str:
    """Host of a Host header; IPv6 addresses keep their brackets."""
    return re.sub(r":\d{1,5}$", "", host)


async def _redirect(send: Send, path: str, cookie: str = "") -> None:
    headers = [(b"location", path.encode()), (b"content-length", b"0")]
    headers += [(b"set-cookie", cookie.encode())] if cookie else []
    await send({"type": "http.response.start", "status": 307, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def _with_headers(send: Send, origin: str) -> Send:
    """Adds the safe headers, and to errors the one with which pages of an allowed site read them.

    Args:
        send: of the request.
        origin: the allowed site that the request comes from; empty for none.
    """

    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", ()))
            headers += [(k.encode(), v.encode()) for k, v in _HEADERS.items()]
            if origin and not any(name.lower() == _ALLOW_ORIGIN for name, _ in headers):
                headers += [(_ALLOW_ORIGIN, origin.encode("latin-1")), (b"vary", b"origin")]
            message = {**message, "headers": headers}
        await send(message)

    return wrapped
