"""CVAT: an interaction function, which answers clicks in CVAT's page through an agent.

cvat-cli function create-native Semantic-SAM --function-module semsam_jax.adapters.cvat_click
cvat-cli function run-agent ID --function-module semsam_jax.adapters.cvat_click
"""

from typing import TYPE_CHECKING

from semsam_jax.adapters.cvat import _level, _tools, load
from semsam_jax.inference.loading import LoadedModel
from semsam_jax.inference.predictor import Predictor

if TYPE_CHECKING:
    import PIL.Image
    from cvat_sdk.auto_annotation import (
        InteractionFunctionContext,
        InteractionFunctionSpec,
        InteractionPrompts,
        InteractionResultShape,
    )


def create(checkpoint: str = "", level: str = "best") -> "InteractionFunction":
    """Makes the function; every argument is a `-p NAME=TYPE:VALUE` of `cvat-cli`.

    Args:
        checkpoint: see `load_model`; empty for the model in the package.
        level: 1 (the whole) .. 6 (its finest part), or best: by predicted IoU.
    """
    return InteractionFunction(load(checkpoint), level)


class InteractionFunction:
    """The mask of clicks and at most one box.

    Args:
        model: of `load_model`.
        level: 1..6, or best.
    """

    def __init__(self, model: LoadedModel, level: str = "best"):
        self._tools = _tools()
        self._model = model
        self._level = None if level == "best" else _level(level)

    @property
    def spec(self) -> "InteractionFunctionSpec":
        """Prompts that the function accepts."""
        return self._tools.InteractionFunctionSpec(
            min_pos_points=0, min_neg_points=0, min_bounding_boxes=0
        )

    def preprocess_image(
        self, context: "InteractionFunctionContext", image: "PIL.Image.Image"
    ) -> Predictor:
        """Encodes an image, once for all clicks."""
        predictor = Predictor(self._model)
        predictor.set_image(image)
        return predictor

    def detect(
        self,
        context: "InteractionFunctionContext",
        pp_image: Predictor,
        prompts: "InteractionPrompts",
    ) -> "list[InteractionResultShape]":
        """One mask, or none if nothing is there."""
        from cvat_sdk import models
        from cvat_sdk.masks import encode_mask

        points = [*prompts.pos_points, *prompts.neg_points]
        box = prompts.bounding_box
        found = pp_image.predict(
            point_coords=[list(xy) for xy in points] or None,
            point_labels=[1] * len(prompts.pos_points) + [0] * len(prompts.neg_points) or None,
            box=None if box is None else [*box[0], *box[1]],
            multimask_output=self._level is not None,
            level=self._level,
        )
        if not found.masks[0].any():
            return []
        score = models.AttributeValRequest(
            spec_id=int(self._tools.InteractionResultAttributes.CONFIDENCE),
            value=f"{min(1.0, max(0.0, float(found.scores[0]))):.4f}",
        )
        points = encode_mask(found.masks[0])
        return [self._tools.InteractionResultShape(type="mask", points=points, attributes=[score])]
