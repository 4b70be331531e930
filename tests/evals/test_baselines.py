"""Baselines on pictures where their answer is known."""

import itertools

import numpy as np
import pytest

from semsam_jax.evals.baselines import (
    BLOB_AREAS,
    SEGMENT_COUNTS,
    blob_masks,
    evaluate_baseline,
    masks_at,
    merge_by_colour,
    superpixel_levels,
)
from semsam_jax.evals.samples import EvalSample


@pytest.fixture(scope="module")
def image():
    """A red square on noise-free blue, 96x96."""
    image = np.zeros((96, 96, 3), np.uint8)
    image[..., 2] = 200
    image[24:72, 24:72] = (220, 30, 30)
    return image


@pytest.fixture(scope="module")
def sample(image):
    mask = np.zeros((96, 96), bool)
    mask[24:72, 24:72] = True
    return EvalSample(image, (96, 96), [mask, mask, ~mask], "a", is_crowd=[False, True, False])


def test_discs_have_their_areas_and_are_nested():
    masks = blob_masks((200, 200), (100, 100))
    areas = masks.mean((1, 2))
    np.testing.assert_allclose(areas, BLOB_AREAS, atol=2e-3)
    assert all((fine & ~coarse).sum() == 0 for coarse, fine in itertools.pairwise(masks))


def test_superpixels_are_nested_and_find_the_square(image):
    levels = superpixel_levels(image)
    assert levels.shape == (len(SEGMENT_COUNTS), 96, 96)
    for coarse, fine in itertools.pairwise(levels):
        for number in np.unique(fine):
            assert len(np.unique(coarse[fine == number])) == 1
    counts = [len(np.unique(level)) for level in levels]
    assert counts[:3] == list(SEGMENT_COUNTS[:3])
    coarsest = masks_at(levels, (48, 48))[0]
    assert coarsest[24:72, 24:72].mean() > 0.95
    assert coarsest.sum() < 1.1 * 48 * 48


def test_merging_by_hand():
    finest = np.asarray([[0, 1, 2, 3]])
    colours = np.asarray([[0.0, 1.0, 10.0, 12.0]])[..., None].repeat(3, -1)
    two, three = merge_by_colour(finest, colours, (2, 3))
    assert three[0] == three[1]
    assert len(set(three.tolist())) == 3
    assert two[0] == two[1] != two[2] == two[3]


def test_scores(sample):
    blob = evaluate_baseline("blob", [sample])
    assert (blob.num_instances, blob.num_skipped) == (2, 1)
    assert blob.iou_oracle >= blob.iou_max > 0
    superpixels = evaluate_baseline("superpixels", [sample])
    assert superpixels.iou_oracle > 0.9
    np.testing.assert_array_equal(superpixels.table.click_xy, blob.table.click_xy)


def test_image_without_masks(image):
    empty = EvalSample(image, (96, 96), [], "a")
    assert evaluate_baseline("blob", [empty]).num_instances == 0
