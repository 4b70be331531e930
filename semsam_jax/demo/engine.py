"""Answers requests with the model: prompts, all masks of an image, panoptic segmentation.

The page receives the masks of an answer as a single 8-bit PNG: the six levels of a click as six
bits of each pixel, the segments of a whole image as segment numbers. The page colours them, so
changing the level needs no further request. The API receives records in pixels of the file.
"""

import dataclasses
import functools
import logging
import math
import time
import warnings
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import UInt8

from semsam_jax.core import rle
from semsam_jax.demo.errors import explained
from semsam_jax.demo.limits import HTTPError, Limits
from semsam_jax.demo.pictures import picture_answer
from semsam_jax.demo.sessions import ImageSession, SessionStore
from semsam_jax.inference.convert_results import scale_record
from semsam_jax.inference.granularity import Granularity, parse_levels
from semsam_jax.inference.labels import LabelNames, knows_names, label_set, parse_labels
from semsam_jax.inference.loading import LoadedModel
from semsam_jax.inference.mask_generator import MaskGenerator
from semsam_jax.inference.predictor import Predictor
from semsam_jax.inference.requests import POSITIVE, Request, check_request
from semsam_jax.inference.results import Segments, UnknownName
from semsam_jax.inference.segment import prompt_records
from semsam_jax.inference.tiles import tile_boxes
from semsam_jax.inference.tree import tree_of_records
from semsam_jax.inference.whole_image import can_label_images, find_panoptic
from semsam_jax.text.tables import TextEmbeddings, normalise

MAX_SEGMENTS = 250  # numbers that fit into the 8 bits of the picture, with room for none
GRIDS = (8, 16, 24, 32)
_MAX_KNOWN_NAMES = 4096
_GRID_OF_WARM_UP = 8
_BEST_SHARE = 0.8
_MIN_REGION = 64
_log = logging.getLogger(__name__)


class Engine:
    """Answers the requests of the page with one model.

    Args:
        model: from `load_model`.
        limits: see `Limits`.
        sessions: where encoded images are kept.
        title: which model this is, in a few words; None for the preset.
    """

    def __init__(
        self, model: LoadedModel, limits: Limits, sessions: SessionStore, title: str | None = None
    ):
        self.model = model
        self.title = title or str(model.meta.get("preset") or "own model")
        self.suggested_quality = 0.5
        self._limits = limits
        self._sessions = sessions

    @property
    def num_levels(self) -> int:
        """Levels of the model, 6 for all released ones."""
        return self.model.num_levels

    @property
    def stops(self) -> tuple[float, ...]:
        """Granularity of each level, 1 for level 1."""
        return tuple(round(stop, 4) for stop in self.model.granularity_scale.stops)

    @property
    def knows_names(self) -> bool:
        """Whether the checkpoint can name what it finds."""
        return knows_names(self.model.meta)

    @property
    def has_panoptic(self) -> bool:
        """Whether the checkpoint can label a whole image."""
        return can_label_images(self.model)

    def warm_up(self, image: UInt8[np.ndarray, "h w 3"]) -> None:
        """Compiles the programs for clicks; a grid of clicks gives `suggested_quality`."""
        start = time.perf_counter()
        predictor = Predictor(self.model)
        predictor.set_image(image)
        height, width = image.shape[:2]
        centre = [[width / 2, height / 2]]
        for labels in (None, "dog;head") if self.knows_names else (None,):
            for number in (1, 2, 4):
                predictor.predict(centre * number, labels=labels)
        x, y = np.meshgrid(*[(np.arange(_GRID_OF_WARM_UP) + 0.5) / _GRID_OF_WARM_UP] * 2)
        grid = [Request([[a * width, b * height]]) for a, b in zip(x.flat, y.flat, strict=True)]
        best = [float(answer.scores.max()) for answer in predictor.predict_many(grid)]
        quality = math.floor(float(np.quantile(best, _BEST_SHARE)) * 20) / 20
        stored = self.model.meta.get("mask_thresholds") or {"pred_iou": quality}  # of many images
        self.suggested_quality = float(np.clip(stored["pred_iou"], 0.05, 0.85))
        _log.info("demo: warm after %.1f s", time.perf_counter() - start)

    def encode(self, session: ImageSession) -> dict:
        """Encodes the image of a session unless it is encoded already."""
        is_cached = session.predictor is not None
        self._predictor(session)
        return {"encode_sec": session.encode_sec, "is_cached": is_cached}

    def embed_labels(self, names: str) -> None:
        """Embeds names, so that later clicks with them are fast; HTTPError if they are invalid."""
        self._parsed(names)
        if len(self.model.name_embeddings) > _MAX_KNOWN_NAMES:
            self.model.name_embeddings.clear()
        explained(lambda: label_set(self.model, names))

    def has_embedded(self, names: str) -> bool:
        """Whether nothing is left to embed of these names; HTTPError if they are invalid."""
        parsed = self._parsed(names)
        known, unknown = self.model.name_embeddings, self.model.unknown_names
        return all(name in known or name in unknown for name in parsed.objects + parsed.parts)

    def _parsed(self, names: str) -> LabelNames:
        top, length = self._limits.names, self._limits.names_length
        if len(names) > length:
            raise HTTPError(
                400,
                f"The names are longer than {length} characters. Use fewer.",
                for_api=f"labels: longer than {length} characters; use fewer names.",
            )
        parsed = explained(lambda: parse_labels(names))
        if not parsed.vocabulary and len(parsed.objects + parsed.parts) > top:
            raise HTTPError(
                400,
                f"More than {top} names. Use fewer.",
                for_api=f"labels: more than {top} names; use fewer.",
            )
        return parsed

    @property
    def name_source(self) -> str:
        """Where names come from: `table` (stored ones only), `model` (any name) or `none`."""
        if not self.knows_names:
            return "none"
        return "table" if self.model.meta["text"]["source"] == "table" else "model"

    @functools.cached_property
    def _table(self) -> TextEmbeddings:
        return TextEmbeddings.load(self.model.meta["text"].get("table") or None)

    def similar_names(self, text: str, count: int = 8) -> list[str]:
        """Known names that start with a text, then similar ones; empty without a table of names."""
        if self.name_source != "table":
            return []
        start = normalise(text)
        found = [name for name in self._table.names if normalise(name).startswith(start)]
        near = self._table.nearest_names(text, count) if start else []
        return list(dict.fromkeys([*sorted(found, key=len), *near]))[:count]

    def click(
        self,
        session: ImageSession,
        points: Sequence[Sequence[float]],
        box: Sequence[float],
        names: str,
        is_kept: bool = True,
        granularity: float | None = None,
    ) -> dict:
        """Masks of one object at all levels, or its mask at one granularity.

        Args:
            session: the image.
            points: x, y and 1 (positive) or 0 (negative), in pixels of the image.
            box: x0, y0, x1, y1, or empty.
            names: see `inference.labels`; empty for none.
            is_kept: whether the session remembers the masks, for downloads.
            granularity: 0 (the finest part) to 1 (the whole), instead of all levels.
        """
        predictor = self._predictor(session)
        request = Request(
            point_coords=[[float(p[0]), float(p[1])] for p in points],
            point_labels=[int(p[2]) for p in points],
            box=[float(value) for value in box],
            granularity=granularity,
        )
        if not len(box) and not any(label == POSITIVE for label in request.point_labels):
            raise HTTPError(400, "Add a positive click; all clicks are negative so far.")
        start = time.perf_counter()
        answer = explained(lambda: predictor.predict_many([request], labels=names or None)[0])
        decode_sec = time.perf_counter() - start
        planes = sum((mask.astype(np.uint8) << i for i, mask in enumerate(answer.masks)))
        records = prompt_records([request], [answer])
        numbers = (
            session.remember(records, self._limits.record_bytes) if is_kept else [0] * len(records)
        )
        picture = np.asarray(planes, np.uint8)
        return picture_answer(numbers, records, list(answer.masks), picture) | {
            "unknown": _unknown(answer.unknown),
            "decode_sec": decode_sec,
            "encode_sec": session.encode_sec,
        }

    def prompts(
        self,
        session: ImageSession,
        requests: Sequence[Request],
        level: int | str,
        names: str,
        granularity: Granularity = None,
    ) -> tuple[list[list[dict]], list[dict]]:
        """Masks of several objects, for the API.

        Args:
            session: the image.
            requests: clicks and boxes in pixels of the file.
            level: 1..6, `all`, or `best`: the one with the highest predicted IoU.
            names: see `inference.labels`; empty for none.
            granularity: 0 to 1, or a list of them, instead of a level.

        Returns:
            The records of each request, in pixels of the file, and the unknown names.
        """
        original_hw, seen_hw = session.upload.original_hw, session.upload.pixels.shape[:2]
        levels = level if isinstance(level, int) and granularity is None else None
        is_best = level == "best" and granularity is None

        def answer() -> list[Segments]:
            shown = []
            for request in requests:
                request = dataclasses.replace(request, level=levels, granularity=granularity)
                check_request(request, original_hw)
                parse_levels(levels, self.num_levels)
                shown.append(_as_seen(request, original_hw, seen_hw))
            # The image is encoded after the checks: a wrong click costs nothing.
            predictor = self._predictor(session)
            return predictor.predict_many(shown, not is_best, labels=names or None)

        answers = explained(answer)
        records = [
            [scale_record(record, *original_hw) for record in one.records()] for one in answers
        ]
        return records, _unknown(answers[0].unknown)

    def find_everything(
        self,
        pixels: UInt8[np.ndarray, "h w 3"],
        names: str,
        level: int | None,
        quality: float | None,
        grid: int,
        *,
        granularity: Granularity = None,
        tile: int | None = None,
        tile_overlap: int | None = None,
    ) -> tuple[list[dict], list[dict], int]:
        """Records of the best masks of an image, unknown names, and how many masks are left out.

        Args:
            pixels: the image.
            names: see `inference.labels`; empty for none.
            level: 1..6, or None for all.
            quality: smallest predicted IoU and stability; None for the thresholds stored in the
                checkpoint, or `suggested_quality` if it has none.
            grid: clicks along each side, of each tile if there are tiles.
            granularity: 0 to 1, or a list of them, instead of a level.
            tile: see `MaskGenerator`.
            tile_overlap: see `MaskGenerator`.
        """
        if grid not in GRIDS:
            wanted = ", ".join(map(str, GRIDS))
            raise HTTPError(400, f"grid: got {grid} clicks along a side; expected one of {wanted}.")
        least = quality
        if quality is None and not self.model.meta.get("mask_thresholds"):
            least = self.suggested_quality
        if least is not None and not 0 <= least <= 1:
            raise HTTPError(400, f"The smallest score is a number from 0 to 1; got {least:g}.")
        generator = explained(
            lambda: MaskGenerator(
                self.model,
                points_per_side=grid,
                pred_iou_thresh=least,
                stability_score_thresh=least,
                level=level,
                granularity=granularity,
                labels=names or None,
                output_mode="coco_rle",
                min_mask_region_area=_MIN_REGION,
                tile=tile,
                tile_overlap=tile_overlap,
            )
        )
        count = len(tile_boxes(pixels.shape[:2], tile, generator.tile_overlap)) if tile else 1
        if count > self._limits.tiles:
            text = f"{count} tiles cover this image, at most {self._limits.tiles}: use larger ones."
            raise HTTPError(413, text, for_api=f"tile: {text}")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "no mask reached")  # the answer says so
            found = explained(lambda: generator.generate(pixels))
        best_first = sorted(found, key=lambda record: -record["predicted_iou"])
        records = best_first[:MAX_SEGMENTS]
        for number, record in enumerate(records, start=1):
            record |= {"id": number, "image_id": 1, "category_id": record["level"]}
            record["score"] = record["predicted_iou"]
        unknown = _unknown(generator.names.unknown if generator.names else ())
        return records, unknown, len(best_first) - len(records)

    def everything(
        self,
        session: ImageSession,
        names: str,
        level: int | None,
        quality: float | None,
        grid: int,
        granularity: Granularity = None,
        as_tree: bool = False,
    ) -> dict:
        """All masks of the image for the page; see `find_everything`.

        With `as_tree` they are those of one tree (`inference.tree`), parents first: a pixel of the
        picture has the number of the smallest mask there.
        """
        start = time.perf_counter()
        pixels = session.upload.pixels
        found, unknown, left_out = self.find_everything(
            pixels, names, level, quality, grid, granularity=granularity
        )
        if as_tree:
            found = tree_records(found, pixels.shape[:2])
        masks = [rle.decode(record["segmentation"]) for record in found]
        picture = np.zeros(pixels.shape[:2], np.uint8)
        for i in sorted(range(len(found)), key=lambda i: -found[i]["area"]):
            picture[masks[i]] = i + 1
        numbers = session.remember(found, self._limits.record_bytes)
        return picture_answer(numbers, found, masks, picture) | {
            "unknown": unknown,
            "left_out": left_out,
            "decode_sec": time.perf_counter() - start,
        }

    def panoptic(self, session: ImageSession, names: str) -> dict:
        """A class name for every pixel, see `find_panoptic`."""
        start = time.perf_counter()
        found = explained(lambda: find_panoptic(self.model, session.upload.pixels, names or "coco"))
        records = sorted(found.records, key=lambda record: -record["area"])[:MAX_SEGMENTS]
        picture = np.zeros(found.segment_map.shape, np.uint8)
        masks = [found.segment_map == record["id"] for record in records]
        for number, mask in enumerate(masks, start=1):
            picture[mask] = number
        numbers = session.remember(records, self._limits.record_bytes)
        return picture_answer(numbers, records, masks, picture) | {
            "unknown": _unknown(found.unknown),
            "is_from_masks": found.is_from_masks,
            "decode_sec": time.perf_counter() - start,
        }

    def _predictor(self, session: ImageSession) -> Predictor:
        predictor = session.predictor
        if predictor is None:
            start = time.perf_counter()
            predictor = Predictor(self.model)
            explained(lambda: predictor.set_image(session.upload.pixels))
            pyramid = jax.block_until_ready(predictor.pyramid)
            session.encode_sec = time.perf_counter() - start
            session.predictor = predictor
            self._sessions.put_features_away(sum(x.nbytes for x in jax.tree.leaves(pyramid)))
        return predictor


def tree_records(records: Sequence[dict], image_hw: tuple[int, int]) -> list[dict]:
    """Records of the masks of one tree, parents first; `parent` is a position in the list."""
    tree = tree_of_records(records, image_hw, min_piece=_MIN_REGION)
    found = []
    for node, record in zip(tree.nodes, tree.records(), strict=True):
        record |= {"parent": node.parent, "score": node.score}
        if node.parent is None:  # a whole is no part
            record["part"] = None
        found.append(record)
    return found


def _as_seen(request: Request, original_hw: tuple[int, int], seen_hw: tuple[int, int]) -> Request:
    """A checked request in pixels of the image that the model works on."""
    fx, fy = seen_hw[1] / original_hw[1], seen_hw[0] / original_hw[0]
    points = [
        [min(x * fx, seen_hw[1]), min(y * fy, seen_hw[0])] for x, y in request.point_coords or []
    ]
    box = [min(v * (fx, fy)[i % 2], seen_hw[1 - i % 2]) for i, v in enumerate(request.box or [])]
    return dataclasses.replace(request, point_coords=points or None, box=box or None)


def _unknown(names: Sequence[UnknownName]) -> list[dict]:
    """Names that were left out, for the page."""
    return [name._asdict() for name in names]
