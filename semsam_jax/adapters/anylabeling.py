"""X-AnyLabeling's remote server: its models, requests and answers.

X-AnyLabeling chooses among models; here every level of granularity is one, as is the best level of
a click and all masks of an image.
"""

import dataclasses
import math
import zlib
from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from semsam_jax.core.errors import PromptError
from semsam_jax.inference.convert_results import (
    record_class,
    record_mask,
    record_name,
    record_score,
)
from semsam_jax.inference.outlines import Polygon, mask_polygons
from semsam_jax.inference.requests import Request

UNNAMED = "AUTOLABEL_OBJECT"
"""X-AnyLabeling asks the annotator for the name of such a shape."""

_CLICK_WIDGETS = (
    "button_add_point",
    "button_remove_point",
    "button_add_rect",
    "button_clear",
    "button_finish_object",
    "mask_fineness_slider",
    "mask_fineness_value_label",
)
_PREFIX = "semantic_sam"


@dataclasses.dataclass(frozen=True)
class AnyLabelingRequest:
    """What a request asks for.

    Attributes:
        level: 1..6, `best`, or None for all masks of the image.
        request: clicks and box in pixels; None without marks.
        names: class names, "a, b; c"; may be empty.
        min_score: smallest predicted IoU of a mask of the image; None for the model's own.
        fineness: simplification of outlines, as a share of their length.
    """

    level: int | str | None
    request: Request | None
    names: str
    min_score: float | None
    fineness: float


def models(title: str, num_levels: int, knows_names: bool, min_score: float) -> dict:
    """The models of the server by their ids, as `GET /v1/models` gives them."""
    clicks = [{"name": name, "value": None} for name in _CLICK_WIDGETS]
    clicks += [{"name": "toggle_preserve_existing_annotations", "value": True}]
    everything = [{"name": "button_run", "value": None}]
    if knows_names:
        everything += [{"name": name, "value": None} for name in ("edit_text", "button_send")]
    everything += [
        {"name": "input_conf", "value": None},
        {"name": "edit_conf", "value": min_score},
        {"name": "toggle_preserve_existing_annotations", "value": False},
    ]
    names = {"best": "best level"} | {f"level_{i}": f"level {i}" for i in range(1, num_levels + 1)}
    found = {
        f"{_PREFIX}_{key}": _model(f"Semantic-SAM {title}: {text}", clicks, None)
        for key, text in names.items()
    }
    mode = "text_prompt" if knows_names else "default"
    found[f"{_PREFIX}_everything"] = _model(f"Semantic-SAM {title}: everything", everything, mode)
    return found


def _model(name: str, widgets: list[dict], batch_mode: str | None) -> dict:
    return {
        "display_name": name,
        "batch_processing_mode": batch_mode,
        "widgets": widgets,
        "params": {},
    }


def read_request(
    model_id: str, params: Mapping, known: Mapping, suggested: float
) -> AnyLabelingRequest:
    """Checks a request.

    Args:
        model_id: one of `known`.
        params: of the request.
        known: see `models`.
        suggested: the `min_score` of `models`. X-AnyLabeling always sends the value that it shows,
            so that this one stands for the model's own thresholds.

    Raises:
        PromptError: no such model, or marks that are none.
    """
    if model_id not in known:
        raise PromptError(f"model: {model_id[:60]!r} is not here; there are {', '.join(known)}.")
    key = model_id.removeprefix(f"{_PREFIX}_")
    level: int | str | None = key
    if key == "everything":
        level = None
    elif key.startswith("level_"):
        level = int(key.removeprefix("level_"))
    names = params.get("text_prompt") or ""
    if not isinstance(names, str):
        raise PromptError("text_prompt: expected text.")
    min_score = _share(params, "conf_threshold", 1.0)
    if min_score is not None and math.isclose(min_score, suggested, abs_tol=1e-6):
        min_score = None
    return AnyLabelingRequest(
        level=level,
        request=None if level is None else _marks(params.get("marks")),
        names=names.replace(".", ","),
        min_score=min_score,
        fineness=_share(params, "epsilon_factor", 0.1) or 0.0,
    )


def shapes(records: Sequence[Mapping], fineness: float) -> list[dict]:
    """Polygons of masks; the pieces of a mask share a group.

    Its number is a checksum of the mask, because a number that counted the masks of an answer would
    join the objects of two clicks.
    """
    found = []
    for record in records:
        mask = record_mask(record)
        polygons = mask_polygons(mask)
        group = zlib.crc32(np.packbits(mask)) >> 1  # the client's numbers have 31 bits
        for polygon in polygons:
            outline = _simplified(polygon, fineness)
            found.append(
                {
                    "label": record_class(record) if record_name(record) else UNNAMED,
                    "shape_type": "polygon",
                    "points": [*outline, outline[0]],
                    "score": round(record_score(record), 4),
                    "group_id": group if len(polygons) > 1 else None,
                    "description": f"level {record['level']}" if record.get("level") else None,
                    "attributes": {},
                    "difficult": False,
                    "direction": 0,
                    "flags": None,
                    "kie_linking": [],
                }
            )
    return found


def answer(shapes: list[dict], level: int | str | None) -> dict:
    """The data of an answer, which X-AnyLabeling adds to an image or puts in place of its shapes.

    Without `replace` its own switch decides, which is right only where all masks were found: a
    click adds one object, and an answer without shapes, or an error, must not empty an image.

    Args:
        shapes: of `shapes`; may be empty.
        level: of the request; None for all masks of the image.
    """
    decided = {} if shapes and level is None else {"replace": False}
    return {"shapes": shapes, "description": ""} | decided


def _marks(marks: object) -> Request | None:
    if not marks:
        return None
    if not isinstance(marks, list) or not all(isinstance(mark, Mapping) for mark in marks):
        raise PromptError("marks: expected a list of points and rectangles.")
    points, labels, boxes = [], [], []
    for mark in marks:
        data = mark.get("data")
        count = {"point": 2, "rectangle": 4}.get(str(mark.get("type")))
        is_list = isinstance(data, list) and len(data) == count
        if not is_list or not all(isinstance(v, int | float) and abs(v) < 1e9 for v in data):
            raise PromptError(f"marks: {str(mark)[:80]} is neither a point nor a rectangle.")
        if count == 2:
            points.append(data)
            labels.append(int(mark.get("label") == 1))
        elif mark.get("label", 1) == 1:
            (x0, x1), (y0, y1) = sorted(data[::2]), sorted(data[1::2])
            boxes.append([x0, y0, x1, y1])
    return Request(
        point_coords=points or None,
        point_labels=labels or None,
        box=boxes[-1] if boxes else None,
    )


def _share(params: Mapping, key: str, top: float) -> float | None:
    value = params.get(key)
    if value is None:
        return None
    if not isinstance(value, int | float) or not 0 <= value <= top:
        raise PromptError(f"{key}: got {str(value)[:40]}; expected a number, 0..{top:g}.")
    return float(value)


def _simplified(polygon: Polygon, fineness: float) -> Polygon:
    outline = np.array(polygon, np.float32)[:, None]
    if fineness > 0:
        fewer = cv2.approxPolyDP(outline, fineness * cv2.arcLength(outline, True), True)
        outline = fewer if len(fewer) >= 3 else outline
    return outline[:, 0].astype(float).tolist()
