"""MaskGenerator: every mask of an image, from a grid of clicks.

Memory stays low because no full-size mask is kept per click: masks are first filtered by their
predicted IoU, then measured in small chunks on the device. Those that remain are kept as vectors
(mask embeddings) until the very end, when they become RLE at the original resolution.
"""

import contextlib
import dataclasses
import math
import warnings

import numpy as np
from jaxtyping import Float, UInt8

from semsam_jax.core import rle
from semsam_jax.core.errors import PromptError
from semsam_jax.core.host_memory import return_freed_memory
from semsam_jax.core.structs import Prompts
from semsam_jax.inference.crop_masks import (
    best_names,
    clean_and_pack,
    measure_embeddings,
    render_masks,
)
from semsam_jax.inference.decoding import asked_of_prompts, check_finite
from semsam_jax.inference.found import FoundMask, drop_duplicates
from semsam_jax.inference.granularity import (
    Granularity,
    Level,
    parse_granularity,
    parse_levels,
    token_weights,
    tokens_of_levels,
)
from semsam_jax.inference.grid import crop_boxes, point_grid
from semsam_jax.inference.hierarchy import depths, parents, without_overlap
from semsam_jax.inference.images import ImageLike, load_image
from semsam_jax.inference.labels import Labels, label_set
from semsam_jax.inference.large_images import LargeImage, open_large
from semsam_jax.inference.loading import LoadedModel, check_model
from semsam_jax.inference.mask_selection import (
    Filters,
    KeptMasks,
    checkpoint_thresholds,
    filter_masks,
    suppress,
    suppress_cleaned,
    touches_crop_border,
)
from semsam_jax.inference.preprocess import Frame, Size, check_size, fit_image
from semsam_jax.inference.requests import check_flag, check_int, check_number
from semsam_jax.inference.results import Records, ScoredName
from semsam_jax.inference.tiles import SeamMerger, checked_overlap, join_pieces, tile_boxes
from semsam_jax.inference.tree import MaskTree, build_tree
from semsam_jax.ops.nms import nms

OUTPUT_MODES = ("binary_mask", "uncompressed_rle", "coco_rle")
OVERLAPS = ("all", "none")
_MAX_POINTS_PER_SIDE = 256
_MAX_OVERLAP = 0.99
_MAX_BINARY_BYTES = 4 << 30


class MaskGenerator:
    """Finds all masks of an image, with the interface of `SamAutomaticMaskGenerator`.

    The order of arguments up to `crop_n_points_downscale_factor` is the same; the others are
    keyword-only.

    Args:
        model: from `load_model`.
        points_per_side: clicks along each side of the grid.
        points_per_batch: clicks decoded together; limits memory and does not affect results. Larger
            is faster, because every call reads the whole feature pyramid.
        pred_iou_thresh: minimum predicted IoU; None takes the value stored in the checkpoint, or
            0.88.
        stability_score_thresh: minimum stability, the IoU of the masks at two shifted thresholds;
            None takes the value stored in the checkpoint, or 0.92.
        stability_score_offset: that shift, in logits.
        box_nms_thresh: box IoU above which the worse of two masks is dropped.
        crop_n_layers: also segment crops, 4**i of them in layer i.
        crop_nms_thresh: box NMS between crops.
        crop_overlap_ratio: overlap of crops, as a share of the image's short side.
        crop_n_points_downscale_factor: divides the grid by this to the power of the layer.
        level: levels 1..6 to use, a list, or None for all.
        labels: object and part names to choose from; see `inference.labels`.
        min_mask_region_area: smaller holes and islands are removed, image pixels; 0 off.
        output_mode: `binary_mask`, `uncompressed_rle` or `coco_rle`.
        size: side in pixels to which images are resized; see `preprocess.make_frame`.
        overlap: `"all"` keeps masks as they are; `"none"` assigns every pixel to at most one mask,
            small masks on top of large ones.
        min_visible: with `overlap="none"` and in a tree, the share of a mask that must stay
            visible.
        tree: add to each record its `parent`, the index of the smallest mask that contains it or
            None, and its `depth`, the number of steps to its root. The result then has a `tree`, in
            which children lie inside their parents and siblings do not overlap (`inference.tree`).
        granularity: 0 (the finest part) to 1 (the whole), or a list, instead of `level`.
        isolate: False reproduces the original, where the clicks of a batch interact.
        tile: side of square tiles in pixels, for images of any size: tiles are segmented separately
            and masks joined across their borders (`inference.tiles`); None for the whole image.
        tile_overlap: overlap of neighbouring tiles in pixels, by default 128 and at most half a
            tile.

    Raises:
        PromptError: an invalid argument.
    """

    def __init__(
        self,
        model: LoadedModel,
        points_per_side: int = 32,
        points_per_batch: int = 1024,
        pred_iou_thresh: float | None = None,
        stability_score_thresh: float | None = None,
        stability_score_offset: float = 1.0,
        box_nms_thresh: float = 0.7,
        crop_n_layers: int = 0,
        crop_nms_thresh: float = 0.7,
        crop_overlap_ratio: float = 512 / 1500,
        crop_n_points_downscale_factor: int = 1,
        *,
        level: Level = None,
        labels: Labels | None = None,
        min_mask_region_area: int = 10,
        output_mode: str = "binary_mask",
        size: Size = None,
        overlap: str = "all",
        min_visible: float = 0.2,
        tree: bool = False,
        granularity: Granularity = None,
        isolate: bool = True,
        tile: int | None = None,
        tile_overlap: int | None = None,
    ) -> None:
        for name, value, top in (
            ("points_per_side", points_per_side, _MAX_POINTS_PER_SIDE),
            ("points_per_batch", points_per_batch, _MAX_POINTS_PER_SIDE**2),
            ("crop_n_points_downscale_factor", crop_n_points_downscale_factor, 64),
        ):
            check_int(name, value, 1, top)
        check_int("crop_n_layers", crop_n_layers, 0, 3)
        check_number("crop_overlap_ratio", crop_overlap_ratio, 0.0, _MAX_OVERLAP)
        check_model(model)
        check_size(size)
        check_number("min_visible", min_visible, 0.0, 1.0)
        check_flag("tree", tree)
        if not isinstance(overlap, str) or overlap not in OVERLAPS:
            raise PromptError(f"overlap: got {str(overlap)[:60]!r}; expected all or none.")
        least = checkpoint_thresholds(model.meta, pred_iou_thresh, stability_score_thresh)
        if not isinstance(output_mode, str) or output_mode not in OUTPUT_MODES:
            raise PromptError(
                f"output_mode: got {str(output_mode)[:60]!r}; expected one of "
                f"{', '.join(OUTPUT_MODES)}."
            )
        self.model = model
        self.points_per_side, self.points_per_batch = points_per_side, points_per_batch
        self.filters = Filters(
            pred_iou_thresh=least[0],
            stability_score_thresh=least[1],
            stability_score_offset=stability_score_offset,
            box_nms_thresh=box_nms_thresh,
            crop_nms_thresh=crop_nms_thresh,
            min_mask_region_area=min_mask_region_area,
        )
        self.levels = parse_levels(level, model.num_levels)
        self.granularities = parse_granularity(granularity, level)
        if self.granularities is not None:
            scale = model.granularity_scale
            self.levels = tuple(scale.nearest(value) for value in self.granularities)
            self._weights = token_weights(scale, self.granularities, model.level_order)
        self.tokens = tokens_of_levels(self.levels, model.level_order)
        self.names = None if labels is None else label_set(model, labels)
        self.crop_n_layers, self.crop_overlap_ratio = crop_n_layers, crop_overlap_ratio
        self.crop_n_points_downscale_factor = crop_n_points_downscale_factor
        self.output_mode = output_mode
        self.overlap, self.min_visible, self.tree = overlap, min_visible, tree
        self.size, self.isolate = size, check_flag("isolate", isolate)
        self.tile, self.tile_overlap = tile, checked_overlap(tile, tile_overlap)

    def generate(self, image: ImageLike | LargeImage) -> Records:
        """Finds all masks of an image.

        Args:
            image: path, PIL image or array, see `load_image`; or an open `LargeImage`.

        Returns:
            One record for each mask, in a list with conversions to other formats. Keys as in SAM:
            `segmentation` (bool [h, w] or RLE by `output_mode`), `area` (pixels), `bbox` (x, y,
            width, height between the outermost pixels, as SAM computes it), `predicted_iou`,
            `point_coords` ([[x, y]] image pixels), `stability_score` (before small regions are
            removed), `crop_box` (x, y, width, height); and `level`, `token`, and with labels
            `object` and `part` ({"name", "score", "is_sure"}). No mask is empty and no two are
            equal, whatever the thresholds.

        Raises:
            DataError: not a readable image.
            PromptError: binary masks of a large image that need more than 4 GiB.
        """
        if isinstance(image, LargeImage) or self.tile is not None:
            found, image_hw = self._find_in_tiles(image)
        else:
            pixels = load_image(image)
            found, image_hw = self._find(pixels), pixels.shape[:2]
        if not found:
            warnings.warn(
                f"no mask reached pred_iou_thresh {self.filters.pred_iou_thresh:g} and "
                f"stability_score_thresh {self.filters.stability_score_thresh:g}; a barely "
                f"trained model has low scores: try 0.15 and 0.5.",
                stacklevel=2,
            )
        tree = self._tree(found, image_hw) if self.tree else None
        return Records(self._records(found, image_hw), image_hw, tree)

    def _find_in_tiles(
        self, image: ImageLike | LargeImage
    ) -> tuple[list[FoundMask], tuple[int, int]]:
        is_open = isinstance(image, LargeImage)
        with contextlib.nullcontext(image) if is_open else open_large(image) as source:
            height, width = source.image_hw
            merger = SeamMerger()
            for box in tile_boxes(
                (height, width), self.tile or max(height, width), self.tile_overlap
            ):
                merger.add(box, self._find(source.read(*box)))
        found = [join_pieces(group, (height, width)) for group in merger.groups()]
        if self.output_mode == "binary_mask" and len(found) * height * width > _MAX_BINARY_BYTES:
            raise PromptError(
                f"output_mode: {len(found)} binary masks of {width}x{height} pixels need "
                f"{len(found) * height * width / 2**30:.0f} GiB; use coco_rle."
            )
        if not found:
            return [], (height, width)
        boxes, scores = np.stack([f.box for f in found]), np.array([f.iou for f in found])
        # Best first, as without tiles; two ways to one object leave nearly the same box.
        kept = nms(boxes, scores, self.filters.crop_nms_thresh)
        return drop_duplicates([found[i] for i in kept]), (height, width)

    def _find(self, pixels: UInt8[np.ndarray, "h w 3"]) -> list[FoundMask]:
        found: list[FoundMask] = []
        for crop, layer in crop_boxes(
            pixels.shape[:2], self.crop_n_layers, self.crop_overlap_ratio
        ):
            found += self._masks_of_crop(pixels, crop, layer)
        if self.crop_n_layers and found:
            areas = [(f.crop[2] - f.crop[0]) * (f.crop[3] - f.crop[1]) for f in found]
            keep = nms(
                np.stack([f.box for f in found]),
                1 / np.array(areas, np.float64),
                self.filters.crop_nms_thresh,
            )
            found = [found[i] for i in keep]
        if self.filters.min_mask_region_area and found:
            boxes = np.stack([f.clean_box for f in found])
            changed = np.array([f.changed for f in found])
            found = [found[i] for i in suppress_cleaned(boxes, changed, self.filters)]
        return drop_duplicates(found)

    def _tree(self, found: list[FoundMask], image_hw: tuple[int, int]) -> MaskTree:
        names = [[n and n.record() for n in (mask.object, mask.part)] for mask in found]
        return build_tree(
            [rle.compress(mask.runs, image_hw) for mask in found],
            [self.model.level_order.index(mask.token) + 1 for mask in found],
            [mask.iou for mask in found],
            image_hw,
            objects=[object_name for object_name, _ in names],
            parts=[part_name for _, part_name in names],
            min_visible=self.min_visible,
            min_piece=max(1, math.ceil(self.filters.min_mask_region_area)),
        )

    def _records(self, found: list[FoundMask], image_hw: tuple[int, int]) -> list[dict]:
        packed = [rle.compress(mask.runs, image_hw) for mask in found]
        extras: list[dict] = [{} for _ in found]
        kept = list(range(len(found)))
        if self.overlap == "none":
            scores = np.array([mask.iou for mask in found])
            piece = max(1, math.ceil(self.filters.min_mask_region_area))
            visible = dict(
                without_overlap(packed, scores, min_visible=self.min_visible, min_piece=piece)
            )
            kept = list(visible)
            for i, mask in visible.items():
                x, y, w, h = rle.mask_boxes([mask])[0].astype(int)
                found[i] = dataclasses.replace(
                    found[i],
                    runs=rle.runs_of(mask),
                    area=int(rle.mask_areas([mask])[0]),
                    clean_box=np.array([x, y, x + w - 1, y + h - 1]),
                )
        if self.tree:
            levels = [self.model.level_order.index(found[i].token) + 1 for i in kept]
            parent = parents([packed[i] for i in kept], levels)
            rows = zip(kept, parent, depths(parent), strict=True)
            for i, above, depth in rows:
                extras[i] = {"parent": above, "depth": depth}
        return [self._record(found[i], image_hw) | extras[i] for i in kept]

    def _masks_of_crop(
        self, pixels: UInt8[np.ndarray, "h w 3"], crop: tuple[int, int, int, int], layer: int
    ) -> list[FoundMask]:
        x0, y0, x1, y1 = crop
        part = pixels[y0:y1, x0:x1]
        frame = self.model.frame(part.shape[:2], self.size)
        pyramid = self.model.encode(fit_image(part, frame)[None], [frame])
        side = max(1, self.points_per_side // self.crop_n_points_downscale_factor**layer)
        points = point_grid(side) * np.array(part.shape[1::-1])
        kept, embeds, names = self._decode_grid(pyramid, frame, points)
        return_freed_memory()
        to_image = np.array(part.shape[1::-1] * 2) / np.array(frame.resized_hw[::-1] * 2)
        if len(kept.rows):
            boxes = kept.boxes * to_image + np.array([x0, y0, x0, y0])
            inside = np.flatnonzero(~touches_crop_border(boxes, crop, pixels.shape[:2]))
            order = inside[suppress(kept.take(inside), self.filters.box_nms_thresh)]
            kept, embeds, names = kept.take(order), embeds[order], [names[i] for i in order]
        found, smallest = [], self.filters.min_mask_region_area
        guide = part if self.model.is_guided else None
        for i, mask in enumerate(render_masks(embeds, pyramid.mask_features[0], frame, guide)):
            row, level = divmod(int(kept.rows[i]), len(self.tokens))
            found.append(
                FoundMask(
                    **clean_and_pack(mask, crop, pixels.shape[:2], smallest),
                    iou=float(kept.ious[i]),
                    stability=float(kept.stability[i]),
                    point=(float(points[row, 0] + x0), float(points[row, 1] + y0)),
                    token=self.tokens[level],
                    crop=crop,
                    object=names[i][0],
                    part=names[i][1],
                    granularity=None if self.granularities is None else self.granularities[level],
                )
            )
        return found

    def _decode_grid(
        self, pyramid, frame: Frame, points: Float[np.ndarray, "n 2"]
    ) -> tuple[KeptMasks, np.ndarray, list[tuple[ScoredName | None, ScoredName | None]]]:
        """Decodes all clicks and filters by IoU and stability; rows count [click, level]."""
        boxes = frame.click_boxes(points)
        parts: list[KeptMasks] = []
        embeds, names = [], []
        text = None if self.names is None or self.names.is_empty else self.names.table
        features, tokens = pyramid.mask_features[0], np.array(self.tokens)
        step = min(self.points_per_batch, len(boxes))
        offset = self.filters.stability_score_offset
        for start in range(0, len(boxes), step):
            num = min(step, len(boxes) - start)
            rows = np.arange(start, start + (step if self.isolate else num))
            valid = rows < len(boxes)
            rows = np.minimum(rows, len(boxes) - 1)
            prompts = Prompts(boxes[rows][None], np.zeros((1, len(rows)), np.int32), valid[None])
            asked = asked_of_prompts(self.model, [self.granularities], [len(rows)])
            own = None if asked is None else asked[None]
            answer = self.model.decode(pyramid, prompts, text, self.isolate, own)
            ious, embed = np.asarray(answer.pred_ious)[0], np.asarray(answer.mask_embed)[0]
            if asked is not None:
                tokens = self.model.num_levels + np.arange(len(self.tokens))
            if self.granularities is None or asked is not None:
                ious, embed = ious[:num, tokens], embed[:num, tokens]
            else:  # the blend of logits is the mask of the blended embeddings
                ious = ious[:num].astype(np.float32) @ self._weights.T
                embed = np.einsum("gk,nkd->ngd", self._weights, embed[:num].astype(np.float32))
            ious = ious.reshape(-1)
            check_finite(ious)
            embed = embed.reshape(len(ious), -1)
            kept = filter_masks(
                ious,
                lambda rows: measure_embeddings(embed[rows], features, frame, offset),  # noqa: B023
                self.filters,
            )
            embeds.append(embed[kept.rows])
            names += best_names(self.names, answer, kept.rows, tokens)
            parts.append(dataclasses.replace(kept, rows=kept.rows + start * len(tokens)))
        return KeptMasks.joined(parts), np.concatenate(embeds), names

    def _record(self, found: FoundMask, image_hw: tuple[int, int]) -> dict:
        segmentation: object = rle.compress(found.runs, image_hw)
        if self.output_mode == "binary_mask":
            segmentation = rle.decode(segmentation)
        elif self.output_mode == "uncompressed_rle":
            segmentation = {"size": list(image_hw), "counts": found.runs.tolist()}
        x0, y0, x1, y1 = (float(v) for v in found.clean_box)
        cx0, cy0, cx1, cy1 = (float(v) for v in found.crop)
        record = {
            "segmentation": segmentation,
            "area": found.area,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "predicted_iou": found.iou,
            "point_coords": [list(found.point)],
            "stability_score": found.stability,
            "crop_box": [cx0, cy0, cx1 - cx0, cy1 - cy0],
            "level": self.model.level_order.index(found.token) + 1,
            "token": found.token,
        }
        if found.granularity is not None:
            record["granularity"] = found.granularity
        for key, name in (("object", found.object), ("part", found.part)):
            if name is not None:
                record[key] = name.record()
        return record
