"""Predictor: encode an image once, then segment it with clicks and boxes."""

import dataclasses
import functools
import itertools
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from jaxtyping import Float

from semsam_jax.core.errors import PromptError
from semsam_jax.core.structs import Predictions, Pyramid
from semsam_jax.inference.clicks import combine_clicks
from semsam_jax.inference.decoding import (
    LOGITS_CHUNK,
    asked_of_prompts,
    decode_prompts,
    prompt_arrays,
    prompt_logits,
)
from semsam_jax.inference.encoded_image import EncodedImage, encode_images
from semsam_jax.inference.granularity import (
    Granularity,
    Level,
    parse_granularity,
    parse_levels,
    token_weights,
    tokens_of_levels,
)
from semsam_jax.inference.images import ImageLike, load_image
from semsam_jax.inference.labels import Labels, LabelSet, label_set, object_logits
from semsam_jax.inference.loading import LoadedModel, check_model
from semsam_jax.inference.mask_prompt import add_mask, read_mask
from semsam_jax.inference.preprocess import Size, check_size
from semsam_jax.inference.prompt_masks import PromptMask, best_mask, filled_mask
from semsam_jax.inference.requests import (
    CheckedRequest,
    Request,
    as_requests,
    check_flag,
    check_int,
    check_request,
    check_sequence,
    split_batch,
    warn_of_fractions,
)
from semsam_jax.inference.results import Segments, SegmentsBatch
from semsam_jax.inference.upsample import upsample_logits


class Predictor:
    """Interactive segmentation with the interface of `segment_anything.SamPredictor`.

    All coordinates are pixels of the image as displayed, all masks have its size.

        predictor = Predictor(load_model("runs/mine"))
        predictor.set_image("dog.jpg")
        masks, scores, _ = predictor.predict(point_coords=[[320, 200]])   # levels 1..6

    Args:
        model: from `load_model`.
        size: side in pixels to which images are resized, `"native"`, or None for that of the
            checkpoint (see `preprocess.make_frame`).
        isolate: prompts do not attend to each other, so a mask depends on its own prompt only.
            False reproduces the original's demo, where prompts of one call interact.
    """

    def __init__(self, model: LoadedModel, *, size: Size = None, isolate: bool = True) -> None:
        check_model(model)
        check_size(size)
        self.model = model
        self.size = size
        self.isolate = check_flag("isolate", isolate)
        self._encoded: EncodedImage | None = None

    def set_image(self, image: ImageLike, image_format: str = "RGB") -> None:
        """Encodes an image (path, PIL image or array) and keeps its features.

        If that fails, no image is set, so that nothing is segmented in an earlier one by mistake.

        Args:
            image: see `images.load_image`.
            image_format: order of an array's channels, `RGB` or `BGR` (as OpenCV reads).

        Raises:
            PromptError: another format.
            DataError: not a readable image.
        """
        self._encoded = None
        if not isinstance(image_format, str) or image_format not in ("RGB", "BGR"):
            raise PromptError(f"image_format: got {str(image_format)[:60]!r}; expected RGB or BGR.")
        if image_format == "BGR" and isinstance(image, np.ndarray) and image.ndim == 3:
            image = np.concatenate([image[..., 2::-1], image[..., 3:]], axis=-1)
        self._encoded = encode_images(self.model, [load_image(image)], self.size)[0]

    def reset_image(self) -> None:
        """Discards the image and its features."""
        self._encoded = None

    @property
    def is_image_set(self) -> bool:
        """Whether `set_image` has been called."""
        return self._encoded is not None

    @property
    def pyramid(self) -> Pyramid:
        """Features of the current image, on the device: levels [1, h / s, w / s, d].

        Raises:
            PromptError: no image set.
        """
        if self._encoded is None:
            raise PromptError("pyramid: no image set; call set_image first.")
        return self._encoded.pyramid

    def predict(
        self,
        point_coords: object = None,
        point_labels: object = None,
        box: object = None,
        mask_input: object = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        *,
        level: Level = None,
        labels: Labels | None = None,
        area: float | None = None,
        granularity: Granularity = None,
    ) -> Segments:
        """Segments one object, or one for each of several boxes; arguments in the order of SAM.

        One click or one box gives the masks of its six tokens. Several clicks, or clicks
        and a box, describe one object. The network decodes each separately. At every level the
        mask that agrees with most clicks is selected; then each positive click still outside
        adds the one of its own masks that contains it and the fewest negative clicks, and each
        negative click still inside removes the best of its own masks that contains no positive
        click (`inference.clicks`).

        Args:
            point_coords: clicks (x, y) in image pixels, [n, 2].
            point_labels: 1 for a positive click, 0 for a negative one, [n]; None means all 1.
            box: x0, y0, x1, y1 in image pixels.
            mask_input: a mask to refine: of the image's size, as an array or COCO RLE
                (`{"size": [h, w], "counts": ...}`), or one of the `low_res_logits` of an earlier
                result. Clicks and a box are sampled from it, and the result most similar to it
                counts as the best (`inference.mask_prompt`).
            level: 1 (coarsest) .. 6 (finest), a list, or None for all.
            multimask_output: False returns only the level with the highest predicted IoU; never an
                empty mask while another level has pixels.
            labels: object and part names to choose from; see `inference.labels`.
            return_logits: return float32 logits instead of booleans, upsampled without the guided
                filter.
            area: select the level whose mask area is closest to this fraction of the image, among
                several levels if `level` lists them.
            granularity: 0 (the finest part) to 1 (the whole), or a list, instead of `level`: one
                mask for each value, changing smoothly between levels (`inference.granularity`).
                Empty only if the masks of all levels are.

        Returns:
            `Segments`; unpacks as masks [m, h, w] of the image's size, scores [m] (predicted
            IoU), low_res_logits [m, canvas h / 4, canvas w / 4], in the order of the levels. An
            empty mask has the lowest score, at most 0. For several boxes [n, 4], or clicks
            [n, k, 2], a `SegmentsBatch`: the same with a first axis of n.

        Raises:
            PromptError: no image set, or the prompt cannot be used on it.
        """
        request = Request(point_coords, point_labels, box, level, area, mask_input, granularity)
        batch = split_batch(request)
        answers = self.predict_many(batch or [request], multimask_output, labels, return_logits)
        return answers[0] if batch is None else SegmentsBatch(answers)

    def predict_many(
        self,
        requests: Sequence[Request | Mapping[str, object]],
        multimask_output: bool = True,
        labels: Labels | None = None,
        return_logits: bool = False,
    ) -> list[Segments]:
        """Segments several objects in the current image; see `predict`.

        Args:
            requests: a `Request`, or a mapping with its fields, for each object.
            multimask_output: see `predict`.
            labels: see `predict`.
            return_logits: see `predict`.

        Returns:
            A `Segments` for each request.

        Raises:
            PromptError: as for `predict`, or `requests` is not a list of requests.
        """
        if self._encoded is None:
            raise PromptError("predict: no image set; call set_image first.")
        checked = as_requests(requests)
        names = None if labels is None else label_set(self.model, labels)
        return self._answer(self._encoded, checked, multimask_output, names, return_logits)

    def predict_batch(
        self,
        images: Sequence[ImageLike],
        requests: Sequence[Sequence[Request | Mapping[str, object]]],
        multimask_output: bool = True,
        labels: Labels | None = None,
        return_logits: bool = False,
        batch_size: int = 4,
    ) -> list[list[Segments]]:
        """Segments several objects in each of several images.

        Images with the same canvas shape are encoded together, `batch_size` at a time.

        Args:
            images: paths, PIL images or arrays.
            requests: the requests of each image.
            multimask_output: see `predict`.
            labels: see `predict`.
            return_logits: see `predict`.
            batch_size: images encoded together; limits memory.

        Returns:
            For each image, for each of its requests, the masks.

        Raises:
            DataError: an image cannot be read.
            PromptError: an invalid request, or different numbers of images and lists of requests.
        """
        check_sequence("images", images, "a list of images")
        check_sequence("requests", requests, "a list of requests for each image")
        if len(images) != len(requests):
            raise PromptError(
                f"predict_batch: got {len(images)} images and {len(requests)} lists of requests."
            )
        check_int("batch_size", batch_size, 1, 1 << 16)
        checked = [as_requests(wanted) for wanted in requests]
        names = None if labels is None else label_set(self.model, labels)
        answers = []
        for start in range(0, len(images), batch_size):
            group = [load_image(x) for x in images[start : start + batch_size]]
            encoded = encode_images(self.model, group, self.size)
            for one, wanted in zip(encoded, checked[start : start + batch_size], strict=True):
                answers.append(self._answer(one, wanted, multimask_output, names, return_logits))
        return answers

    def _answer(
        self,
        encoded: EncodedImage,
        requests: Sequence[Request | Mapping[str, object]],
        multimask_output: bool,
        names: LabelSet | None,
        return_logits: bool,
    ) -> list[Segments]:
        if not requests:
            return []
        check_flag("multimask_output", multimask_output)
        check_flag("return_logits", return_logits)
        low_hw = encoded.pyramid.mask_features.shape[1:3]
        given = [read_mask(one.mask_input, encoded.frame, low_hw) for one in requests]
        checked = [check_request(request, encoded.frame.image_hw) for request in requests]
        for check in checked:
            warn_of_fractions(check, encoded.frame.image_hw)
        checked = [add_mask(check, mask) for check, mask in zip(checked, given, strict=True)]
        levels = [parse_levels(r.level, self.model.num_levels, r.area) for r in requests]
        boxes, types = prompt_arrays(checked, encoded.frame)
        sizes = [check.num_prompts for check in checked]
        asked = [parse_granularity(r.granularity, r.level, r.area) for r in requests]
        granularity = asked_of_prompts(self.model, asked, sizes)
        found = decode_prompts(
            self.model, encoded.pyramid, boxes, types, names, self.isolate, granularity
        )
        logits = prompt_logits(encoded.pyramid.mask_features[0], found, sizes)

        def answer(row: tuple) -> Segments:
            request, check, wanted, granularities, low, mask, start = row
            own = jax.tree.map(lambda x: x[start : start + check.num_prompts], found)
            if granularities is None:
                tokens, k = tokens_of_levels(wanted, self.model.level_order), self.model.num_levels
                masks = self._masks(encoded, check, tokens, own.pred_ious[:, :k], low[:, :k])
            else:
                masks = self._continuous(encoded, check, granularities, own.pred_ious, low)
            if not multimask_output or request.area is not None:
                masks = best_mask(encoded, masks, request.area, mask)
            return self._segments(encoded, check, own, masks, names, return_logits)

        starts = np.cumsum([0, *sizes[:-1]]).tolist()
        rows = zip(requests, checked, levels, asked, logits, given, starts, strict=True)
        if len(requests) == 1:
            return [answer(next(rows))]
        answers: list[Segments] = []
        while group := list(itertools.islice(rows, LOGITS_CHUNK)):  # not the logits of all at once
            answers += _threads().map(answer, group)
        return answers

    def _masks(
        self,
        encoded: EncodedImage,
        check: CheckedRequest,
        tokens: Sequence[int],
        ious: Float[np.ndarray, "p k"],
        logits: Float[np.ndarray, "p k h w"],
    ) -> list[PromptMask]:
        """The mask of each of these tokens."""
        if check.is_single:
            return [PromptMask(0, t, logits[0, t], float(ious[0, t])) for t in tokens]
        xy = encoded.frame.to_canvas(check.points)
        parts = [combine_clicks(logits, ious, xy, check.is_positive, t) for t in tokens]
        masks = [PromptMask(c.prompt, c.token, c.logits, c.score, c.disagreements) for c in parts]
        return [
            filled_mask(mask, logits[list(part.bases), part.token], encoded)
            for mask, part in zip(masks, parts, strict=True)
        ]

    def _continuous(
        self,
        encoded: EncodedImage,
        check: CheckedRequest,
        granularities: Sequence[float],
        ious: Float[np.ndarray, "p k"],
        logits: Float[np.ndarray, "p k h w"],
    ) -> list[PromptMask]:
        """The mask at each granularity; for an empty one that of the nearest level with pixels."""
        order, scale = self.model.level_order, self.model.granularity_scale
        tokens = range(len(order), len(order) + len(granularities))
        if self.model.has_granularity_token:
            logits, ious = logits[:, : tokens.stop], ious[:, : tokens.stop]
        else:
            weights = token_weights(scale, granularities, order)
            blended = np.einsum("gk,pkhw->pghw", weights, logits)
            logits = np.concatenate([logits, blended], axis=1)
            ious = ious.astype(np.float32)
            ious = np.concatenate([ious, ious @ weights.T], axis=1)
        found = []
        for mask, asked in zip(
            self._masks(encoded, check, tokens, ious, logits), granularities, strict=True
        ):
            token = order[scale.nearest(asked) - 1]
            if encoded.is_empty(mask.logits):
                level = scale.level(asked)
                near = sorted(range(len(order)), key=lambda i: abs(i + 1 - level))
                others = self._masks(encoded, check, [order[i] for i in near], ious, logits)
                full = (other for other in others if not encoded.is_empty(other.logits))
                mask = next(full, mask)
                token = mask.token if mask.token < len(order) else token
            is_own = self.model.has_granularity_token and mask.token >= len(order)
            column = mask.token if is_own else token
            found.append(
                dataclasses.replace(mask, token=token, granularity=asked, name_column=column)
            )
        return found

    def _segments(
        self,
        encoded: EncodedImage,
        check: CheckedRequest,
        found: Predictions,
        chosen: list[PromptMask],
        names: LabelSet | None,
        return_logits: bool,
    ) -> Segments:
        low = np.stack([mask.logits for mask in chosen])
        if return_logits:
            masks = upsample_logits(low, encoded.frame, encoded.frame.image_hw)
        else:
            masks = encoded.masks(low, check)
        tokens = tuple(mask.token for mask in chosen)
        objects: list = [None] * len(chosen)
        parts: list = [None] * len(chosen)
        if names is not None and not names.is_empty:
            for i, mask in enumerate(chosen):
                own = (mask.prompt, mask.token if mask.name_column is None else mask.name_column)
                objects[i] = names.best_object(object_logits(found, len(names.parts))[own])
                parts[i] = names.best_part(found.part_logits[own])
        scores = np.array([mask.score for mask in chosen], np.float32)
        is_empty = ~(masks > 0 if return_logits else masks).any((1, 2))
        scores[is_empty] = min(0.0, *scores)  # it overlaps with nothing, and is never the best
        return Segments(
            masks=masks,
            scores=scores,
            low_res_logits=low,
            levels=tuple(self.model.level_order.index(token) + 1 for token in tokens),
            tokens=tokens,
            objects=tuple(objects),
            parts=tuple(parts),
            unknown=() if names is None else names.unknown,
            granularities=tuple(m.granularity for m in chosen if m.granularity is not None),
        )


@functools.cache
def _threads() -> ThreadPoolExecutor:
    """Threads in which masks of one call are upsampled."""
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="masks")
