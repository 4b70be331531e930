"""The HTTP API for programs: masks from clicks and boxes, all masks of an image, class names."""

import asyncio
from collections.abc import Callable
from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from semsam_jax import __version__
from semsam_jax.demo.engine import GRIDS, MAX_SEGMENTS, tree_records
from semsam_jax.demo.gate import client_of
from semsam_jax.demo.limits import HTTPError, Limits
from semsam_jax.demo.pictures import png_url
from semsam_jax.demo.service import Service, decode_image
from semsam_jax.demo.sessions import ImageSession
from semsam_jax.demo.uploads import read_upload
from semsam_jax.inference.convert_results import record_mask, scale_record
from semsam_jax.inference.outlines import mask_polygons
from semsam_jax.inference.requests import Request as Prompt

Number = Annotated[float, Field(allow_inf_nan=False, ge=-1e9, le=1e9)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Granularity = Share | Annotated[list[Share], Field(min_length=1, max_length=101)] | None
Format = Literal["rle", "polygons", "png"]


class ImageBody(BaseModel):
    """An image file, or one that the server has."""

    model_config = ConfigDict(extra="forbid")

    image: str | None = Field(
        None, description="an image file in base64, with or without `data:image/...;base64,`"
    )
    image_id: str | None = Field(
        None, max_length=64, description="of an earlier answer, instead of `image`"
    )


class _Body(ImageBody):
    labels: str = Field(
        "", description='class names, "dog, cat; head, leg" (objects; parts), or a vocabulary: coco'
    )
    format: Format = Field("rle", description="of `segmentation`: COCO RLE, polygons, a PNG")


class SegmentBody(_Body):
    """Clicks and at most one box describe one object; several boxes describe one object each."""

    points: list[tuple[Number, Number]] = Field([], description="x, y in pixels of the file")
    point_labels: list[Literal[0, 1]] | None = Field(
        None,
        description="1 for each positive click, 0 for each negative one; all 1 by default",
    )
    boxes: list[tuple[Number, Number, Number, Number]] = Field([], description="x0, y0, x1, y1")
    level: Literal["best", "all"] | Annotated[int, Field(ge=1, le=16)] = Field(
        "best", description="1 the whole thing .. 6 its smallest part; best: by predicted IoU"
    )
    granularity: Granularity = Field(
        None, description="0 the finest part .. 1 the whole, or several, instead of level"
    )


class EverythingBody(_Body):
    """All masks of an image."""

    level: Literal["all"] | Annotated[int, Field(ge=1, le=16)] = "all"
    granularity: Granularity = Field(
        None, description="0 the finest part .. 1 the whole, or several, instead of level"
    )
    tree: bool = Field(
        False,
        description="return one tree instead: parts lie inside their wholes, siblings do not "
        "overlap",
    )
    min_score: Share | None = Field(
        None,
        description="minimum predicted IoU and stability (default: the model's thresholds)",
    )
    grid: int = Field(16, description=f"clicks along each side: {GRIDS}")
    tile: Annotated[int, Field(ge=128, le=8192)] | None = Field(
        None,
        description="side in pixels of square tiles that are segmented at full resolution and "
        "joined; needs `image`",
    )
    overlap: Annotated[int, Field(ge=16, le=4096)] | None = Field(
        None,
        description="overlap of neighbouring tiles in pixels; by default 128, at most half a tile",
    )


class NameAnswer(BaseModel):
    """A class name and how well it fits."""

    name: str
    score: float
    is_sure: bool


class MaskAnswer(BaseModel):
    """One mask."""

    prompt: int | None = Field(None, description="which object of the request, from 0")
    level: int | None
    granularity: float | None = Field(
        None, description="what was asked for; in a tree, the mask's place among its sizes"
    )
    parent: int | None = Field(
        None, description="in a tree: position in `masks` of what this is a part of"
    )
    depth: int | None = Field(None, description="in a tree: 0 for a whole")
    score: float = Field(description="predicted IoU")
    area: int = Field(description="pixels")
    bbox: list[float] = Field(description="x, y, width, height")
    object: NameAnswer | None = None
    part: NameAnswer | None = None
    segmentation: dict | list | str


class UnknownAnswer(BaseModel):
    """A name that the model does not know, with similar known ones."""

    name: str
    nearest: list[str]


class MasksAnswer(BaseModel):
    """Masks in pixels of the file, as it is displayed (EXIF rotation applied)."""

    image_id: str = Field(description="finds the image again, for half an hour without requests")
    width: int
    height: int
    model: str
    masks: list[MaskAnswer]
    unknown: list[UnknownAnswer] = Field(description="names that were left out")
    left_out: int = Field(
        0,
        description=f"masks that were found besides the best {MAX_SEGMENTS}, or fewer of a large "
        "image",
    )


class ImageAnswer(BaseModel):
    """An image that was stored."""

    image_id: str
    width: int
    height: int


class NamesAnswer(BaseModel):
    """Names that the model can give."""

    source: str = Field(description="table: only stored names; model: any name; none")
    names: list[str]


class HealthAnswer(BaseModel):
    """Whether the server is up, and with which model."""

    status: str
    version: str
    model: str
    levels: int
    stops: list[float] = Field(description="granularity of level 1, 2, ...")
    knows_names: bool


def api_router(service: Service) -> APIRouter:
    """Routes of the API."""
    router = APIRouter(tags=["API"])
    engine, limits = service.engine, service.limits

    @router.get("/health", summary="Is the server up, and with which model")
    async def health() -> HealthAnswer:
        return HealthAnswer(
            status="healthy",
            version=__version__,
            model=engine.title,
            levels=engine.num_levels,
            stops=list(engine.stops),
            knows_names=engine.knows_names,
        )

    @router.get("/v1/names", summary="Names that the model knows, like a text")
    async def names(
        like: str = "", count: Annotated[int, Field(ge=1, le=5000)] = 20
    ) -> NamesAnswer:
        if len(like) > limits.names_length:
            raise HTTPError(400, f"like: at most {limits.names_length} characters.")
        found = await asyncio.to_thread(engine.similar_names, like, count)
        return NamesAnswer(source=engine.name_source, names=found)

    @router.post("/v1/image", summary="Store an image for several requests")
    async def image(request: Request, body: ImageBody) -> ImageAnswer:
        key, session = await _session(service, body, client_of(request.scope))
        height, width = session.upload.original_hw
        return ImageAnswer(image_id=key, width=width, height=height)

    @router.post("/v1/segment", summary="Masks of clicks and boxes")
    async def segment(request: Request, body: SegmentBody) -> MasksAnswer:
        client = client_of(request.scope)
        prompts = _prompts(body, limits)
        asked = _granularities(body)
        key, session = await _session(service, body, client)
        per_prompt = engine.num_levels if body.level == "all" else len(asked or [None])
        _check_size(session, len(prompts) * per_prompt, limits)
        names = await service.learn(body.labels, client)

        def work() -> MasksAnswer:
            answers, unknown = engine.prompts(session, prompts, body.level, names, asked)
            rows = [(i, record) for i, records in enumerate(answers) for record in records]
            return _answer(engine.title, key, session, rows, unknown, body.format)

        return await service.quick(client, work)

    @router.post("/v1/everything", summary="All masks of an image")
    async def everything(request: Request, body: EverythingBody) -> MasksAnswer:
        client = client_of(request.scope)
        if body.level != "all" and body.level > engine.num_levels:
            raise HTTPError(
                400, f"level: got {body.level}; expected 1..{engine.num_levels} or all."
            )
        if body.tile is not None and body.image is None:
            raise HTTPError(400, "tile: needs the file itself; give image instead of image_id.")
        asked = _granularities(body)
        key, session = await _session(service, body, client)
        names = await service.learn(body.labels, client)
        level = None if body.level == "all" else body.level

        def work() -> MasksAnswer:
            pixels = session.upload.pixels
            if body.tile is not None:
                pixels = read_upload(decode_image(body.image), limits, None).pixels
            tiles = {"tile": body.tile, "tile_overlap": body.overlap}
            found, unknown, left_out = engine.find_everything(
                pixels, names, level, body.min_score, body.grid, granularity=asked, **tiles
            )
            size = session.upload.original_hw
            best = found[: limits.most_masks(size)]
            left_out += len(found) - len(best)
            scaled = [scale_record(record, *size) for record in best]
            if body.tree:
                scaled = tree_records(scaled, size)
            rows = [(None, record) for record in scaled]
            answer = _answer(engine.title, key, session, rows, unknown, body.format)
            return answer.model_copy(update={"left_out": left_out})

        return await service.slow(client, work)

    return router


async def _session(service: Service, body: ImageBody, client: str) -> tuple[str, ImageSession]:
    if (body.image is None) == (body.image_id is None):
        raise HTTPError(400, "image: give either image, a file in base64, or image_id.")
    if body.image_id is not None:
        return body.image_id, service.sessions.get(body.image_id)
    content = await asyncio.to_thread(decode_image, body.image)
    return await service.open(content, client)


def _prompts(body: SegmentBody, limits: Limits) -> list[Prompt]:
    if len(body.points) > limits.points:
        raise HTTPError(400, f"points: at most {limits.points} clicks on one object; send fewer.")
    if len(body.boxes) > limits.boxes:
        raise HTTPError(400, f"boxes: at most {limits.boxes} in one request; send several.")
    labels = body.point_labels
    if labels is not None and len(labels) != len(body.points):
        raise HTTPError(
            400,
            f"point_labels: got {len(labels)} for {len(body.points)} points; expected one for "
            "each.",
        )
    if len(body.boxes) > 1 and body.points:
        raise HTTPError(
            400, "points: several boxes are one object each; send points in another request."
        )
    if not body.points and not body.boxes:
        raise HTTPError(400, "points: nothing to segment; give points or boxes.")
    if len(body.boxes) > 1:
        return [Prompt(box=list(box)) for box in body.boxes]
    points = [list(point) for point in body.points] or None
    box = list(body.boxes[0]) if body.boxes else None
    return [Prompt(point_coords=points, point_labels=labels, box=box)]


def _granularities(body: SegmentBody | EverythingBody) -> list[float] | None:
    if body.granularity is None:
        return None
    if "level" in body.model_fields_set:
        raise HTTPError(400, "granularity: got it together with level; give either one.")
    return body.granularity if isinstance(body.granularity, list) else [body.granularity]


def _check_size(session: ImageSession, count: int, limits: Limits) -> None:
    most = limits.most_masks(session.upload.original_hw)
    if count > most:
        raise HTTPError(
            413,
            f"{count} masks of an image this large are too many for one answer, at most {most}: "
            f"ask for fewer boxes or levels, or send a smaller copy.",
        )


def _answer(
    title: str,
    key: str,
    session: ImageSession,
    rows: list[tuple[int | None, dict]],
    unknown: list[dict],
    kind: Format,
) -> MasksAnswer:
    height, width = session.upload.original_hw
    masks = [
        MaskAnswer(
            prompt=number,
            level=record.get("level"),
            granularity=record.get("granularity"),
            parent=record.get("parent"),
            depth=record.get("depth"),
            score=record["score"],
            area=record["area"],
            bbox=record["bbox"],
            object=record.get("object"),
            part=record.get("part"),
            segmentation=_FORMATS[kind](record),
        )
        for number, record in rows
    ]
    return MasksAnswer(
        image_id=key, width=width, height=height, model=title, masks=masks, unknown=unknown
    )


_FORMATS: dict[str, Callable[[dict], dict | list | str]] = {
    "rle": lambda record: record["segmentation"],
    "polygons": lambda record: mask_polygons(record_mask(record)),
    "png": lambda record: png_url(record_mask(record).astype("uint8") * 255),
}
