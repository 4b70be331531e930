"""Mask logits at stride 4 -> any output size, as two small matrix products.

The original upsamples bilinearly to the padded canvas, crops the padding off and resizes
the crop with antialiased bicubic weights (docs/reference.md, section 10). All three steps are
linear and separable, so their product is one [out, in] matrix for each axis: nothing of canvas size
is ever stored, and an output of any size costs two products with band matrices.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from semsam_jax.inference.preprocess import Frame

BUDGET_BYTES = 1 << 28
STRIP = 64
_SIZE_STEP = 128


@functools.lru_cache(maxsize=64)
def axis_weights(low: int, canvas: int, valid: int, out: int) -> np.ndarray:
    """Returns float32 [out, low]: bilinear low -> canvas, crop to valid, bicubic valid -> out.

    Args:
        low: samples of the stride-4 map.
        canvas: padded size in pixels.
        valid: pixels of the canvas that hold the image.
        out: wanted size; equal to `valid` skips the bicubic step, as an identity.
    """
    index, share = _taps(low, canvas, _triangle, 1.0, antialias=False)
    weights = np.zeros((canvas, low))
    np.add.at(weights, (np.arange(canvas)[:, None], index), share)
    weights = weights[:valid]
    if out != valid:
        index, share = _taps(valid, out, _keys, 2.0, antialias=True)
        weights = sum(share[:, t, None] * weights[index[:, t]] for t in range(index.shape[1]))
    return weights.astype(np.float32)


class Bands(NamedTuple):
    """A resize matrix [out, in] of one axis, cut into strips of `STRIP` rows.

    A row needs only the few inputs beside it, so a strip has weights for its own band of them.

    Attributes:
        starts: int32 [strips], first input of each strip's band.
        weights: float32 [strips, STRIP, band].
    """

    starts: Int[Array | np.ndarray, " s"]
    weights: Float[Array | np.ndarray, "s strip band"]

    @classmethod
    def of(cls, matrix: Float[np.ndarray, "o i"]) -> "Bands":
        """Cuts a matrix; its rows are a whole number of strips."""
        size_in = matrix.shape[1]
        strips = matrix.reshape(-1, STRIP, size_in)
        used = (strips != 0).any(1)
        first = np.where(used.any(1), used.argmax(1), 0)
        last = np.where(used.any(1), size_in - 1 - used[:, ::-1].argmax(1), 0)
        band = int((last - first).max()) + 1
        band = min(size_in, -(-band // 8) * 8)
        starts = np.minimum(first, size_in - band).astype(np.int32)
        index = np.broadcast_to(starts[:, None, None] + np.arange(band), (*strips.shape[:2], band))
        return cls(starts, np.take_along_axis(strips, index, axis=2))

    @property
    def index(self) -> Int[Array, "s band"]:
        """Inputs of each strip."""
        return self.starts[:, None] + jnp.arange(self.weights.shape[-1])[None]


@functools.lru_cache(maxsize=16)
def frame_weights(
    frame: Frame, low_hw: tuple[int, int], out_hw: tuple[int, int]
) -> tuple[Bands, Bands]:
    """Weights of rows and columns from the stride-4 map of a frame to `out_hw`.

    Sizes are padded with zero weights, so that images of many sizes share few compiled programs.
    """
    rows, columns = (
        axis_weights(low_hw[i], frame.canvas_hw[i], frame.resized_hw[i], out_hw[i]) for i in (0, 1)
    )
    rows, columns = (np.pad(x, ((0, -len(x) % _SIZE_STEP), (0, 0))) for x in (rows, columns))
    return Bands.of(rows), Bands.of(columns)


def _resize(low: Float[Array, "low_h low_w"], rows: Bands, columns: Bands) -> Float[Array, "h w"]:
    """Resizes a map with `frame_weights`, in full float32; h and w are the padded sizes."""
    exact = jax.lax.Precision.HIGHEST
    wide = jnp.einsum("isb,sob->iso", low[:, columns.index], columns.weights, precision=exact)
    wide = wide.reshape(low.shape[0], -1)
    high = jnp.einsum("sob,sbw->sow", rows.weights, wide[rows.index], precision=exact)
    return high.reshape(-1, wide.shape[1])


@jax.jit
def _resize_all(
    logits: Float[Array, "n low_h low_w"], rows: Bands, columns: Bands
) -> Float[Array, "n h w"]:
    return jax.lax.map(lambda low: _resize(low, rows, columns), logits)


@jax.jit
def _above_zero(
    logits: Float[Array, "n low_h low_w"], rows: Bands, columns: Bands
) -> Bool[Array, "n h w"]:
    # Compared one by one: logits of output size are never stored for more than one mask.
    return jax.lax.map(lambda low: _resize(low, rows, columns) > 0, logits)


def upsample_logits(
    logits: Float[Array | np.ndarray, "n low_h low_w"], frame: Frame, out_hw: tuple[int, int]
) -> Float[np.ndarray, "n h w"]:
    """Returns mask logits at the output size, float32 on the host."""
    return _in_chunks(_resize_all, logits, frame, out_hw, np.float32)


def upsample_masks(
    logits: Float[Array | np.ndarray, "n low_h low_w"], frame: Frame, out_hw: tuple[int, int]
) -> Bool[np.ndarray, "n h w"]:
    """Returns masks (logit > 0) at the output size; logits of output size stay on the device."""
    return _in_chunks(_above_zero, logits, frame, out_hw, np.bool_)


def chunk_size(num: int, out_hw: tuple[int, int]) -> int:
    """Number of masks that fit into the memory budget at once; few distinct values above 8."""
    fit = max(1, BUDGET_BYTES // (8 * out_hw[0] * out_hw[1]))
    padded = num if num <= 8 else 1 << (num - 1).bit_length()
    return min(max(1, padded), 1 << (fit.bit_length() - 1))


def _in_chunks(function, logits, frame: Frame, out_hw: tuple[int, int], dtype) -> np.ndarray:
    num = logits.shape[0]
    weights = frame_weights(frame, tuple(logits.shape[1:]), out_hw)
    out = np.empty((num, *out_hw), dtype)
    step = chunk_size(num, out_hw)
    for start in range(0, num, step):
        part = np.asarray(logits[start : start + step])
        missing = step - part.shape[0]
        part = np.pad(part, ((0, missing), (0, 0), (0, 0)))
        found = function(part, *weights)
        out[start : start + step] = np.asarray(found)[: step - missing, : out_hw[0], : out_hw[1]]
    return out


def _taps(size_in: int, size_out: int, kernel, radius: float, antialias: bool):
    """Source index and weight [out, taps] of every output sample (half-pixel centres)."""
    scale = size_in / size_out
    stretch = max(scale, 1.0) if antialias else 1.0
    centre = (np.arange(size_out) + 0.5) * scale
    if not antialias:  # the plain bilinear resize repeats the border instead of renormalising
        centre = np.clip(centre, 0.5, size_in - 0.5)
    reach = int(np.ceil(radius * stretch)) + 1
    index = np.floor(centre).astype(int)[:, None] + np.arange(-reach, reach + 1)
    distance = index + 0.5 - centre[:, None]
    share = kernel(distance / stretch)
    share[(index < 0) | (index >= size_in) | (np.abs(distance) >= radius * stretch)] = 0
    return np.clip(index, 0, size_in - 1), share / share.sum(1, keepdims=True)


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(x), 0)


def _keys(x: np.ndarray) -> np.ndarray:
    """Keys' cubic with a = -0.5, as in antialiased resizing (docs/reference.md, section 10)."""
    x, a = np.abs(x), -0.5
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
