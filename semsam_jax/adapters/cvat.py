r"""CVAT: a detection function for `cvat-cli`, which labels all images of a task.

    cvat-cli task auto-annotate 7 --function-module semsam_jax.adapters.cvat \
        -p labels=str:"dog,cat;head,leg"
"""

import contextlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from semsam_jax.core.errors import ConfigError, PromptError
from semsam_jax.inference.convert_results import record_mask
from semsam_jax.inference.loading import LoadedModel, load_model
from semsam_jax.inference.mask_generator import MaskGenerator
from semsam_jax.inference.outlines import mask_polygons

if TYPE_CHECKING:
    import PIL.Image
    from cvat_sdk.auto_annotation import DetectionFunctionContext, DetectionFunctionSpec
    from cvat_sdk.models import LabeledShapeRequest

ANY = "object"


def create(
    checkpoint: str = "",
    labels: str = "",
    level: str = "all",
    points_per_side: int = 32,
    pred_iou_thresh: float = -1.0,
    stability_score_thresh: float = -1.0,
) -> "DetectionFunction":
    """Makes the function; every argument is a `-p NAME=TYPE:VALUE` of `cvat-cli`.

    Args:
        checkpoint: see `load_model`; empty for the model in the package.
        labels: names of the task's labels, "dog,cat;head,leg"; empty: every mask is `object`.
        level: 1..6, or all.
        points_per_side: clicks along each side of an image.
        pred_iou_thresh: smallest predicted IoU; negative: what suits the checkpoint.
        stability_score_thresh: smallest stability; negative: what suits the checkpoint.
    """
    generator = MaskGenerator(
        load(checkpoint),
        points_per_side=points_per_side,
        pred_iou_thresh=None if pred_iou_thresh < 0 else pred_iou_thresh,
        stability_score_thresh=None if stability_score_thresh < 0 else stability_score_thresh,
        level=level if level == "all" else _level(level),
        labels=labels or None,
        output_mode="coco_rle",
    )
    return DetectionFunction(generator)


class DetectionFunction:
    """Finds all masks of an image and keeps those whose name is sure.

    Args:
        generator: with RLE output.

    Raises:
        PromptError: labels were given, and the checkpoint knows none of them.
    """

    def __init__(self, generator: MaskGenerator):
        self._tools = _tools()
        self._generator = generator
        names = generator.names
        found = (ANY,) if names is None else tuple(dict.fromkeys(names.objects + names.parts))
        if not found:
            unknown = ", ".join(str(name) for name in names.unknown[:5])
            raise PromptError(f"labels: none is known to the checkpoint ({unknown}).")
        self._numbers = {name: number for number, name in enumerate(found, start=1)}

    @property
    def spec(self) -> "DetectionFunctionSpec":
        """The labels that the function can give."""
        labels = [
            self._tools.label_spec(name, number, type="mask")
            for name, number in self._numbers.items()
        ]
        return self._tools.DetectionFunctionSpec(labels=labels)

    def detect(
        self, context: "DetectionFunctionContext", image: "PIL.Image.Image"
    ) -> "list[LabeledShapeRequest]":
        """Masks of an image, or polygons if CVAT asks for them."""
        least = context.conf_threshold or 0.0
        return [
            shape
            for record in self._generator.generate(image)
            if record["predicted_iou"] >= least and self._number(record) is not None
            for shape in self._shapes(record, context.conv_mask_to_poly)
        ]

    def _number(self, record: dict) -> int | None:
        """Label of a record: its surest name, None if no name is sure."""
        if self._generator.names is None:
            return self._numbers[ANY]
        names = [record[kind] for kind in ("object", "part") if kind in record]
        sure = [name for name in names if name["is_sure"]]
        return self._numbers[max(sure, key=lambda n: n["score"])["name"]] if sure else None

    def _shapes(self, record: dict, as_polygons: bool) -> "Iterator[LabeledShapeRequest]":
        from cvat_sdk.masks import encode_mask

        mask, number = record_mask(record), self._number(record)
        if as_polygons:
            for polygon in mask_polygons(mask):
                yield self._tools.polygon(number, np.ravel(polygon).tolist())
        else:
            yield self._tools.mask(number, encode_mask(mask))


def load(checkpoint: str) -> LoadedModel:
    """Loads the model. Output goes to stderr, because `cvat-cli` parses stdout."""
    with contextlib.redirect_stdout(sys.stderr):
        return load_model(checkpoint or None)


def _level(text: str) -> int:
    if text not in tuple("123456"):
        raise PromptError(f"level: got {text!r}; expected 1..6 or all.")
    return int(text)


def _tools() -> ModuleType:
    try:
        import cvat_sdk.auto_annotation as tools
    except ImportError as error:
        raise ConfigError(
            "cvat: the package cvat_sdk is not installed; run `pip install cvat-cli`."
        ) from error
    return tools
