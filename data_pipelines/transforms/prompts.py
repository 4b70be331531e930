"""Samples clicks and boxes of a row, and the target instances of each.

Fixes three bugs of the released code: boxes are actually sampled (a quarter of prompts), a box has
its own instance as its only target, and the clicked instance is never dropped. Source:
docs/reference.md, section 7.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float32, Int64

from data_pipelines.transforms.masks import PackedMask
from semsam_jax.core.distance import innermost_pixel


@dataclasses.dataclass(frozen=True)
class PromptPolicy:
    """How prompts are drawn.

    Attributes:
        box_share: fraction of the prompts that are boxes.
        hierarchy: whether a click on labelled data also targets every other instance under
            it; the wholes that a part belongs to come before the rest where not all fit.
            Class-agnostic data always does.
        shares: division of a row's prompts among the kinds of instances that it has (`object`,
            `part`, `agnostic`); empty samples instances uniformly.
        granularity_balance: fraction of the prompts sampled uniformly over mask sizes (octaves of
            the area) instead of over instances, so that small masks are not underrepresented.
        click_px: side of a click's box, canvas pixels.
        center_clicks: fraction of the clicks at the pixel farthest from the mask's outline, where
            people click, instead of at a random one.
        pseudo_hierarchy: probability that a click with one target gets pseudo targets
            (`pseudo_parts`).
    """

    box_share: float = 0.25
    hierarchy: bool = False
    shares: Mapping[str, float] = dataclasses.field(default_factory=dict)
    granularity_balance: float = 0.0
    click_px: int = 6
    center_clicks: float = 0.0
    pseudo_hierarchy: float = 0.0


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An instance that is visible after the placement.

    Attributes:
        source: its index in `RawExample.instances`.
        box_px: (x0, y0, x1, y1) canvas pixels, x1 and y1 exclusive.
        mask: at stride 1, or None for boxes-only data.
        cells: the mask at the row's mask stride, or None.
        is_primary: whether the row's view includes it.
        kind: `object`, `part` or `agnostic`.
        wholes: `source` of what it is a part of, nearest first.
    """

    source: int
    box_px: tuple[float, float, float, float]
    mask: PackedMask | None
    cells: PackedMask | None
    is_primary: bool = True
    kind: str = "agnostic"
    wholes: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class SampledPrompts:
    """Prompts of one row; `under` and `chosen` index the candidates they were drawn from.

    Attributes:
        boxes: float32 [p,4] cxcywh, fractions of the canvas.
        is_box: bool [p].
        chosen: int64 [p] the instance each prompt was made for.
        under: per prompt, ascending: the instances it may target, `chosen` among them.
        wholes: per prompt: those of `under` that `chosen` is a part of, nearest first.
    """

    boxes: Float32[np.ndarray, "p 4"]
    is_box: Bool[np.ndarray, " p"]
    chosen: Int64[np.ndarray, " p"]
    under: tuple[tuple[int, ...], ...]
    wholes: tuple[tuple[int, ...], ...]


def sample_prompts(
    rng: np.random.Generator,
    candidates: list[Candidate],
    *,
    num_prompts: int,
    max_instances: int,
    all_under_click: bool,
    mask_stride: int,
    canvas: int,
    policy: PromptPolicy,
) -> SampledPrompts:
    """Samples prompts: clicks first, then boxes.

    Args:
        rng: random generator of the row.
        candidates: visible instances, at least one of them primary.
        num_prompts: prompts per row.
        max_instances: maximum number of different instances that are prompted.
        all_under_click: whether every instance under a click is its target.
        mask_stride: stride of `Candidate.cells`.
        canvas: side in pixels.
        policy: shares and sizes.
    """
    chosen = _choose(rng, candidates, num_prompts, max_instances, policy)
    has_masks = candidates[0].cells is not None
    num_clicks = num_prompts - round(policy.box_share * num_prompts) if has_masks else 0
    is_box = np.arange(num_prompts) >= num_clicks
    extents = np.array([candidate.box_px for candidate in candidates])
    boxes, under = [], []
    for prompt, instance in enumerate(chosen.tolist()):
        if is_box[prompt]:
            boxes.append(box_cxcywh(extents[instance], canvas))
            under.append((instance,))
            continue
        x, y = _click(rng, candidates[instance], mask_stride, policy.center_clicks)
        boxes.append((x / canvas, y / canvas, policy.click_px / canvas, policy.click_px / canvas))
        found = _under_click(candidates, extents, x, y, mask_stride) if all_under_click else []
        under.append(tuple(found) or (instance,))
    place = {candidate.source: index for index, candidate in enumerate(candidates)}
    wholes = [
        tuple(place[s] for s in candidates[instance].wholes if place.get(s) in found)
        for instance, found in zip(chosen.tolist(), under, strict=True)
    ]
    return SampledPrompts(
        boxes=np.array(boxes, np.float32),
        is_box=is_box,
        chosen=chosen,
        under=tuple(under),
        wholes=tuple(wholes),
    )


def keep_instances(
    rng: np.random.Generator, num_candidates: int, prompts: SampledPrompts, max_instances: int
) -> Int64[np.ndarray, " kept"]:
    """Chooses the instances that a row carries, ascending.

    All if they fit; otherwise the prompted ones, then their wholes, then those that most prompts
    target, then random ones.
    """
    if num_candidates <= max_instances:
        return np.arange(num_candidates)
    wanted, tier = np.zeros(num_candidates), np.zeros(num_candidates)
    for under, wholes in zip(prompts.under, prompts.wholes, strict=True):
        wanted[list(under)] += 1
        tier[list(wholes)] = 1
    tier[prompts.chosen] = 2
    order = np.lexsort((rng.random(num_candidates), -wanted, -tier))
    return np.sort(order[:max_instances])


def cap_targets(
    rng: np.random.Generator, under: list[int], first: list[int], max_targets: int
) -> list[int]:
    """At most `max_targets` of `under`, ascending: `first` in order, the others at random."""
    if len(under) <= max_targets:
        return under
    others = [instance for instance in under if instance not in first]
    return sorted([*first, *rng.permutation(others).tolist()][:max_targets])


def box_cxcywh(box_px: np.ndarray, canvas: int) -> tuple[float, float, float, float]:
    """(x0, y0, x1, y1) canvas pixels to centre and size in fractions of the canvas."""
    x0, y0, x1, y1 = (float(value) / canvas for value in box_px)
    return (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0


def _choose(
    rng: np.random.Generator,
    candidates: list[Candidate],
    num_prompts: int,
    max_instances: int,
    policy: PromptPolicy,
) -> np.ndarray:
    """A random permutation of the primary instances, repeated; a fraction uniform over sizes."""
    primary = np.flatnonzero([candidate.is_primary for candidate in candidates])
    order = rng.permutation(primary)[:max_instances]
    num_balanced = round(policy.granularity_balance * num_prompts)
    plain = _by_kind(rng, candidates, order, num_prompts - num_balanced, policy.shares)
    if not num_balanced:
        return plain
    octaves = np.array([_octave(candidates[i]) for i in order.tolist()])
    sizes = np.unique(octaves)
    drawn = sizes[rng.integers(len(sizes), size=num_balanced)]
    balanced = [int(rng.choice(order[octaves == size])) for size in drawn]
    return rng.permutation(np.concatenate([plain, np.array(balanced, plain.dtype)]))


def _by_kind(
    rng: np.random.Generator,
    candidates: list[Candidate],
    order: np.ndarray,
    count: int,
    shares: Mapping[str, float],
) -> np.ndarray:
    """`count` of `order`, divided among the kinds that occur as `shares` says."""
    kinds = np.array([candidates[i].kind for i in order.tolist()])
    present = {kind: share for kind, share in shares.items() if share > 0 and kind in kinds}
    if not present:
        return np.resize(order, count)
    ends = np.cumsum([0.0, *present.values()])
    ends = np.round(count * ends / ends[-1]).astype(int)
    drawn = [
        np.resize(order[kinds == kind], end - start)
        for kind, start, end in zip(present, ends[:-1], ends[1:], strict=True)
    ]
    return rng.permutation(np.concatenate(drawn))  # clicks come before boxes


def _octave(candidate: Candidate) -> int:
    x0, y0, x1, y1 = candidate.box_px
    area = candidate.mask.area_px if candidate.mask else (x1 - x0) * (y1 - y0)
    return int(np.floor(np.log2(max(area, 1))))


def _click(
    rng: np.random.Generator, candidate: Candidate, stride: int, center_clicks: float
) -> tuple[int, int]:
    """A random or the innermost foreground pixel (the one nearest a cell's centre at a stride)."""
    cells = candidate.cells
    rank = int(rng.integers(cells.area_px))
    is_deepest = center_clicks > 0 and rng.random() < center_clicks
    cell_x, cell_y = _deepest_cell(cells) if is_deepest else cells.pixel(rank)
    return cell_x * stride + stride // 2, cell_y * stride + stride // 2


def _deepest_cell(cells: PackedMask) -> tuple[int, int]:
    """(x, y) of the foreground cell farthest from the outline; the canvas' edge is outline."""
    x, y = innermost_pixel(np.unpackbits(cells.bits, axis=1) > 0)
    return x + 8 * cells.left_byte, y + cells.top


def _under_click(
    candidates: list[Candidate], extents: np.ndarray, x: int, y: int, stride: int
) -> list[int]:
    near = np.flatnonzero(
        (extents[:, 0] <= x) & (x < extents[:, 2]) & (extents[:, 1] <= y) & (y < extents[:, 3])
    )
    return [i for i in near.tolist() if candidates[i].cells.contains(x // stride, y // stride)]
