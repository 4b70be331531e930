"""Reference weights, rebuilt bit for bit from the seeds that they were drawn with.

The random weights that the original was recorded with are draws of PyTorch's CPU generator
(`torch.manual_seed`, then one `randn` a tensor): the Mersenne Twister, which NumPy has too, and
the Box-Muller transform in float32. Stored are the seed, where in the stream each tensor starts,
its mean and scale, and how many units in the last place our double-precision transform is off, so
that `NAME.pth` comes out as it was saved, at a twentieth of its size.
"""

import hashlib
import lzma
import os
from pathlib import Path

import numpy as np

DATA = Path(__file__).parent / "data"
NAMES = ("tiny_ref", "tiny_generic_ref")
_LANES = 8  # PyTorch transforms 16 uniform numbers at a time: 8 radii, 8 angles


def uniform(seed: int, count: int) -> np.ndarray:
    """The first numbers that `torch.rand` gives after `torch.manual_seed(seed)`, float32."""
    words = np.random.RandomState(seed).randint(0, 2**32, size=count, dtype=np.uint32)
    return (words & 0xFFFFFF).astype(np.float32) * np.float32(2**-24)


def normal(numbers: np.ndarray, count: int) -> np.ndarray:
    """What `torch.randn(count)` makes of uniform numbers, in float64; `count` is at least 16.

    Args:
        numbers: float32, `count` of them, and 16 more if `count` is not a multiple of 16.
        count: how many are wanted.
    """
    whole = count // (2 * _LANES) * 2 * _LANES
    found = np.empty(count)
    found[:whole] = _box_muller(numbers[:whole])
    if whole < count:  # the last sixteen are drawn again
        found[-2 * _LANES :] = _box_muller(numbers[count : count + 2 * _LANES])
    return found


def _box_muller(numbers: np.ndarray) -> np.ndarray:
    pairs = numbers.reshape(-1, 2, _LANES)
    radius = np.sqrt(-2 * np.log(1 - pairs[:, 0].astype(np.float64)))
    angle = (np.float32(2 * np.pi) * pairs[:, 1]).astype(np.float64)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).ravel()


def rebuild(name: str) -> bytes:
    """Content of `NAME.pth` from `NAME.draws.npz`.

    Raises:
        AssertionError: it is not the file that was recorded with.
    """
    with np.load(DATA / f"{name}.draws.npz") as stored:
        draws = dict(stored)
    content = np.frombuffer(lzma.decompress(draws["skeleton"].tobytes()), np.uint8).copy()
    stream = uniform(int(draws["seed"]), int(draws["length"]))
    corrections = np.frombuffer(lzma.decompress(draws["corrections"].tobytes()), np.int8)
    done = 0
    for (place, count, start), mean, scale in zip(
        draws["spans"], draws["mean"], draws["scale"], strict=True
    ):
        values = (mean + scale * normal(stream[start : start + count + 16], count)).astype("<f4")
        bits = values.view("<i4") + corrections[done : done + count]
        content[place : place + 4 * count] = bits.view(np.uint8)
        done += count
    # Values that lie so near a rounding boundary that another libm might round them otherwise.
    content[draws["exact_place"][:, None] + np.arange(4)] = draws["exact_bytes"]
    found = hashlib.sha256(content).hexdigest()
    assert found == str(draws["sha256"]), f"{name}.pth: rebuilt with another content ({found})"
    return content.tobytes()


def provide(name: str) -> Path:
    """Writes `NAME.pth` beside its draws if it is not there yet; returns its path."""
    file = DATA / f"{name}.pth"
    if not file.exists():
        partial = file.with_name(f".{name}.{os.getpid()}")
        partial.write_bytes(rebuild(name))
        partial.replace(file)
    return file


if __name__ == "__main__":  # the tests do it, too; here for commands that are given these files
    for each in NAMES:
        print(provide(each))
