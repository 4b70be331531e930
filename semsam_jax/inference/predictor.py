"""Predictor: encode an image once, then ask for masks by clicks and boxes."""

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from semsam_jax.core.errors import PromptError
from semsam_jax.core.structs import Predictions, Prompts, Pyramid
from semsam_jax.inference.clicks import combine_clicks
from semsam_jax.inference.granularity import (
    Level,
    level_by_area,
    parse_levels,
    tokens_of_levels,
)
from semsam_jax.inference.images import ImageLike, load_image
from semsam_jax.inference.labels import Labels, LabelSet, label_set, object_logits
from semsam_jax.inference.loading import LoadedModel, low_res_logits
from semsam_jax.inference.preprocess import Frame, Size, fit_image
from semsam_jax.inference.requests import CheckedRequest, Request, Segments, check_request
from semsam_jax.inference.upsample import upsample_logits, upsample_masks

PROMPT_CHUNK = 64
LOGITS_CHUNK = 16


@dataclasses.dataclass(frozen=True)
class _EncodedImage:
    frame: Frame
    pyramid: Pyramid  # one image


class Predictor:
    """Interactive segmentation, in the manner of `segment_anything.SamPredictor`.

    All coordinates are pixels of the image as displayed, all masks have its size.

        predictor = Predictor(load_model("runs/mine"))
        predictor.set_image("dog.jpg")
        masks, scores, _ = predictor.predict(point_coords=[[320, 200]])   # levels 1..6

    Args:
        model: from `load_model`.
        size: side at which the network sees the image, `"native"`, or None for the
            checkpoint's own (see `preprocess.make_frame`).
        isolate: prompts do not see each other, so a mask depends on its own prompt only.
            False reproduces the reference's demo, where prompts of one call interact.
    """

    def __init__(self, model: LoadedModel, *, size: Size = None, isolate: bool = True) -> None:
        self.model = model
        self.size = size
        self.isolate = isolate
        self._encoded: _EncodedImage | None = None

    def set_image(self, image: ImageLike, image_format: str = "RGB") -> None:
        """Encodes an image (path, PIL image or array) and keeps its features.

        Args:
            image: see `images.load_image`.
            image_format: order of an array's channels, `RGB` or `BGR` (as OpenCV reads).

        Raises:
            PromptError: another format.
            DataError: not a readable image.
        """
        if image_format not in ("RGB", "BGR"):
            raise PromptError(f"image_format: got {image_format!r}; wanted RGB or BGR.")
        if image_format == "BGR" and isinstance(image, np.ndarray) and image.ndim == 3:
            image = np.concatenate([image[..., 2::-1], image[..., 3:]], axis=-1)
        self._encoded = self._encode([load_image(image)])[0]

    def reset_image(self) -> None:
        """Forgets the image and frees its features."""
        self._encoded = None

    @property
    def is_image_set(self) -> bool:
        """Whether `set_image` has been called."""
        return self._encoded is not None

    @property
    def pyramid(self) -> Pyramid:
        """Features of the image that was set, on the device; one image."""
        if self._encoded is None:
            raise PromptError("pyramid: no image set; call set_image first.")
        return self._encoded.pyramid

    def predict(
        self,
        point_coords: object = None,
        point_labels: object = None,
        box: object = None,
        level: Level = None,
        multimask_output: bool = True,
        labels: Labels | None = None,
        return_logits: bool = False,
        area: float | None = None,
    ) -> Segments:
        """Segments one object.

        One click or one box gives the masks of its six tokens. Several clicks, or clicks
        and a box, describe one object. The network answers each by itself; at every level the
        mask that agrees with most clicks is taken, a positive click still outside adds the mask
        of its own that contains it and the fewest negative clicks, and a negative click still
        inside cuts out its own best mask that contains no positive click (`inference.clicks`).

        Args:
            point_coords: clicks (x, y) in image pixels, [n, 2].
            point_labels: 1 on the object, 0 beside it, [n]; None means all 1.
            box: x0, y0, x1, y1 in image pixels.
            level: 1 (coarsest) .. 6 (finest), a list, or None for all.
            multimask_output: False returns only the best of the levels by predicted IoU.
            labels: object and part names to choose from; see `inference.labels`.
            return_logits: masks are float32 logits instead of booleans.
            area: choose the level whose mask is nearest to this fraction of the image.

        Returns:
            `Segments`; unpacks as masks [m, h, w], scores [m], low_res_logits [m, h/4, w/4],
            in the order of the levels.

        Raises:
            PromptError: no image set, or the prompt cannot be used on it.
        """
        request = Request(point_coords, point_labels, box, level, area)
        return self.predict_many([request], multimask_output, labels, return_logits)[0]

    def predict_many(
        self,
        requests: Sequence[Request],
        multimask_output: bool = True,
        labels: Labels | None = None,
        return_logits: bool = False,
    ) -> list[Segments]:
        """Segments several objects of the image that was set; see `predict`."""
        if self._encoded is None:
            raise PromptError("predict: no image set; call set_image first.")
        names = None if labels is None else label_set(self.model, labels)
        return self._answer(self._encoded, requests, multimask_output, names, return_logits)

    def predict_batch(
        self,
        images: Sequence[ImageLike],
        requests: Sequence[Sequence[Request]],
        multimask_output: bool = True,
        labels: Labels | None = None,
        return_logits: bool = False,
        batch_size: int = 4,
    ) -> list[list[Segments]]:
        """Segments several objects in each of several images.

        Images whose canvases have one shape are encoded together, `batch_size` at a time.

        Args:
            images: paths, PIL images or arrays.
            requests: the requests of each image.
            multimask_output: see `predict`.
            labels: see `predict`.
            return_logits: see `predict`.
            batch_size: images encoded together; bounds the memory.

        Returns:
            For each image, for each of its requests, the masks.
        """
        if len(images) != len(requests):
            raise PromptError(
                f"predict_batch: got {len(images)} images and {len(requests)} lists of requests."
            )
        names = None if labels is None else label_set(self.model, labels)
        answers = []
        for start in range(0, len(images), batch_size):
            encoded = self._encode([load_image(x) for x in images[start : start + batch_size]])
            for one, wanted in zip(encoded, requests[start : start + batch_size], strict=True):
                answers.append(self._answer(one, wanted, multimask_output, names, return_logits))
        return answers

    def _encode(self, images: list[np.ndarray]) -> list[_EncodedImage]:
        frames = [self.model.frame(image.shape[:2], self.size) for image in images]
        encoded: dict[int, _EncodedImage] = {}
        for canvas_hw in dict.fromkeys(frame.canvas_hw for frame in frames):
            rows = [i for i, frame in enumerate(frames) if frame.canvas_hw == canvas_hw]
            canvases = np.stack([fit_image(images[i], frames[i]) for i in rows])
            pyramid = self.model.encode(canvases, [frames[i] for i in rows])
            for b, i in enumerate(rows):
                one = pyramid if len(rows) == 1 else jax.tree.map(lambda x: x[b : b + 1], pyramid)  # noqa: B023
                encoded[i] = _EncodedImage(frames[i], one)
        return [encoded[i] for i in range(len(images))]

    def _answer(
        self,
        encoded: _EncodedImage,
        requests: Sequence[Request],
        multimask_output: bool,
        names: LabelSet | None,
        return_logits: bool,
    ) -> list[Segments]:
        if not requests:
            return []
        checked = [check_request(request, encoded.frame.image_hw) for request in requests]
        levels = [parse_levels(request.level, self.model.num_levels) for request in requests]
        boxes, types = prompt_arrays(checked, encoded.frame)
        found = decode_prompts(self.model, encoded.pyramid, boxes, types, names, self.isolate)
        logits = _low_res(encoded, found, [check.num_prompts for check in checked])
        answers, start = [], 0
        for request, check, wanted, low in zip(requests, checked, levels, logits, strict=True):
            stop = start + check.num_prompts
            own = jax.tree.map(lambda x: x[start:stop], found)  # noqa: B023
            best_only = not multimask_output or request.area is not None
            masks = self._choose(encoded, check, wanted, own, low, request.area, best_only)
            answers.append(self._segments(encoded, own, masks, names, return_logits))
            start = stop
        return answers

    def _choose(
        self,
        encoded: _EncodedImage,
        check: CheckedRequest,
        levels: tuple[int, ...],
        found: Predictions,
        logits: Float[np.ndarray, "p k h w"],
        area: float | None,
        best_only: bool,
    ) -> list[tuple[int, int, np.ndarray, float]]:
        """Returns (prompt, token, logits [h, w], score) of every mask to give back."""
        tokens = tokens_of_levels(levels, self.model.level_order)
        wrong = np.zeros(len(tokens), int)
        if check.is_single:
            masks = [(0, t, logits[0, t], float(found.pred_ious[0, t])) for t in tokens]
        else:
            xy = encoded.frame.to_canvas(check.points)
            parts = [
                combine_clicks(logits, found.pred_ious, xy, check.is_positive, t) for t in tokens
            ]
            masks = [(c.prompt, c.token, c.logits, c.score) for c in parts]
            wrong = np.array([c.disagreements for c in parts])
        if area is not None:
            areas = np.array([_area_fraction(mask[2], encoded.frame) for mask in masks])
            return [masks[level_by_area(areas, area)]]
        if best_only:
            return [masks[min(range(len(masks)), key=lambda i: (wrong[i], -masks[i][3]))]]
        return masks

    def _segments(
        self,
        encoded: _EncodedImage,
        found: Predictions,
        masks: list[tuple[int, int, np.ndarray, float]],
        names: LabelSet | None,
        return_logits: bool,
    ) -> Segments:
        low = np.stack([mask[2] for mask in masks])
        upsample = upsample_logits if return_logits else upsample_masks
        tokens = tuple(mask[1] for mask in masks)
        objects: list = [None] * len(masks)
        parts: list = [None] * len(masks)
        if names is not None:
            for i, (prompt, token, _, _) in enumerate(masks):
                objects[i] = names.best_object(object_logits(found)[prompt, token])
                parts[i] = names.best_part(found.part_logits[prompt, token])
        return Segments(
            masks=upsample(low, encoded.frame, encoded.frame.image_hw),
            scores=np.array([mask[3] for mask in masks], np.float32),
            low_res_logits=low,
            levels=tuple(self.model.level_order.index(token) + 1 for token in tokens),
            tokens=tokens,
            objects=tuple(objects),
            parts=tuple(parts),
        )


def prompt_arrays(
    checked: Sequence[CheckedRequest], frame: Frame
) -> tuple[Float[np.ndarray, "p 4"], Int[np.ndarray, " p"]]:
    """Boxes (cxcywh, fractions of the canvas) and type indices of all prompts, in order."""
    boxes, types = [], []
    for check in checked:
        boxes += [frame.click_boxes(check.points), frame.box_prompts(check.boxes)]
        types += [0] * len(check.points) + [frame.box_type()] * len(check.boxes)
    return np.concatenate(boxes), np.array(types, np.int32)


def decode_prompts(
    model: LoadedModel,
    pyramid: Pyramid,
    boxes: Float[np.ndarray, "p 4"],
    types: Int[np.ndarray, " p"],
    names: LabelSet | None,
    isolate: bool,
) -> Predictions:
    """Decodes any number of prompts of one image in chunks; NumPy arrays [p, k, ...].

    Isolated prompts are padded to a power of two, so that few programs are compiled;
    prompts that see each other go in one call, exactly as many as they are.
    """
    num = len(boxes)
    step = min(PROMPT_CHUNK, 1 << (num - 1).bit_length()) if isolate else num
    text = None if names is None else names.table
    parts = []
    for start in range(0, num, step):
        rows = np.arange(start, start + step)
        valid = rows < num
        rows = np.minimum(rows, num - 1)
        prompts = Prompts(boxes=boxes[rows][None], type_index=types[rows][None], valid=valid[None])
        found = model.decode(pyramid, prompts, text, isolate)
        parts.append(jax.tree.map(lambda x: np.asarray(x)[0][valid], found))  # noqa: B023
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def _low_res(
    encoded: _EncodedImage, found: Predictions, sizes: list[int]
) -> Iterator[Float[np.ndarray, "q k h w"]]:
    """Mask logits at stride 4 of each request's prompts, `sizes` of them.

    Requests share a product, which reads the features once; padded as `decode_prompts` pads.
    """
    k, start = found.mask_embed.shape[1], 0
    for group in _groups(sizes, LOGITS_CHUNK):
        num = sum(group)
        count = 1 << (num - 1).bit_length()

        def padded(x: np.ndarray | None) -> Array | None:
            if x is None:
                return None
            rows = np.zeros((count, *x.shape[1:]), x.dtype)  # noqa: B023
            rows[:num] = x[start : start + num]  # noqa: B023
            return jnp.asarray(rows.reshape(-1, x.shape[-1]))

        embed, limits = padded(found.mask_embed), padded(found.mask_limits)
        flat = low_res_logits(embed, encoded.pyramid.mask_features[0], limits)
        logits = np.asarray(flat).reshape(count, k, *flat.shape[1:])[:num]
        yield from np.split(logits, np.cumsum(group)[:-1])
        start += num


def _groups(sizes: list[int], limit: int) -> list[list[int]]:
    """Neighbours whose sum stays within the limit; a larger one stays alone."""
    groups: list[list[int]] = []
    for size in sizes:
        if groups and sum(groups[-1]) + size <= limit:
            groups[-1].append(size)
        else:
            groups.append([size])
    return groups


def _area_fraction(logits: Float[Array | np.ndarray, "h w"], frame: Frame) -> float:
    height = max(1, round(logits.shape[0] * frame.resized_hw[0] / frame.canvas_hw[0]))
    width = max(1, round(logits.shape[1] * frame.resized_hw[1] / frame.canvas_hw[1]))
    return float((logits[:height, :width] > 0).mean())
