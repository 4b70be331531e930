"""Label Studio's RLE, read back by a decoder written from the description of the format."""

import numpy as np
import pytest

from semsam_jax.adapters.label_studio_brush import encode_brush

# What label_studio_sdk 2.1.2 (`converter.brush.mask2rle`) makes of MASK.
MASK = np.array([[0, 0, 1, 1, 0], [0, 1, 1, 1, 0], [1, 1, 1, 1, 1]], bool)
RECORDED = [0, 0, 0, 60, 57, 27, 252, 224, 19, 255, 206, 1, 111, 254, 48, 12, 39, 254]


def decode(data, shape):
    bits = "".join(f"{byte:08b}" for byte in data)
    place = 0

    def take(count):
        nonlocal place
        value = int(bits[place : place + count], 2)
        place += count
        return value

    total, word = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    values = []
    while len(values) < total:
        is_run, size = take(1), sizes[take(2)]
        count = take(size) + 1
        values += [take(word)] * count if is_run else [take(word) for _ in range(count)]
    return np.array(values, np.uint8).reshape(*shape, 4)


@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 1.0])
def test_masks_come_back(density):
    mask = np.random.default_rng(0).random((37, 53)) < density
    picture = decode(encode_brush(mask), mask.shape)
    assert ((picture[..., 3] > 127) == mask).all()
    assert (picture == picture[..., :1]).all()


def test_runs_longer_than_a_length_can_say():
    mask = np.zeros((300, 400), bool)
    mask[100:280] = True
    assert ((decode(encode_brush(mask), mask.shape)[..., 3] > 0) == mask).all()
    assert len(encode_brush(mask)) < 60


def test_the_bytes_are_those_of_label_studio_itself():
    assert encode_brush(MASK) == RECORDED
