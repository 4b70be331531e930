"""Label Studio: requests of its machine-learning backend, and the answers it expects.

Smart keypoints and rectangles come in percent of the image; masks go back as brush strokes
(`label_studio_brush`) or polygons, whichever the labelling configuration has.
"""

import dataclasses
import math
import uuid
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping, Sequence

from semsam_jax.adapters.label_studio_brush import encode_brush
from semsam_jax.core.errors import DataError, PromptError
from semsam_jax.inference.convert_results import record_mask, record_score
from semsam_jax.inference.outlines import mask_polygons
from semsam_jax.inference.requests import Request

_KEYPOINT, _RECTANGLE = "keypointlabels", "rectanglelabels"
_OUTPUTS = {"BrushLabels": "brushlabels", "PolygonLabels": "polygonlabels"}


@dataclasses.dataclass(frozen=True)
class Control:
    """Where masks go in a project.

    Attributes:
        from_name: name of the tag of the labels.
        to_name: name of the image's tag.
        image_key: where a task holds its image.
        kind: `brushlabels` or `polygonlabels`.
        labels: values of the labels, in their order.
    """

    from_name: str
    to_name: str
    image_key: str
    kind: str
    labels: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Interaction:
    """What an annotator has marked on one image.

    Attributes:
        request: clicks and a box, pixels of the image.
        label: of the object; None if no mark has one.
        image_hw: size of the image as Label Studio knows it.
    """

    request: Request
    label: str | None
    image_hw: tuple[int, int]


def read_control(label_config: object) -> Control:
    """Finds the image and the labels for masks in a labelling configuration.

    Raises:
        DataError: not XML, or without an image or labels for masks.
    """
    root = _parse(label_config)
    images = [tag for tag in root.iter("Image") if tag.get("name")]
    if not images:
        raise DataError("label_config: no <Image> tag; expected a project of images.")
    image = images[0].get("name", "")
    for tag in root.iter():
        if tag.tag in _OUTPUTS and image in (tag.get("toName") or "").split(","):
            return Control(
                from_name=tag.get("name", ""),
                to_name=image,
                image_key=(images[0].get("value") or "$image").lstrip("$"),
                kind=_OUTPUTS[tag.tag],
                labels=tuple(label.get("value", "") for label in tag.iter("Label")),
            )
    raise DataError(
        "label_config: neither <BrushLabels> nor <PolygonLabels> for the image; add one, it takes "
        "the masks."
    )


def read_interaction(context: object) -> Interaction | None:
    """Clicks and box of a request's context, None if the annotator has marked nothing.

    Raises:
        PromptError: marks without a place, of a rotated image, or only negative ones.
    """
    marks = context.get("result") if isinstance(context, Mapping) else None
    if not isinstance(marks, list):
        return None
    marks = [m for m in marks if _kind(m) in (_KEYPOINT, _RECTANGLE)]
    if not marks:
        return None
    width, height = (_number(marks[0], key) for key in ("original_width", "original_height"))
    if not (width >= 1 and height >= 1):
        raise PromptError("context: the size of the image is missing.")
    points, labels, box, label = [], [], None, None
    for mark in marks:
        if mark.get("image_rotation"):
            raise PromptError("context: the image is rotated; turn it back, then click.")
        value = mark["value"]
        x, y = _number(value, "x") * width / 100, _number(value, "y") * height / 100
        names = value.get(_kind(mark))
        label = names[0] if label is None and isinstance(names, list) and names else label
        if _kind(mark) == _KEYPOINT:
            points.append([min(x, width), min(y, height)])
            labels.append(int(bool(mark.get("is_positive", 1))))
        else:
            size = [_number(value, "width") * width / 100, _number(value, "height") * height / 100]
            turn = _number(value, "rotation") if value.get("rotation") else 0.0
            low_x, low_y, far_x, far_y = _around(x, y, *size, turn)
            box = [max(low_x, 0.0), max(low_y, 0.0), min(far_x, width), min(far_y, height)]
    if label is not None and not isinstance(label, str):
        raise PromptError("context: a label is no text.")
    request = Request(point_coords=points or None, point_labels=labels or None, box=box)
    return Interaction(request, label, (int(height), int(width)))


def prediction(
    records: Iterable[Mapping],
    labels: Sequence[str | None],
    control: Control,
    model_version: str,
) -> dict:
    """One of the `results` of an answer: the regions of a task.

    Args:
        records: masks in pixels of the image; empty ones are left out.
        labels: of each record.
        control: where they go.
        model_version: shown in Label Studio.
    """
    regions = []
    for record, label in zip(records, labels, strict=True):
        mask = record_mask(record)
        name = label or (control.labels[0] if control.labels else "object")
        for value in _values(mask, control.kind) if mask.any() else ():
            regions.append(
                {
                    "id": uuid.uuid4().hex[:10],
                    "from_name": control.from_name,
                    "to_name": control.to_name,
                    "type": control.kind,
                    "original_width": mask.shape[1],
                    "original_height": mask.shape[0],
                    "image_rotation": 0,
                    "value": {**value, control.kind: [name]},
                    "score": round(record_score(record), 4),
                    "readonly": False,
                }
            )
    scores = [region["score"] for region in regions]
    return {
        "result": regions,
        "score": sum(scores) / len(scores) if scores else 0.0,
        "model_version": model_version,
    }


def _around(
    x: float, y: float, width: float, height: float, degrees: float
) -> tuple[float, float, float, float]:
    """Box around a rectangle that is turned clockwise about its upper left corner."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    along, across = [0.0, width * cos, -height * sin], [0.0, width * sin, height * cos]
    along.append(along[1] + along[2])
    across.append(across[1] + across[2])
    return x + min(along), y + min(across), x + max(along), y + max(across)


def _values(mask, kind: str) -> list[dict]:
    if kind == "brushlabels":
        return [{"format": "rle", "rle": encode_brush(mask)}]
    height, width = mask.shape
    return [
        {"points": [[x / width * 100, y / height * 100] for x, y in polygon], "closed": True}
        for polygon in mask_polygons(mask)
    ]


def _parse(label_config: object) -> ElementTree.Element:
    text = label_config if isinstance(label_config, str) else ""
    if not text.strip():
        raise DataError("label_config: missing; expected the project's labelling configuration.")
    if "<!" in text.replace("<!--", ""):
        raise DataError("label_config: declarations are not read; expected plain tags.")
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, RecursionError, ValueError) as error:
        raise DataError(f"label_config: not XML ({str(error)[:80]}).") from error


def _kind(mark: object) -> str | None:
    is_mark = isinstance(mark, Mapping) and isinstance(mark.get("value"), Mapping)
    kind = mark.get("type") if is_mark else None
    return kind if isinstance(kind, str) else None


def _number(values: Mapping, key: str) -> float:
    value = values.get(key)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not -1e9 < value < 1e9:
        raise PromptError(f"context: {key} is {str(value)[:40]}; expected a number.")
    return float(value)
