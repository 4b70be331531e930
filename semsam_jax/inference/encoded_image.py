"""An image that the network has seen, and how masks of it are brought to its size."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from semsam_jax.core.structs import Pyramid
from semsam_jax.inference.guided import (
    BOX_DETAIL,
    CLICK_DETAIL,
    GuidedUpsampler,
    inside_box,
    plain_where_better,
)
from semsam_jax.inference.loading import LoadedModel
from semsam_jax.inference.preprocess import Frame, Size, fit_image
from semsam_jax.inference.requests import CheckedRequest
from semsam_jax.inference.upsample import upsample_masks


@dataclasses.dataclass(frozen=True)
class EncodedImage:
    """One encoded image.

    Attributes:
        frame: how it was shown to the network.
        pyramid: its features on the device; one image.
        guide: follows the image's edges, for models that want it (`ModelConfig`).
        box_margin: masks of a box end at the box times this (`DecoderConfig`); 0: anywhere.
    """

    frame: Frame
    pyramid: Pyramid
    guide: GuidedUpsampler | None = None
    box_margin: float = 0.0

    def masks(
        self, low: Float[np.ndarray, "n low_h low_w"], check: CheckedRequest
    ) -> Bool[np.ndarray, "n h w"]:
        """Masks of a request at the image's size.

        A mask whose guided outline puts more clicks on the wrong side than its plain one stays
        plain.
        """
        if self.guide is None:
            return self._plain(low)
        masks = self.guide.masks(low, BOX_DETAIL if len(check.boxes) else CLICK_DETAIL)
        if self.box_margin and len(check.boxes) == 1 and not len(check.points):
            masks &= inside_box(check.boxes[0], self.box_margin, self.frame.image_hw)
        plain_where_better(masks, low, self.frame, check.points, check.is_positive)
        return masks

    def is_empty(self, low: Float[np.ndarray, "low_h low_w"]) -> bool:
        """Whether a mask has no pixel at the size of the image."""
        return not self._plain(low[None]).any()

    def resemblance(
        self, low: Float[np.ndarray, "low_h low_w"], given: Bool[np.ndarray, "h w"]
    ) -> float:
        """IoU of a mask with a given one of the image's size."""
        found = self._plain(low[None])[0]
        return float((found & given).sum() / max(1, (found | given).sum()))

    def area_fraction(self, low: Float[Array | np.ndarray, "low_h low_w"]) -> float:
        """Share of the image that a mask covers, at the resolution of its logits."""
        (rows, columns), (height, width) = self.frame.resized_hw, self.frame.canvas_hw
        rows = max(1, round(low.shape[0] * rows / height))
        columns = max(1, round(low.shape[1] * columns / width))
        return float((low[:rows, :columns] > 0).mean())

    def _plain(self, low: Float[np.ndarray, "n low_h low_w"]) -> Bool[np.ndarray, "n h w"]:
        return upsample_masks(low, self.frame, self.frame.image_hw)


def encode_images(
    model: LoadedModel, images: Sequence[UInt8[np.ndarray, "_h _w 3"]], size: Size = None
) -> list[EncodedImage]:
    """Encodes images; those whose canvases have one shape go together.

    Args:
        model: from `load_model`.
        images: RGB.
        size: see `preprocess.make_frame`.
    """
    frames = [model.frame(image.shape[:2], size) for image in images]
    encoded: dict[int, EncodedImage] = {}
    for canvas_hw in dict.fromkeys(frame.canvas_hw for frame in frames):
        rows = [i for i, frame in enumerate(frames) if frame.canvas_hw == canvas_hw]
        canvases = np.stack([fit_image(images[i], frames[i]) for i in rows])
        pyramid = model.encode(canvases, [frames[i] for i in rows])
        for b, i in enumerate(rows):
            one = pyramid if len(rows) == 1 else jax.tree.map(lambda x: x[b : b + 1], pyramid)  # noqa: B023
            guide = GuidedUpsampler(images[i], frames[i]) if model.is_guided else None
            margin = model.module.config.decoder.box_margin
            encoded[i] = EncodedImage(frames[i], one, guide, margin)
    return [encoded[i] for i in range(len(images))]
