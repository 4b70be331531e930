"""Maps of one image from its queries, drawn on the device: classes, winners, masks.

The masks of all queries at full size take hundreds of megabytes and are needed only to be
reduced, so the image is drawn in strips of rows and what comes back is small: the best class
and the winning query of each pixel, and the masks as bits. The arithmetic is that of
`ops.panoptic`, which serves single images on the host.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from semsam_jax.evals.prompt_scores import MASK_STRIDE
from semsam_jax.models.heads import mask_logits

_STRIP_ROWS = 32


@dataclasses.dataclass(frozen=True)
class ImageMaps:
    """The maps of an image's queries, in the frame of the ground truth.

    Attributes:
        semantic: int32 [h, w] class with the highest score.
        winner: int32 [h, w] query with the largest weighted mask probability.
        bits: uint8 [q, h, w8] masks (logit > 0), packed along x.
        quality: float32 [q] mean probability within each mask.
    """

    semantic: np.ndarray
    winner: np.ndarray
    bits: np.ndarray
    quality: np.ndarray

    def masks(self, queries: np.ndarray) -> np.ndarray:
        """Masks of some queries, bool [n, h, w]."""
        width = self.semantic.shape[1]
        return np.unpackbits(self.bits[queries], axis=-1)[..., :width].astype(bool)


def draw_maps(
    mask_embed: Float[Array, "q d"],
    features: Float[Array, "h w d"],
    class_weights: Float[np.ndarray, "q v"],
    query_weights: Float[np.ndarray, " q"],
    valid_hw: tuple[int, int],
    size_hw: tuple[int, int],
    frame_hw: tuple[int, int],
) -> ImageMaps:
    """Draws one image on the device that holds it.

    Mask logits are resized bilinearly to the canvas, the padding is cropped off, and the
    rest is resized bilinearly to the image (docs/reference.md, section 13).

    Args:
        mask_embed: with `features`, what mask logits are made of.
        features: at stride 4 of the canvas.
        class_weights: weight of each query's probability for each class.
        query_weights: factor of each query's probability where queries compete; negative
            keeps a query from winning against any other.
        valid_hw: valid pixels of the canvas.
        size_hw: size of the frame that is drawn.
        frame_hw: the same, rounded up so that few programs are compiled; rows are a multiple of 32
            and columns of 8.
    """
    canvas_hw = tuple(MASK_STRIDE * side for side in features.shape[:2])
    (rows, row_shares), (columns, column_shares) = (
        _taps(canvas_hw[axis], valid_hw[axis], size_hw[axis], frame_hw[axis]) for axis in (0, 1)
    )
    across = np.zeros((frame_hw[1], features.shape[1]), np.float32)
    np.add.at(across, (np.arange(frame_hw[1])[:, None], columns), column_shares)
    limits = np.asarray(size_hw, np.int32)
    drawn = _draw(
        mask_embed, features, class_weights, query_weights, rows, row_shares, across, limits
    )
    semantic, winner, bits, quality = jax.device_get(drawn)
    h, w = size_hw
    return ImageMaps(semantic[:h, :w], winner[:h, :w], bits[:, :h, : -(-w // 8)], quality)


def _taps(canvas: int, valid: int, size: int, frame: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions at stride 4 and their weights for each pixel along one axis.

    Two bilinear steps in one: stride 4 to the canvas, and its valid pixels to the frame.

    Returns:
        int32 [frame, 4] and float32 [frame, 4]; pixels beyond `size` repeat the last one.
    """
    place = (np.minimum(np.arange(frame), size - 1) + 0.5) * (valid / size) - 0.5
    low, high, share = _neighbours(place, valid)
    index, shares = [], []
    for pixel, part in ((low, 1 - share), (high, share)):
        first, second, inner = _neighbours((pixel + 0.5) / MASK_STRIDE - 0.5, canvas // MASK_STRIDE)
        index += [first, second]
        shares += [part * (1 - inner), part * inner]
    return np.stack(index, 1).astype(np.int32), np.stack(shares, 1).astype(np.float32)


def _neighbours(place: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels before and after a position, borders clamped, and the weight of the second."""
    place = np.clip(place, 0, count - 1)
    low = np.floor(place).astype(np.int64)
    return low, np.minimum(low + 1, count - 1), place - low


@functools.partial(jax.jit)
def _draw(
    mask_embed: Float[Array, "q d"],
    features: Float[Array, "h w d"],
    class_weights: Float[Array, "q v"],
    query_weights: Float[Array, " q"],
    rows: Int[Array, "y 4"],
    row_shares: Float[Array, "y 4"],
    across: Float[Array, "x w"],
    limits: Int[Array, "2"],
) -> tuple[Int[Array, "y x"], Int[Array, "y x"], UInt8[Array, "q y x8"], Float[Array, " q"]]:
    exact = jax.lax.Precision.HIGHEST
    low = mask_logits(mask_embed[None], features[None])[0]
    wide = jnp.einsum("qhw,xw->hqx", low, across, precision=exact)
    is_column = jnp.arange(across.shape[0]) < limits[1]

    def strip(part):
        number, index, shares = part
        logits = jnp.einsum("ytqx,yt->qyx", wide[index], shares, precision=exact)
        probability = jax.nn.sigmoid(logits)
        scores = jnp.einsum("qv,qyx->vyx", class_weights, probability, precision=exact)
        winner = jnp.argmax(query_weights[:, None, None] * probability, axis=0)
        is_row = number * _STRIP_ROWS + jnp.arange(_STRIP_ROWS) < limits[0]
        mask = (logits > 0) & (is_row[:, None] & is_column[None, :])[None]
        sums = jnp.where(mask, probability, 0).sum((1, 2)), mask.sum((1, 2))
        bits = jnp.packbits(mask, axis=-1)
        return jnp.argmax(scores, axis=0), winner, bits, sums

    count = rows.shape[0] // _STRIP_ROWS
    parts = [x.reshape(count, _STRIP_ROWS, 4) for x in (rows, row_shares)]
    semantic, winner, bits, sums = jax.lax.map(strip, (jnp.arange(count), *parts))
    total, area = (x.sum(0) for x in sums)
    height, width = rows.shape[0], across.shape[0]
    return (
        semantic.reshape(height, width).astype(jnp.int32),
        winner.reshape(height, width).astype(jnp.int32),
        jnp.moveaxis(bits, 0, 1).reshape(len(low), height, -1),
        total / (area + 1e-6),
    )
