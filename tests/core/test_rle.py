"""RLE against pycocotools, and what is damaged against one error."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from semsam_jax.core import rle
from semsam_jax.core.errors import DataError


def random_masks():
    rng = np.random.default_rng(0)
    yield np.zeros((3, 4), bool)
    yield np.ones((3, 4), bool)
    for _ in range(200):
        yield rng.random(rng.integers(1, 40, 2)) < rng.random()
    big = np.zeros((900, 1100), bool)
    big[100:800, 50:1000] = True
    yield big


def test_equal_to_pycocotools_both_ways():
    for mask in random_masks():
        packed = rle.encode(mask)
        wanted = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert packed["counts"].encode() == wanted["counts"]
        runs = rle.run_lengths(mask, (0, 0), mask.shape)
        assert rle.compress(runs, mask.shape) == packed
        for counts in (packed["counts"], wanted["counts"], runs.tolist()):
            found = rle.decode({"size": list(mask.shape), "counts": counts})
            np.testing.assert_array_equal(found, mask)
        assert rle.runs_of(packed).sum() == mask.size


@pytest.mark.parametrize(
    "damaged",
    [
        {},
        {"size": [3, 4]},
        {"size": [3, 4], "counts": None},
        {"size": [3, 4], "counts": [12.0]},
        {"size": [3, 4], "counts": [-1, 13]},
        {"size": [3, 4], "counts": [11]},
        {"size": [3, 4], "counts": [1 << 70]},
        {"size": [3, 4], "counts": "é"},
        {"size": [3, 4], "counts": "~~"},
        {"size": [3, 4], "counts": "o"},
        {"size": [3, 4], "counts": "oooooooooooooooo0"},
        {"size": [3, 4], "counts": ""},
        {"size": [3], "counts": "<"},
        {"size": [0, 4], "counts": "0"},
        {"size": [1 << 20, 1 << 20], "counts": "0"},
        {"size": ["3", "4"], "counts": "<"},
    ],
)
def test_damage_is_one_error(damaged):
    with pytest.raises(DataError, match="RLE"):
        rle.decode(damaged)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=[chr(c) for c in range(48, 112)], max_size=12), st.integers(1, 9))
def test_any_text_gives_a_mask_that_pycocotools_gives_too_or_an_error(counts, side):
    packed = {"size": [side, 4], "counts": counts}
    try:
        found = rle.decode(packed)
    except DataError:
        return
    np.testing.assert_array_equal(found, coco_mask.decode({**packed, "counts": counts.encode()}))


def test_a_window_is_decoded_without_the_rest():
    rng = np.random.default_rng(1)
    for mask in list(random_masks())[:60]:
        height, width = mask.shape
        x0, y0 = (int(rng.integers(0, side)) for side in (width, height))
        x1, y1 = int(rng.integers(x0 + 1, width + 1)), int(rng.integers(y0 + 1, height + 1))
        window = rle.decode_window(rle.encode(mask), x0, y0, x1, y1)
        assert (window == mask[y0:y1, x0:x1]).all()
    with pytest.raises(DataError, match="window"):
        rle.decode_window(rle.encode(np.ones((3, 4), bool)), 0, 0, 5, 3)
