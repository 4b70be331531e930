"""A chain of regions inside a mask, around a click, that the colours of the image suggest.

Neighbouring blocks of cells are merged until one region is left. First come those whose merger
costs least per length of their common outline,

    |a| |b| / (|a| + |b|) * (squared distance of the mean colours) / length

(Koepfler, Lopez, Morel 1994, for the functional of Mumford and Shah), so that outlines are short
and follow edges. The regions that contain a click are nested; those that stand out are its parts.
"""

import dataclasses
import itertools

import cv2
import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8

from semsam_jax.core.distance import distance_inside

NUM_PARTS = 3
"""Most parts of a click; each has its own third of the sizes, by the logarithm of the area."""

SMALLEST, LARGEST = 1 / 50, 1 / 2
"""Area of a part, as a fraction of its mask."""

STEP = 0.6
"""Largest area of a part, as a fraction of the next larger one."""

MIN_CONTRAST = 8.0
"""Least distance of the mean colour of a part to that of what it is merged with: CIELAB, L times
`_LIGHTNESS`."""

MIN_ROUNDNESS = 0.12
"""Least share of the largest disc inside a part in the part's area: no thin nets."""

_MAX_BLOCKS = 1024  # of a mask: larger ones are merged from blocks of more cells
_LIGHTNESS = 0.7  # shading changes lightness more than hue
_POSITION = 6.0  # distance of two colours that counts like one root of the mask's area
_QUIET = 20.0  # costs of mergers below this are noise
_SMOOTHING = 0.15  # side of the majority filter of outlines, in roots of the part's area
_OTHER = 1.1  # ratio of the areas of two regions of a chain that are worth a try both


def cell_colours(image: UInt8[np.ndarray, "h w 3"], stride: int) -> UInt8[np.ndarray, "h2 w2 3"]:
    """CIELAB as OpenCV packs it into bytes, one colour a cell, medians of 3 x 3 cells."""
    side = (image.shape[1] // stride, image.shape[0] // stride)
    cells = image if stride == 1 else cv2.resize(image, side, interpolation=cv2.INTER_AREA)
    return cv2.medianBlur(cv2.cvtColor(cells, cv2.COLOR_RGB2LAB), 3)


@dataclasses.dataclass(frozen=True)
class RegionTree:
    """All regions of a mask: first its blocks, then what each merger made, in their order.

    Attributes:
        mask: bool [h,w] the cells of the mask.
        block: int64 [h,w] the block of each cell, meaningless outside the mask.
        parent: int64 [r] the region that a region is merged into; r for the last ones.
        cost: float64 [r] of the merger that made a region, 0 for blocks.
        area: float64 [r] cells.
        mean: float64 [r,5] colour and position.
    """

    mask: Bool[np.ndarray, "h w"]
    block: Int64[np.ndarray, "h w"]
    parent: Int64[np.ndarray, " r"]
    cost: Float64[np.ndarray, " r"]
    area: Float64[np.ndarray, " r"]
    mean: Float64[np.ndarray, "r 5"]

    @classmethod
    def of(cls, colours: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"]) -> "RegionTree":
        """Merges the blocks of a mask; the same for the same arrays.

        Args:
            colours: of `cell_colours`.
            mask: cells, at least one.
        """
        y, x = np.nonzero(mask)
        size = int(np.ceil(np.sqrt(len(y) / _MAX_BLOCKS)))
        width = -(-mask.shape[1] // size)
        grid = np.full((-(-mask.shape[0] // size), width), -1)
        place = y // size * width + x // size
        count = np.bincount(place, minlength=grid.size)
        names = np.flatnonzero(count)
        grid.flat[names] = np.arange(len(names))
        number, count = grid.flat[place], count[names]
        lightness, green_red, blue_yellow = colours[y, x].astype(np.float64).T
        root = np.sqrt(len(y)) / _POSITION
        features = (
            lightness * (100 / 255 * _LIGHTNESS),
            green_red,
            blue_yellow,
            x / root,
            y / root,
        )
        mean = np.stack([np.bincount(number, one) / count for one in features], axis=1)
        # Equal colours would leave the order of mergers to chance: this decides it.
        mean += 1e-3 * np.random.default_rng(0).random(mean.shape)
        block = np.zeros(mask.shape, np.int64)
        block[y, x] = number
        parent, cost, area, mean = _merge(count.astype(np.float64), mean, grid, size)
        return cls(mask, block, parent, cost, area, mean)

    def parts_under(self, x: int, y: int, min_cells: int) -> list[Bool[np.ndarray, "h w"]]:
        """Parts of the mask that contain a cell of it, each inside the one before it.

        Args:
            x: column of the cell.
            y: its row.
            min_cells: smallest area of a part.

        Returns:
            At most `NUM_PARTS`; none where no region stands out.
        """
        path = [int(self.block[y, x])]
        while (above := int(self.parent[path[-1]])) < len(self.parent):
            path.append(above)
        path, above = np.array(path[:-1], np.int64), np.array(path[1:], np.int64)
        rest = self.area[above] - self.area[path]
        shift = np.sqrt(np.square(self.mean[path] - self.mean[above])[:, :3].sum(1))
        is_distinct = shift * self.area[above] / rest >= MIN_CONTRAST
        prominence = self.cost[above] / (self.cost[path] + _QUIET)
        sizes = self.mask.sum() * np.geomspace(LARGEST, SMALLEST, NUM_PARTS + 1)
        found, outer = [], self.mask
        for high, low in itertools.pairwise(sizes):
            limits = max(low, min_cells), min(high, STEP * outer.sum())
            fits = (limits[0] <= self.area[path]) & (self.area[path] <= limits[1])
            standing = np.flatnonzero(fits & is_distinct)
            standing = standing[np.argsort(-prominence[standing], kind="stable")]
            tried: list[float] = []
            for region in path[standing].tolist():
                area = self.area[region]
                if any(max(area / other, other / area) < _OTHER for other in tried):
                    continue
                tried.append(area)
                part = _smooth(self._cells(region), outer, x, y)
                is_sized = min_cells <= part.sum() <= STEP * outer.sum()
                if is_sized and _roundness(part) >= MIN_ROUNDNESS:
                    found.append(part)
                    outer = part
                    break
        return found

    def _cells(self, region: int) -> Bool[np.ndarray, "h w"]:
        top = np.arange(int(self.block.max()) + 1)
        while (below := top < region).any():
            top[below] = self.parent[top[below]]
        return (top == region)[self.block] & self.mask


def _merge(
    area: np.ndarray, mean: np.ndarray, grid: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Merges neighbours that are each other's cheapest, in rounds.

    Args:
        area: float64 [n] cells of each block.
        mean: float64 [n,5].
        grid: int64 [rows,columns] number of each block, -1 for none.
        size: side of a block, cells.

    Returns:
        `parent`, `cost`, `area` and `mean` of `RegionTree`.
    """
    n = len(area)
    areas = np.concatenate([area, np.zeros(n - 1)])
    means = np.concatenate([mean, np.zeros((n - 1, mean.shape[1]))])
    parent, costs = np.full(2 * n - 1, -1), np.zeros(2 * n - 1)
    sides = [(grid[1:], grid[:-1]), (grid[:, 1:], grid[:, :-1])]
    one, other = (
        np.concatenate([side[k][(side[0] >= 0) & (side[1] >= 0)] for side in sides]) for k in (0, 1)
    )
    region, made, m = np.arange(n), n, n  # the region of each of the m that are left
    pairs = np.sort(np.concatenate([one * m + other, other * m + one]))
    length = np.full(len(pairs), float(size))
    while len(pairs):
        one, other = np.divmod(pairs, m)
        a, b = region[one], region[other]
        cost = areas[a] * areas[b] / (areas[a] + areas[b])
        cost *= np.square(means[a] - means[b]).sum(1) / length
        starts = np.flatnonzero(np.diff(one, prepend=-1))
        least = np.repeat(np.minimum.reduceat(cost, starts), np.diff(starts, append=len(one)))
        is_least = np.flatnonzero(cost == least)
        first = is_least[np.flatnonzero(np.diff(one[is_least], prepend=-1))]
        nearest, price = np.full(m, -1), np.zeros(m)
        nearest[one[first]], price[one[first]] = other[first], cost[first]
        left = np.flatnonzero(nearest > np.arange(m))
        left = left[nearest[nearest[left]] == left]
        right = nearest[left]
        a, b = region[left], region[right]
        new = made + np.arange(len(left))
        made += len(left)
        parent[a] = parent[b] = new
        costs[new], areas[new] = price[left], areas[a] + areas[b]
        means[new] = areas[a, None] * means[a] + areas[b, None] * means[b]
        means[new] /= areas[new, None]
        region[left] = new
        group, stays = np.arange(m), np.ones(m, bool)
        group[right], stays[right] = left, False
        group = (np.cumsum(stays) - 1)[group]
        region, m = region[stays], int(stays.sum())
        one, other = group[one], group[other]
        is_between = one != other
        pairs, place = np.unique((one * m + other)[is_between], return_inverse=True)
        length = np.bincount(place, length[is_between], len(pairs))
    parent = np.where(parent < 0, made, parent)[:made]
    return parent, costs[:made], areas[:made], means[:made]


def _smooth(
    part: Bool[np.ndarray, "h w"], outer: Bool[np.ndarray, "h w"], x: int, y: int
) -> Bool[np.ndarray, "h w"]:
    """The majority around each cell of `outer`; what of it hangs together with a cell, or none."""
    part = part & outer
    side = 2 * (int(_SMOOTHING * np.sqrt(part.sum())) // 2) + 1
    if side > 1:
        own, all_cells = (
            cv2.boxFilter(
                cells.astype(np.float32),
                -1,
                (side, side),
                normalize=False,
                borderType=cv2.BORDER_CONSTANT,
            )
            for cells in (part, outer)
        )
        part = (2 * own > all_cells) & outer
    _, label = cv2.connectedComponents(part.astype(np.uint8), connectivity=4)
    return (label == label[y, x]) & part[y, x]


def _roundness(part: Bool[np.ndarray, "h w"]) -> float:
    """Area of the largest disc inside a part, as a share of its area."""
    return float(np.pi * (distance_inside(part).max() - 0.5) ** 2 / part.sum())
