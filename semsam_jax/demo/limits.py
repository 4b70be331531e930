"""Limits per visitor, and the middleware that enforces them.

The middleware is the outermost layer: it knows every path that the page needs and answers all
others itself, so that no other route of the libraries underneath can be reached.
"""

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from urllib.parse import urlsplit

Scope = MutableMapping[str, object]
Message = MutableMapping[str, object]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

API = "/api/"
_PAGE = (
    "/",
    "/config",
    "/theme.css",
    "/favicon.ico",
    "/gradio_api/startup-events",
    "/gradio_api/theme.css",
)
_PAGE_FOLDERS = ("/assets/", "/static/", "/gradio_api/heartbeat/", "/examples/")
_LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]")
_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    # Gradio's page runs inline scripts and compiles small ones; nothing may leave for another host.
    "content-security-policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
        "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
        "connect-src 'self' data: blob:; object-src 'none'; base-uri 'self'; form-action 'self'; "
        "frame-ancestors 'self'"
    ),
}


@dataclasses.dataclass(frozen=True)
class Limits:
    """Sizes and counts that keep a public server alive.

    Attributes:
        upload_bytes: largest image file.
        upload_bytes_together: image files that are on their way in at one time.
        upload_sec: slowest upload.
        request_bytes: largest body of any other request.
        pixels: largest image, width times height.
        side: longest side of an image, pixels.
        aspect: longest side over shortest side.
        requests_per_client: requests of one address that are answered at one time.
        page_requests_per_client: the same for the files of the page and its open connections.
        quick_waiting: clicks that wait for the model, of all visitors.
        quick_per_client: of one address.
        slow_waiting: whole-image requests that wait for the model, of all visitors.
        slow_per_client: of one address.
        images: images that are remembered, of all visitors.
        images_per_client: of one address.
        image_idle_sec: an image without requests is forgotten after this time.
        record_bytes: masks that are remembered for one image.
        feature_bytes: encoded images that are remembered.
        points: clicks on one object.
        names_length: characters of the list of names.
        names: number of names.
        download_pixels: masks times pixels of one download.
    """

    upload_bytes: int = 20 << 20
    upload_bytes_together: int = 96 << 20
    upload_sec: float = 60.0
    request_bytes: int = 64 << 10
    pixels: int = 50_000_000
    side: int = 16_000
    aspect: float = 20.0
    requests_per_client: int = 8
    page_requests_per_client: int = 64
    quick_waiting: int = 32
    quick_per_client: int = 4
    slow_waiting: int = 8
    slow_per_client: int = 2
    images: int = 48
    images_per_client: int = 12
    image_idle_sec: float = 1800.0
    record_bytes: int = 4 << 20
    feature_bytes: int = 256 << 20
    points: int = 16
    names_length: int = 600
    names: int = 48
    download_pixels: int = 600_000_000


class HTTPError(Exception):
    """A request that is answered with a message instead of a result.

    Args:
        status: HTTP status.
        message: for the visitor.
        is_gone: whether sending the image again would help.
    """

    def __init__(self, status: int, message: str, *, is_gone: bool = False):
        super().__init__(message)
        self.status = status
        self.message = message
        self.is_gone = is_gone


class SecurityMiddleware:
    """ASGI layer: known paths only, few requests at a time, safe headers on every answer.

    Args:
        app: what is behind the middleware.
        limits: counts.
        is_local: whether only requests to this machine's own names are answered, so that
            another site cannot reach the demo through a visitor's browser. The port may be any:
            a tunnel or a container maps it to another.
        public_url: where visitors see the page, if a proxy stands in front: its host is answered
            too, and its path may be in front of every path.
    """

    def __init__(self, app: App, limits: Limits, *, is_local: bool, public_url: str | None = None):
        self._app = app
        self._limits = limits
        self._is_local = is_local
        public = urlsplit(public_url or "")
        self._public_host = public.netloc.lower()
        self._root = public.path.rstrip("/")
        self._open: Counter[tuple[str, bool]] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers or passes on one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        send = _with_headers(send)
        if self._root and scope["path"] == self._root:  # the page's own links need the slash
            await _redirect(send, f"{self._root}/")
            return
        scope = self._without_root(scope)
        try:
            self._check(scope)
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
            await self._app(scope, receive, send)
        finally:
            self._open[key] -= 1
            if not self._open[key]:
                del self._open[key]

    def _check(self, scope: Scope) -> None:
        path, method = str(scope["path"]), scope["method"]
        known = path in _PAGE or path.startswith(_PAGE_FOLDERS) or is_api(scope)
        if not known or ".." in path or "\\" in path or "\0" in path:
            raise HTTPError(404, "There is nothing here.")
        if method not in (("POST",) if is_api(scope) else ("GET", "HEAD")):
            raise HTTPError(405, "This request is not supported.")
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1").lower()
        is_public = host == self._public_host != ""
        if self._is_local and not is_public and _without_port(host) not in _LOCAL_HOSTS:
            raise HTTPError(
                403,
                "This demo answers only on this machine. Behind a proxy it needs --public-url.",
            )
        origin = headers.get(b"origin", b"").decode("latin-1").lower()
        site = origin.partition("://")[2]
        # A proxy may put its own name for this server into the host: the visitor's site counts.
        if is_api(scope) and origin and site not in (host, self._public_host or host):
            raise HTTPError(403, "This request comes from another site.")

    def _without_root(self, scope: Scope) -> Scope:
        """Takes the public path off; a proxy may have done so already."""
        path = str(scope["path"])
        if not self._root or not path.startswith(f"{self._root}/"):
            return scope
        path = path.removeprefix(self._root)
        return {**scope, "path": path, "raw_path": path.encode()}


def is_api(scope: Scope) -> bool:
    """Whether a request asks for work, not for a file of the page."""
    return str(scope["path"]).startswith(API)


def client_of(scope: Scope) -> str:
    """Address of the visitor."""
    client = scope.get("client")
    return str(client[0]) if client else "unknown"


def _without_port(host: str) -> str:
    """Host of a Host header; IPv6 addresses keep their brackets."""
    return re.sub(r":\d{1,5}$", "", host)


async def _redirect(send: Send, path: str) -> None:
    headers = [(b"location", path.encode()), (b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 307, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


async def send_error(send: Send, error: HTTPError) -> None:
    """Sends an error as JSON."""
    body = json.dumps({"error": error.message, "is_gone": error.is_gone}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _with_headers(send: Send) -> Send:
    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", ()))
            headers += [(k.encode(), v.encode()) for k, v in _HEADERS.items()]
            message = {**message, "headers": headers}
        await send(message)

    return wrapped
