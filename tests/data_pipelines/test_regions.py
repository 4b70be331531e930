"""Regions of made images whose parts are known."""

import numpy as np
import pytest

from data_pipelines.transforms.regions import NUM_PARTS, STEP, RegionTree, cell_colours
from tests.data_pipelines.fake_source import ellipse

GREEN, RED, BLUE = (40, 160, 60), (200, 40, 40), (40, 60, 200)
MIN_CELLS = 16


def picture(side, *discs, noise=0.0):
    """A green square with discs of (radius, colour) around its centre."""
    image = np.full((side, side, 3), GREEN, np.float64)
    for radius, colour in discs:
        image[disc(side, radius)] = colour
    image += np.random.default_rng(0).normal(0, noise, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)


def disc(side, radius):
    return ellipse(side, side, side // 2, side // 2, radius, radius)


def iou(one, other):
    return (one & other).sum() / (one | other).sum()


def parts_of(image, mask, x, y, min_cells=MIN_CELLS):
    return RegionTree.of(cell_colours(image, 1), mask).parts_under(x, y, min_cells)


@pytest.mark.parametrize("noise", [0.0, 6.0])
def test_discs_around_a_click_are_its_chain(noise):
    image = picture(32, (12, RED), (6, BLUE), noise=noise)
    mask = np.ones((32, 32), bool)
    parts = parts_of(image, mask, 16, 16)
    assert len(parts) == 2
    for part, radius in zip(parts, (12, 6), strict=True):
        assert iou(part, disc(32, radius)) > 0.9
    ring = parts_of(image, mask, 25, 16)  # beside the inner disc
    assert len(ring) == 1
    assert iou(ring[0], disc(32, 12)) > 0.9 or iou(ring[0], disc(32, 12) & ~disc(32, 6)) > 0.85
    assert not parts_of(image, mask, 2, 2)  # what is left is more than half of the mask


def test_large_masks_are_merged_from_blocks():
    parts = parts_of(picture(200, (60, RED)), np.ones((200, 200), bool), 90, 110)
    assert len(parts) == 1
    assert iou(parts[0], disc(200, 60)) > 0.9


@pytest.mark.parametrize("noise", [0.0, 3.0])
def test_a_mask_of_one_colour_has_no_parts(noise):
    image = picture(40, (20, RED), noise=noise)
    assert not parts_of(image, disc(40, 18), 20, 20)


def test_parts_stay_in_their_mask_and_in_the_piece_that_was_clicked():
    image = picture(64, (20, RED), (9, BLUE))
    mask = np.ones((64, 64), bool)
    mask[:, 34:38] = False  # two pieces
    parts = parts_of(image, mask, 28, 32)
    assert len(parts) == 2
    for part, radius in zip(parts, (20, 9), strict=True):
        assert not part[:, 34:].any()
        assert iou(part, disc(64, radius) & (np.arange(64) < 34)) > 0.85


def test_no_part_is_tiny():
    image, mask = picture(40, (14, RED), (7, BLUE)), np.ones((40, 40), bool)
    (part,) = parts_of(image, mask, 20, 20, min_cells=300)
    assert iou(part, disc(40, 14)) > 0.9
    assert not parts_of(image, mask, 20, 20, min_cells=800)


def test_any_chain_is_nested_around_its_click_and_the_same_again():
    """Blots of all sizes and colours: what is promised of every chain."""
    rng = np.random.default_rng(3)
    image = np.full((48, 48, 3), 128, np.uint8)
    for _ in range(25):
        y, x, ry, rx = rng.uniform(2, 46, 4) * (1, 1, 0.25, 0.25)
        image[ellipse(48, 48, y, x, ry, rx)] = rng.integers(0, 256, 3)
    mask = ellipse(48, 48, 24, 24, 22, 18)
    tree, again = (RegionTree.of(cell_colours(image, 1), mask) for _ in range(2))
    seen = 0
    for y, x in rng.permutation(np.argwhere(mask))[:60].tolist():
        parts = tree.parts_under(x, y, MIN_CELLS)
        seen += len(parts)
        assert len(parts) <= NUM_PARTS
        outer = mask
        for part, same in zip(parts, again.parts_under(x, y, MIN_CELLS), strict=True):
            assert part[y, x]
            assert not (part & ~outer).any()
            assert MIN_CELLS <= part.sum() <= STEP * outer.sum()
            np.testing.assert_array_equal(part, same)
            outer = part
    assert seen > 30


def test_a_mask_of_one_cell_has_no_parts():
    mask = np.zeros((8, 8), bool)
    mask[3, 4] = True
    assert not parts_of(picture(8), mask, 4, 3, min_cells=1)
