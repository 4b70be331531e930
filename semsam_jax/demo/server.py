"""The web server: routes for images, masks and downloads, and the page around them.

Nothing that a visitor sends is ever written to a file; every route answers JSON, and a
rejected request explains why in a message for the visitor.
"""

import asyncio
import contextlib
import ctypes
import json
import logging
import math
from collections.abc import AsyncIterator
from importlib import resources
from urllib.parse import urlsplit

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from semsam_jax.demo.downloads import make_download
from semsam_jax.demo.engine import Engine, jpeg_url
from semsam_jax.demo.executors import Executors
from semsam_jax.demo.limits import HTTPError, Limits, SecurityMiddleware
from semsam_jax.demo.page import mount_page
from semsam_jax.demo.sessions import ImageSession, SessionStore
from semsam_jax.demo.uploads import read_upload, too_many_bytes
from semsam_jax.inference.loading import LoadedModel

EXAMPLES = ("000000000285", "000000000872", "000000002149", "000000000785")
_SWEEP_SEC = 30.0
_log = logging.getLogger(__name__)


def build_app(
    model: LoadedModel,
    limits: Limits | None = None,
    *,
    is_local: bool = True,
    public_url: str | None = None,
    warm: bool = True,
) -> SecurityMiddleware:
    """Returns the ASGI application of the demo.

    Args:
        model: from `load_model`.
        limits: None for the defaults.
        is_local: answer only requests that name this machine; see `limits.SecurityMiddleware`.
        public_url: where visitors see the page behind a proxy; see `limits.SecurityMiddleware`.
        warm: compile what clicks need before the first visitor comes.
    """
    limits = limits or Limits()
    sessions = SessionStore(limits)
    engine = Engine(model, limits, sessions)
    executors = Executors(limits)
    examples = example_images()
    if warm and examples:
        engine.warm_up(read_upload(examples[0], limits).pixels)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        sweeper = asyncio.create_task(_sweep(sessions))
        yield
        sweeper.cancel()
        executors.close()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    _add_routes(app, engine, sessions, executors, limits, examples)
    root = urlsplit(public_url or "").path.rstrip("/")
    page = mount_page(app, engine, len(examples), root)
    return SecurityMiddleware(page, limits, is_local=is_local, public_url=public_url)


def example_images() -> list[bytes]:
    """Held-out images, as examples for visitors."""
    folder = resources.files("data_pipelines.sample") / "data" / "coco" / "val2017"
    files = [folder / f"{name}.jpg" for name in EXAMPLES]
    return [file.read_bytes() for file in files if file.is_file()]


def _add_routes(
    app: FastAPI,
    engine: Engine,
    sessions: SessionStore,
    executors: Executors,
    limits: Limits,
    examples: list[bytes],
) -> None:
    uploads = _Uploads(limits)

    @app.exception_handler(HTTPError)
    async def refuse(request: Request, error: HTTPError) -> Response:
        del request
        content = {"error": error.message, "is_gone": error.is_gone}
        return JSONResponse(content, error.status, {"cache-control": "no-store"})

    @app.exception_handler(Exception)
    async def fail(request: Request, error: Exception) -> Response:
        _log.error("demo: %s failed", request.url.path, exc_info=error)
        content = {"error": "Internal server error. Try again.", "is_gone": False}
        return JSONResponse(content, 500)

    @app.get("/examples/{number}.jpg")
    async def example(number: int) -> Response:
        if not 0 <= number < len(examples):
            raise HTTPError(404, "There is no such example.")
        return Response(examples[number], media_type="image/jpeg")

    @app.post("/api/image")
    async def image(request: Request) -> Response:
        content = await uploads.read(request)
        client = _client(request)

        def take() -> dict:
            found = read_upload(content, limits)
            key = sessions.add(found, client)
            height, width = found.pixels.shape[:2]
            return {
                "image": key,
                "width": width,
                "height": height,
                "original_width": found.original_hw[1],
                "original_height": found.original_hw[0],
                "view": jpeg_url(found.pixels),
            }

        return _json(await executors.run("image", client, take))

    @app.post("/api/forget")
    async def forget(request: Request) -> Response:
        sessions.remove(_text(await _body(request, limits), "image", 64))
        return _json({})

    @app.post("/api/encode")
    async def encode(request: Request) -> Response:
        session = sessions.get(_text(await _body(request, limits), "image", 64))
        return _json(await executors.run("quick", _client(request), lambda: engine.encode(session)))

    @app.post("/api/click")
    async def click(request: Request) -> Response:
        body = await _body(request, limits)
        session = sessions.get(_text(body, "image", 64))
        points = _points(body, session, limits)
        box = _numbers(body.get("box") or [], 4) if body.get("box") else []
        names = await _learn(body, request)
        answer = await executors.run(
            "quick", _client(request), lambda: engine.click(session, points, box, names)
        )
        return _json(answer)

    @app.post("/api/everything")
    async def everything(request: Request) -> Response:
        body = await _body(request, limits)
        session = sessions.get(_text(body, "image", 64))
        names = await _learn(body, request)
        level = int(_number(body, "level"))
        if not 0 <= level <= engine.num_levels:
            raise HTTPError(400, f"There is no level {level}.")
        quality, grid = _number(body, "quality"), int(_number(body, "grid"))
        answer = await executors.run(
            "slow",
            _client(request),
            lambda: engine.everything(session, names, level or None, quality, grid),
        )
        return _json(answer)

    @app.post("/api/panoptic")
    async def panoptic(request: Request) -> Response:
        body = await _body(request, limits)
        session = sessions.get(_text(body, "image", 64))
        names = await _learn(body, request)
        work = executors.run("slow", _client(request), lambda: engine.panoptic(session, names))
        return _json(await work)

    @app.post("/api/download")
    async def download(request: Request) -> Response:
        body = await _body(request, limits)
        session = sessions.get(_text(body, "image", 64))
        kind, file_name = _text(body, "kind", 20), _text(body, "file_name", 300)
        masks = body.get("masks")
        if not isinstance(masks, list) or not all(isinstance(n, int) for n in masks):
            raise HTTPError(400, "Invalid request.")
        name, media_type, content = await executors.run(
            "slow",
            _client(request),
            lambda: make_download(session, kind, masks[:1000], file_name, limits),
        )
        headers = {"content-disposition": f'attachment; filename="{name}"'}
        headers["cache-control"] = "no-store"
        return Response(content, media_type=media_type, headers=headers)

    async def _learn(body: dict, request: Request) -> str:
        names = _text(body, "names", limits.names_length, "names").strip()
        if names:
            await executors.run("slow", _client(request), lambda: engine.embed_labels(names))
        return names


class _Uploads:
    """Reads image files into memory, a bounded number of bytes at a time."""

    def __init__(self, limits: Limits):
        self._limits = limits
        self._bytes = 0

    async def read(self, request: Request) -> bytes:
        limits = self._limits
        length = request.headers.get("content-length", "")
        if not length.isdigit():
            raise HTTPError(411, "The size of the file is missing.")
        if int(length) > limits.upload_bytes:
            raise HTTPError(413, too_many_bytes(limits))
        if self._bytes + int(length) > limits.upload_bytes_together:
            raise HTTPError(503, "Too many uploads at the moment. Try again shortly.")
        self._bytes += int(length)
        try:
            async with asyncio.timeout(limits.upload_sec):
                return await _read(request, int(length))
        except TimeoutError as error:
            raise HTTPError(408, "The upload took too long. Use a smaller copy.") from error
        finally:
            self._bytes -= int(length)


async def _read(request: Request, top: int) -> bytes:
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > top:
            raise HTTPError(413, "The request is larger than allowed.")
    return bytes(content)


async def _body(request: Request, limits: Limits) -> dict:
    async with asyncio.timeout(limits.upload_sec):
        content = await _read(request, limits.request_bytes)
    try:
        body = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise HTTPError(400, "Invalid request.") from error
    if not isinstance(body, dict):
        raise HTTPError(400, "Invalid request.")
    return body


def _text(body: dict, key: str, top: int, what: str = "") -> str:
    value = body.get(key, "")
    if not isinstance(value, str):
        raise HTTPError(400, "Invalid request.")
    if len(value) > top:
        raise HTTPError(400, f"The {what or key} may have at most {top} characters.")
    return value


def _number(body: dict, key: str) -> float:
    return _numbers([body.get(key)], 1)[0]


def _numbers(values: object, count: int) -> list[float]:
    is_list = isinstance(values, list) and len(values) == count
    if not is_list or not all(_is_number(value) for value in values):
        raise HTTPError(400, "Invalid request.")
    return [float(value) for value in values]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e9 and math.isfinite(value)


def _points(body: dict, session: ImageSession, limits: Limits) -> list[list[float]]:
    points = body.get("points") or []
    if not isinstance(points, list):
        raise HTTPError(400, "Invalid request.")
    if len(points) > limits.points:
        raise HTTPError(400, f"At most {limits.points} clicks on one object.")
    return [_numbers(point, 3) for point in points]


def _client(request: Request) -> str:
    return request.client.host if request.client else "unknown"


def _json(content: dict) -> Response:
    return JSONResponse(content, headers={"cache-control": "no-store"})


async def _sweep(sessions: SessionStore) -> None:
    """Forgets idle images and gives their memory back to the system."""
    while True:
        await asyncio.sleep(_SWEEP_SEC)
        sessions.forget_idle()
        give_memory_back()


def give_memory_back() -> None:
    """Asks the C library for the pages that freed images left behind; elsewhere nothing."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
