"""Label Studio's run-length encoding of brush masks.

A stream of bits, given as a list of bytes: 32 bits with the number of values, 5 bits with the bits
of a value minus one, four times 4 bits with the sizes of run lengths minus one; then blocks. A
block is one bit (1: a run of one value, 0: single values), two bits that choose a size, the length
minus one in that many bits, and the value or values. Values are the bytes of an RGBA picture whose
four channels are all 0 or all 255.
"""

import numpy as np
from jaxtyping import Bool

_SIZES = (3, 4, 8, 16)
_WORD = 8
_CHANNELS = 4
_MAX_RUN = 1 << _SIZES[-1]


def encode_brush(mask: Bool[np.ndarray, "h w"]) -> list[int]:
    """Bytes of Label Studio's `rle` of a mask."""
    flat = mask.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    starts = np.concatenate([[0], edges])
    lengths = np.diff(np.concatenate([starts, [flat.size]])) * _CHANNELS
    bits = [f"{flat.size * _CHANNELS:032b}", f"{_WORD - 1:05b}"]
    bits += [f"{size - 1:04b}" for size in _SIZES]
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        value = "11111111" if flat[start] else "00000000"
        while length > 0:
            run = min(length, _MAX_RUN)
            choice = next(i for i, size in enumerate(_SIZES) if run <= 1 << size)
            bits.append(f"1{choice:02b}{run - 1:0{_SIZES[choice]}b}{value}")
            length -= run
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return np.packbits(np.frombuffer(text.encode(), np.uint8) - ord("0")).tolist()
