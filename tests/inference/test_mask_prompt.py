"""Which masks are taken as a prompt, without a model."""

import numpy as np
import pytest

from semsam_jax.core import rle
from semsam_jax.core.errors import PromptError
from semsam_jax.inference.mask_prompt import read_mask
from semsam_jax.inference.preprocess import make_frame

HW, LOW_HW = (30, 40), (16, 16)
MASK = np.zeros(HW, bool)
MASK[5:20, 8:30] = True


def read(mask_input):
    return read_mask(mask_input, make_frame(HW, "default", image_size=64), LOW_HW)


def test_a_mask_may_be_booleans_a_picture_logits_or_the_rle_of_a_record():
    counts = {"size": list(HW), "counts": rle.runs_of(rle.encode(MASK)).tolist()}
    for given in (MASK, MASK[None], 255 * MASK.astype(np.uint8), MASK.astype(float)):
        np.testing.assert_array_equal(read(given), MASK)
    for given in (rle.encode(MASK), counts, np.where(MASK, 0.5, -3.0)):
        np.testing.assert_array_equal(read(given), MASK)
    assert read(None) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.where(MASK, 0.9, 0.1), r"look like probabilities p; expected a mask, such as p > 0\.5"),
        (
            rle.encode(MASK.T),
            r"got shape \(40, 30\); expected one mask of the image's size",
        ),
        ({"counts": "abc"}, "mask_input: RLE"),
        ("mask.png", "got str; expected an array of booleans or numbers, or COCO RLE"),
        ([[1, 2], [3]], "got list; expected an array"),
        (~MASK & MASK, "the mask is empty"),
    ],
)
def test_anything_else_is_refused_in_one_line(given, message):
    with pytest.raises(PromptError, match=message) as told:
        read(given)
    assert "\n" not in str(told.value)
