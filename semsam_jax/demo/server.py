"""The web server: one application with the page, the HTTP API and the annotation tools.

Nothing that a visitor sends is ever written to a file, and a rejected request explains why in a
message for the visitor.
"""

import asyncio
import contextlib
import dataclasses
import logging
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from importlib import resources

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from semsam_jax import __version__
from semsam_jax.core.errors import SemSamError
from semsam_jax.core.host_memory import return_freed_memory
from semsam_jax.demo.adapter_routes import anylabeling_router, label_studio_router
from semsam_jax.demo.api import api_router
from semsam_jax.demo.engine import Engine
from semsam_jax.demo.executors import Executors
from semsam_jax.demo.gate import Gate
from semsam_jax.demo.limits import HTTPError, Limits
from semsam_jax.demo.page import page_router
from semsam_jax.demo.service import Service
from semsam_jax.demo.sessions import SessionStore
from semsam_jax.demo.task_images import TaskImages
from semsam_jax.demo.uploads import read_upload
from semsam_jax.inference.loading import LoadedModel

EXAMPLES = ("000000000285", "000000000872", "000000002149", "000000000785")
_SWEEP_SEC = 30.0
_JSON = re.compile(r"application/([\w.-]+\+)?json *(;|$)", re.IGNORECASE)
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ServerSettings:
    """Who may use a server, and its public address.

    Attributes:
        is_local: accept only requests that name this machine as their host.
        public_url: address of the page behind a proxy.
        token: required of every request; None requires none.
        origins: other sites whose pages may use the server.
        label_studio_url: server from which the images of Label Studio's tasks are fetched.
        label_studio_token: of a user of that server.
        title: name of the model on the page; None for its preset.
    """

    is_local: bool = True
    public_url: str | None = None
    token: str | None = None
    origins: tuple[str, ...] = ()
    label_studio_url: str | None = None
    label_studio_token: str | None = None
    title: str | None = None


def build_app(
    model: LoadedModel,
    limits: Limits | None = None,
    settings: ServerSettings | None = None,
    *,
    warm: bool = True,
) -> Gate:
    """Returns the ASGI application.

    Args:
        model: from `load_model`.
        limits: None for the defaults.
        settings: None for the defaults; see `gate.Gate`.
        warm: compile the programs for clicks before the first visitor comes.
    """
    limits, settings = limits or Limits(), settings or ServerSettings()
    sessions = SessionStore(limits)
    engine = Engine(model, limits, sessions, settings.title)
    executors = Executors(limits)
    service = Service(engine, sessions, executors, limits)
    examples = example_images()
    if warm and examples:
        engine.warm_up(read_upload(examples[0], limits).pixels)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        sweeper = asyncio.create_task(_sweep(sessions))
        yield
        sweeper.cancel()
        executors.close()

    app = FastAPI(
        lifespan=lifespan,
        title="semsam_jax",
        version=__version__,
        description="Semantic-SAM: masks at six levels of granularity, with names.",
        docs_url=None,
        redoc_url=None,
    )
    _add_errors(app)
    images = TaskImages(limits, settings.label_studio_url, settings.label_studio_token)
    app.include_router(api_router(service))
    app.include_router(anylabeling_router(service))
    app.include_router(label_studio_router(service, images))
    app.include_router(page_router(service, examples, app.openapi), include_in_schema=False)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type", "token"],
        )
    return Gate(
        app,
        limits,
        is_local=settings.is_local,
        public_url=settings.public_url,
        token=settings.token,
        origins=settings.origins,
    )


def example_images() -> list[bytes]:
    """Held-out images, as examples for visitors."""
    folder = resources.files("data_pipelines.sample") / "data" / "coco" / "val2017"
    files = [folder / f"{name}.jpg" for name in EXAMPLES]
    return [file.read_bytes() for file in files if file.is_file()]


def _add_errors(app: FastAPI) -> None:
    """Every error is JSON with a sentence in `error`."""

    @app.exception_handler(HTTPError)
    async def refuse(request: Request, error: HTTPError) -> Response:
        is_for_api = request.url.path.startswith("/v1/")
        message = error.for_api if is_for_api else error.message
        return _error(error.status, message, is_gone=error.is_gone)

    @app.exception_handler(SemSamError)
    async def explain(request: Request, error: SemSamError) -> Response:
        return _error(400, " ".join(str(error).split()))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        kind = request.headers.get("content-type", "")
        if request.method == "POST" and not _JSON.match(kind):
            return _error(400, f"content-type: got {kind[:60]!r}; expected application/json.")
        return _error(400, _what_is_wrong(error.errors()))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        return _error(error.status_code, f"{error.detail}.".replace("..", "."))

    @app.exception_handler(Exception)
    async def fail(request: Request, error: Exception) -> Response:
        _log.error("server: %s failed", request.url.path, exc_info=error)
        return _error(500, "Internal server error. Try again.")


def _error(status: int, message: str, *, is_gone: bool = False) -> Response:
    content = {"error": message, "is_gone": is_gone}
    return JSONResponse(content, status, {"cache-control": "no-store"})


def _what_is_wrong(errors: Sequence[Mapping]) -> str:
    """A sentence about the first field that is wrong, with all that it may be.

    Args:
        errors: of pydantic; where a field may be of several kinds, one for each.
    """
    first = errors[0]["loc"][:2]
    of_field = [error for error in errors if error["loc"][:2] == first]
    # A place also names the kind that was tried, such as literal['best','all'].
    parts = [str(part) for part in of_field[0]["loc"] if part != "body"]
    place = ".".join(part for part in parts if part.isidentifier() or part.isdecimal())[:80]
    expected = dict.fromkeys(error["msg"].removeprefix("Input should be ") for error in of_field)
    message = " or ".join(expected)
    start = "expected " if of_field[0]["msg"].startswith("Input should be ") else ""
    return f"{place or 'request'}: {start}{message}."


async def _sweep(sessions: SessionStore) -> None:
    """Forgets idle images and returns their memory to the system."""
    while True:
        await asyncio.sleep(_SWEEP_SEC)
        sessions.forget_idle()
        return_freed_memory()
