"""Pseudo targets of a row: parts of a mask under a click that nobody labelled.

Only the granularity token is trained on them (`semsam_jax.criterion.granularity_loss`): it needs a
chain of masks, and most clicks have one mask under them. They come from the image (`regions`), take
the slots that instances and targets leave free, and are no instances: `instance_valid`, classes and
`prompt_targets` do not contain them.
"""

import numpy as np

from data_pipelines.transforms.masks import unpack_bits
from data_pipelines.transforms.prompts import box_cxcywh
from data_pipelines.transforms.regions import RegionTree, cell_colours

MIN_AREA_PX = 144
"""Smallest part, canvas pixels: nine cells of the mask features."""

_SIDE = 256  # cells of a row in which regions are sought; more would cost more and show no more


def add_pseudo_targets(
    rng: np.random.Generator, row: dict[str, np.ndarray], probability: float
) -> None:
    """Writes pseudo targets into a finished row.

    A click gets them if no other mask lies under it than that of its one target, if all of them fit
    into the free slots, and by chance.

    Args:
        rng: random generator of the row; one number a prompt is drawn, in any case.
        row: of `BatchShape.spec`; `pseudo_targets`, and masks and boxes of free slots are written.
        probability: that such a click gets the parts that its mask has.
    """
    is_drawn = rng.random(len(row["prompt_valid"])) < probability
    num_targets = (row["prompt_targets"] >= 0).sum(1)
    is_drawn &= row["prompt_valid"] & ~row["prompt_is_box"] & (num_targets == 1)
    max_parts = row["prompt_targets"].shape[1] - 1
    slot, num_slots = int(row["instance_valid"].sum()), len(row["mask_bits"])
    if not is_drawn.any() or not max_parts or slot == num_slots:
        return
    canvas, side = row["image"].shape[0], row["mask_bits"].shape[1]
    stride, factor = canvas // side, _factor(side)
    colours = cell_colours(row["image"], stride * factor)
    labelled = row["mask_bits"][:slot]
    areas = np.bitwise_count(labelled).sum((1, 2), dtype=np.int64)
    wholes: dict[int, _Whole] = {}
    slots: dict[bytes, int] = {}
    for prompt in np.flatnonzero(is_drawn).tolist():
        number = int(row["prompt_targets"][prompt, 0])
        x, y = np.rint(row["prompt_box"][prompt, :2] * canvas).astype(int).tolist()
        x, y = x // stride, y // stride
        # Of labelled data a click may have one target among several masks: it is not the whole.
        if (labelled[:, y, x >> 3] >> (7 - (x & 7)) & 1).sum() > 1:
            continue
        if number not in wholes:
            smaller = np.bitwise_or.reduce(labelled[areas < areas[number]], axis=0)
            own = unpack_bits(labelled[number] & ~smaller)
            wholes[number] = _Whole(own, colours, factor, -(-MIN_AREA_PX // stride**2))
        parts = wholes[number].parts_under(x, y)[:max_parts]
        bits = [np.packbits(part, axis=1) for part in parts]
        keys = [one.tobytes() for one in bits]
        new = [place for place, key in enumerate(keys) if key not in slots]
        if slot + len(new) > num_slots:
            continue
        for place in new:
            slots[keys[place]] = slot
            row["mask_bits"][slot] = bits[place]
            row["boxes"][slot] = box_cxcywh(stride * _extent(parts[place]), canvas)
            slot += 1
        row["pseudo_targets"][prompt, 1 : 1 + len(keys)] = [slots[key] for key in keys]


class _Whole:
    """The cells of an instance that no smaller one covers, and their regions.

    Args:
        cells: bool [h,w].
        colours: of `cell_colours`, [h/factor,w/factor,3].
        factor: of the grid in which the regions are sought.
        min_cells: smallest part.
    """

    def __init__(self, cells: np.ndarray, colours: np.ndarray, factor: int, min_cells: int):
        self._cells, self._factor, self._min_cells = cells, factor, min_cells
        if not cells.any():
            return
        h, w = colours.shape[:2]
        coarse = cells.reshape(h, factor, w, factor).any((1, 3))
        x0, y0, x1, y1 = _extent(coarse).tolist()
        self._window = (slice(y0, y1), slice(x0, x1))
        self._tree = RegionTree.of(colours[self._window], coarse[self._window])

    def parts_under(self, x: int, y: int) -> list[np.ndarray]:
        """Parts around a cell as bool [h,w], the largest first."""
        if not self._cells[y, x]:
            return []
        rows, columns = self._window
        x, y = x // self._factor - columns.start, y // self._factor - rows.start
        found = []
        for part in self._tree.parts_under(x, y, -(-self._min_cells // self._factor**2)):
            whole = np.zeros([side // self._factor for side in self._cells.shape], bool)
            whole[self._window] = part
            whole = whole.repeat(self._factor, 0).repeat(self._factor, 1) & self._cells
            if whole.sum() < self._min_cells:
                break
            found.append(whole)
        return found


def _factor(side: int) -> int:
    """The power of two, at most 8, that brings the side of a row nearest `_SIDE` from above."""
    return next((factor for factor in (8, 4, 2) if side >= factor * _SIDE), 1)


def _extent(cells: np.ndarray) -> np.ndarray:
    """(x0, y0, x1, y1) of the cells, x1 and y1 exclusive."""
    y, x = np.flatnonzero(cells.any(1)), np.flatnonzero(cells.any(0))
    return np.array([x[0], y[0], x[-1] + 1, y[-1] + 1])
