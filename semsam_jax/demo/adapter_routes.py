"""Endpoints for Label Studio (machine-learning backend) and X-AnyLabeling (remote server)."""

import asyncio
import re
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from semsam_jax.adapters import anylabeling, label_studio
from semsam_jax.core.errors import SemSamError
from semsam_jax.demo.gate import client_of
from semsam_jax.demo.limits import HTTPError
from semsam_jax.demo.service import Service, decode_image
from semsam_jax.demo.task_images import TaskImages
from semsam_jax.inference.convert_results import record_name, scale_record
from semsam_jax.inference.requests import Request as Prompt

_MAX_TASKS = 16
_GRID = 16


class PredictBody(BaseModel):
    """A request of X-AnyLabeling."""

    model: str
    image: str
    params: dict[str, Any] = {}


def anylabeling_router(service: Service) -> APIRouter:
    """Routes of X-AnyLabeling's remote server; its errors are answers with status 200."""
    router = APIRouter(tags=["X-AnyLabeling"])
    engine = service.engine

    def known() -> dict:
        return anylabeling.models(
            engine.title, engine.num_levels, engine.knows_names, engine.suggested_quality
        )

    @router.get("/v1/models", summary="Models by their ids: one for each level, and everything")
    async def models() -> dict:
        return {"success": True, "data": known()}

    @router.get("/v1/models/{model_id}/info", summary="One model")
    async def info(model_id: str) -> dict:
        if model_id not in known():
            return _failure("MODEL_NOT_FOUND", f"Model {model_id[:60]!r} is not here.")
        return {"success": True, "data": {"model_id": model_id} | known()[model_id]}

    @router.post("/v1/predict", summary="Polygons of clicks, of a box, or of everything")
    async def predict(request: Request, body: PredictBody) -> dict:
        client = client_of(request.scope)
        if body.model not in known():
            return _failure("MODEL_NOT_FOUND", f"Model {body.model[:60]!r} is not here.")
        try:
            wanted = anylabeling.read_request(
                body.model, body.params, known(), engine.suggested_quality
            )
        except SemSamError as error:
            return _failure("INVALID_PARAMS", str(error))
        if wanted.level is not None and wanted.request is None:
            return {"success": True, "data": anylabeling.answer([], wanted.level)}
        try:
            content = await asyncio.to_thread(decode_image, body.image)
            _, session = await service.open(content, client)
        except HTTPError as error:
            return _refused(error, "INVALID_IMAGE")
        size = session.upload.original_hw

        def work() -> list[dict]:
            if wanted.level is None:
                found, _, _ = engine.find_everything(
                    session.upload.pixels,
                    names,
                    None,
                    wanted.min_score,
                    _GRID,
                )
                found = [scale_record(record, *size) for record in found]
                if names:
                    found = [r for r in found if record_name(r)]
            else:
                answers, _ = engine.prompts(session, [wanted.request], wanted.level, names)
                found = answers[0]
            return anylabeling.shapes(found, wanted.fineness)

        try:
            names = await service.learn(wanted.names, client)
            run = service.slow if wanted.level is None else service.quick
            shapes = await run(client, work)
        except HTTPError as error:
            return _refused(error, "INFERENCE_ERROR")
        return {"success": True, "data": anylabeling.answer(shapes, wanted.level)}

    return router


def label_studio_router(service: Service, images: TaskImages) -> APIRouter:
    """Routes of Label Studio's machine-learning backend, below `/label-studio`.

    The level is part of the address: `/label-studio` for the best one, `/label-studio/level/3`.
    """
    router = APIRouter(prefix="/label-studio", tags=["Label Studio"])
    for prefix in ("", "/level/{level}"):
        _add_label_studio(router, prefix, service, images)
    return router


def _add_label_studio(router: APIRouter, prefix: str, service: Service, images: TaskImages) -> None:
    engine = service.engine

    @router.get(f"{prefix}/health", summary="Whether the backend is up")
    async def health(level: str = "best") -> dict:
        _level(level, engine.num_levels)
        return {"status": "UP", "model_class": "Semantic-SAM", "v2": None}

    @router.post(f"{prefix}/setup", summary="Called when a project is connected")
    async def setup(request: Request, level: str = "best") -> dict:
        body = await _json(request)
        label_studio.read_control(body.get("schema") or body.get("label_config"))
        return {"model_version": _version(level)}

    @router.post(f"{prefix}/webhook", summary="Events of a project; nothing is learned from them")
    async def webhook() -> Response:
        return JSONResponse({"result": "ignored: this backend does not train"}, 201)

    @router.get(f"{prefix}/versions", summary="Versions of the model")
    async def versions(level: str = "best") -> dict:
        return {"versions": [_version(level)]}

    @router.post(f"{prefix}/predict", summary="Masks of smart keypoints and rectangles")
    async def predict(request: Request, level: str = "best") -> dict:
        client, body = client_of(request.scope), await _json(request)
        params = body.get("params") if isinstance(body.get("params"), dict) else {}
        chosen = _level(params.get("level", level), engine.num_levels)
        control = label_studio.read_control(body.get("label_config"))
        tasks = body.get("tasks")
        is_list = isinstance(tasks, list) and all(isinstance(task, dict) for task in tasks)
        if not is_list or len(tasks) > _MAX_TASKS:
            raise HTTPError(400, f"tasks: expected a list of at most {_MAX_TASKS}.")
        context = params.get("context") or body.get("context")
        interaction = label_studio.read_interaction(context)
        results = []
        for task in tasks:
            data = task.get("data") if isinstance(task.get("data"), dict) else {}
            records, labels = await _task(
                client, task.get("id"), data.get(control.image_key), interaction, control, chosen
            )
            row = label_studio.prediction(records, labels, control, _version(level))
            results.append(row)
        return {"results": results, "model_version": _version(level)}

    async def _task(
        client: str,
        task_id: object,
        address: object,
        interaction: label_studio.Interaction | None,
        control: label_studio.Control,
        level: int | str,
    ) -> tuple[list[dict], list[str | None]]:
        # The separators of a list of names; the answer has the label as the project writes it.
        labels = {re.sub("[,;]", " ", label).strip(): label for label in control.labels}
        names = ", ".join(labels)
        if interaction is None and not (engine.knows_names and names):
            return [], []
        content = await asyncio.to_thread(images.fetch, address, task_id)
        _, session = await service.open(content, client)
        size = session.upload.original_hw
        if interaction is None:
            names = await service.learn(f"{names};", client)  # a list, never a vocabulary
            one_level = None if isinstance(level, str) else level

            def find() -> list[dict]:
                found, _, _ = engine.find_everything(
                    session.upload.pixels, names, one_level, None, _GRID
                )
                sure = [r for r in found if (r.get("object") or {}).get("is_sure")]
                return [scale_record(record, *size) for record in sure]

            records = await service.slow(client, find)
            return records, [labels[record["object"]["name"]] for record in records]
        prompt = _scaled(interaction, size)
        answers, _ = await service.quick(
            client, lambda: engine.prompts(session, [prompt], level, "")
        )
        return answers[0], [interaction.label] * len(answers[0])


def _scaled(interaction: label_studio.Interaction, size: tuple[int, int]) -> Prompt:
    """The prompt in pixels of the file; Label Studio may have displayed another size."""
    fy, fx = size[0] / interaction.image_hw[0], size[1] / interaction.image_hw[1]
    request = interaction.request
    points = [[min(x * fx, size[1]), min(y * fy, size[0])] for x, y in request.point_coords or []]
    box = [min(v * (fx, fy)[i % 2], size[1 - i % 2]) for i, v in enumerate(request.box or [])]
    return Prompt(points or None, request.point_labels, box or None)


def _level(value: object, top: int) -> int | str:
    text = str(value)
    if text == "best":
        return text
    if text not in [str(i) for i in range(1, top + 1)]:
        raise HTTPError(400, f"level: got {text[:20]!r}; expected best or 1..{top}.")
    return int(text)


def _version(level: str) -> str:
    return "semantic-sam" if level == "best" else f"semantic-sam-level-{level}"


async def _json(request: Request) -> dict:
    try:
        body = await request.json()
    except (ValueError, RecursionError) as error:
        raise HTTPError(400, "Invalid request: not JSON.") from error
    if not isinstance(body, dict):
        raise HTTPError(400, "Invalid request: expected a JSON object.")
    return body


def _failure(code: str, message: str) -> dict:
    nothing = anylabeling.answer([], None)
    return {"success": False, "error": {"code": code, "message": message}, "data": nothing}


def _refused(error: HTTPError, code: str) -> dict:
    if error.status in (429, 503):
        raise error
    return _failure(code, error.message)
