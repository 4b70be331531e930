"""The page: its files, and the routes that its script calls."""

import html
import json
import re
from collections.abc import Callable
from importlib import resources

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse

from semsam_jax.demo.downloads import ChosenMask, make_download
from semsam_jax.demo.edits import mask_pictures, store_edit
from semsam_jax.demo.engine import GRIDS
from semsam_jax.demo.gate import client_of
from semsam_jax.demo.limits import HTTPError, Limits
from semsam_jax.demo.pictures import jpeg_url
from semsam_jax.demo.requests import (
    read_body,
    read_granularity,
    read_masks,
    read_number,
    read_numbers,
    read_points,
    read_text,
)
from semsam_jax.demo.service import Service
from semsam_jax.demo.uploads import read_upload

_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_NO_STORE = {"cache-control": "no-store"}
_MAX_SHOWN = 1000


def page_router(service: Service, examples: list[bytes], openapi: Callable[[], dict]) -> APIRouter:
    """Routes of the page.

    Args:
        service: see `Service`.
        examples: JPEG files.
        openapi: the description of the API, for its page.
    """
    router = APIRouter()
    engine, limits, sessions = service.engine, service.limits, service.sessions
    files = static_files()

    @router.get("/")
    async def index() -> Response:
        return Response(files["index.html"], media_type="text/html", headers=_NO_STORE)

    @router.get("/docs")
    async def docs() -> Response:
        return HTMLResponse(api_page(openapi()))

    @router.get("/favicon.ico")
    async def icon() -> Response:
        return Response(files["icon.svg"], media_type="image/svg+xml")

    @router.get("/static/{name}")
    async def static(name: str) -> Response:
        if name not in files:
            raise HTTPError(404, "There is nothing here.")
        headers = {"cache-control": "no-cache"}
        return Response(files[name], media_type=_TYPES[name.rsplit(".")[-1]], headers=headers)

    @router.get("/examples/{number}.jpg")
    async def example(number: int) -> Response:
        if not 0 <= number < len(examples):
            raise HTTPError(404, "There is no such example.")
        return Response(examples[number], media_type="image/jpeg")

    @router.get("/api/info")
    async def info() -> Response:
        return _json(
            {
                "model": engine.title,
                "levels": engine.num_levels,
                "stops": engine.stops,
                "knows_names": engine.knows_names,
                "has_panoptic": engine.has_panoptic,
                "min_score": engine.suggested_quality,
                "grids": GRIDS,
                "points": limits.points,
                "examples": len(examples),
            }
        )

    @router.post("/api/image")
    async def image(request: Request) -> Response:
        content, client = await request.body(), client_of(request.scope)

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

        return _json(await service.executors.run("image", client, take))

    @router.post("/api/forget")
    async def forget(request: Request) -> Response:
        sessions.remove(read_text(await read_body(request), "image", 64))
        return _json({})

    @router.post("/api/encode")
    async def encode(request: Request) -> Response:
        session = sessions.get(read_text(await read_body(request), "image", 64))
        return _json(await service.quick(client_of(request.scope), lambda: engine.encode(session)))

    @router.post("/api/click")
    async def click(request: Request) -> Response:
        body, client = await read_body(request), client_of(request.scope)
        session = sessions.get(read_text(body, "image", 64))
        points = read_points(body, limits)
        box = read_numbers(body.get("box") or [], 4) if body.get("box") else []
        names = await service.learn(_names(body, limits), client)
        is_kept, granularity = body.get("preview") is not True, read_granularity(body)
        work = service.quick(
            client, lambda: engine.click(session, points, box, names, is_kept, granularity)
        )
        return _json(await work)

    @router.post("/api/everything")
    async def everything(request: Request) -> Response:
        body, client = await read_body(request), client_of(request.scope)
        session = sessions.get(read_text(body, "image", 64))
        names = await service.learn(_names(body, limits), client)
        level = int(read_number(body, "level"))
        if not 0 <= level <= engine.num_levels:
            raise HTTPError(400, f"level: got {level}; expected 0 (all) to {engine.num_levels}.")
        quality = None if body.get("quality") is None else read_number(body, "quality")
        grid = int(read_number(body, "grid"))
        granularity, as_tree = read_granularity(body), body.get("tree") is True
        settings = (names, level or None, quality, grid, granularity, as_tree)
        work = service.slow(client, lambda: engine.everything(session, *settings))
        return _json(await work)

    @router.post("/api/panoptic")
    async def panoptic(request: Request) -> Response:
        body, client = await read_body(request), client_of(request.scope)
        session = sessions.get(read_text(body, "image", 64))
        names = await service.learn(_names(body, limits), client)
        return _json(await service.slow(client, lambda: engine.panoptic(session, names)))

    @router.post("/api/masks")
    async def masks(request: Request) -> Response:
        body = await read_body(request)
        session = sessions.get(read_text(body, "image", 64))
        wanted = read_masks(body, 64)
        work = service.quick(
            client_of(request.scope), lambda: mask_pictures(session, [w.number for w in wanted])
        )
        return _json({"masks": await work})

    @router.post("/api/edit")
    async def edit(request: Request) -> Response:
        body = await read_body(request)
        session = sessions.get(read_text(body, "image", 64))
        picture = read_text(body, "picture", limits.edit_bytes)
        level, score = int(read_number(body, "level")), read_number(body, "score")
        work = service.quick(
            client_of(request.scope),
            lambda: store_edit(session, picture, level or None, score, limits),
        )
        return _json(await work)

    @router.post("/api/download")
    async def download(request: Request) -> Response:
        body = await read_body(request)
        session = sessions.get(read_text(body, "image", 64))
        kind, file_name = read_text(body, "kind", 20), read_text(body, "file_name", 300)
        wanted: list[ChosenMask] = read_masks(body, _MAX_SHOWN)
        name, media_type, content = await service.slow(
            client_of(request.scope),
            lambda: make_download(session, kind, wanted, file_name, limits),
        )
        headers = {"content-disposition": f'attachment; filename="{name}"', **_NO_STORE}
        return Response(content, media_type=media_type, headers=headers)

    return router


def static_files() -> dict[str, bytes]:
    """The files of the page by name."""
    folder = resources.files("semsam_jax.demo") / "static"
    return {
        file.name: file.read_bytes()
        for file in folder.iterdir()
        if file.name.rsplit(".")[-1] in _TYPES
    }


def api_page(schema: dict) -> str:
    """The description of the API as a page that needs no script and nothing from elsewhere."""
    sections = []
    for path, methods in schema["paths"].items():
        for method, about in methods.items():
            reference = json.dumps(about.get("requestBody", {}))
            names = re.findall(r"#/components/schemas/(\w+)", reference)
            answer = json.dumps(about["responses"].get("200", {}))
            names += re.findall(r"#/components/schemas/(\w+)", answer)
            tables = "".join(_table(name, schema["components"]["schemas"][name]) for name in names)
            sections.append(
                f"<section><h2><b>{method.upper()}</b> {html.escape(path)}</h2>"
                f"<p>{html.escape(about.get('summary', ''))}</p>{tables}</section>"
            )
    title = html.escape(f"{schema['info']['title']} {schema['info']['version']}")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>API of {title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="stylesheet" href="static/page.css"></head><body class="docs"><main>'
        f"<h1>API of {title}</h1><p>{html.escape(schema['info']['description'])} For programs: "
        '<a href="openapi.json">openapi.json</a>. <a href=".">The page</a>.</p>'
        f"{''.join(sections)}</main></body></html>"
    )


def _table(name: str, schema: dict) -> str:
    rows = []
    for field, about in schema.get("properties", {}).items():
        kinds = [about, *about.get("anyOf", [])]
        kind = " or ".join(
            str(k.get("type") or k.get("const") or k["$ref"].rsplit("/")[-1])
            for k in kinds
            if k.get("type") or k.get("const") or k.get("$ref")
        )
        need = "" if field in schema.get("required", []) else "optional"
        cells = (field, kind, need, about.get("description", ""))
        rows.append("".join(f"<td>{html.escape(cell)}</td>" for cell in cells))
    return f"<h3>{html.escape(name)}</h3><table><tr>{'</tr><tr>'.join(rows)}</tr></table>"


def _names(body: dict, limits: Limits) -> str:
    return read_text(body, "names", limits.names_length, "names")


def _json(content: dict) -> Response:
    return JSONResponse(content, headers=_NO_STORE)
