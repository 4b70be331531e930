"""Boxes: two notations, areas, generalised IoU, and the logit space of box refinement.

Everything is float32, since matching and sampling coordinates depend on it.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

_INVERSE_SIGMOID_EPS = 1e-5
_GIOU_EPS = 1e-6


def cxcywh_to_xyxy(boxes: Float[Array, "*n 4"]) -> Float[Array, "*n 4"]:
    """Centre and size to corners, in whatever unit the boxes have."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return jnp.concatenate([centre - half, centre + half], axis=-1)


def inverse_sigmoid(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Logit of x clamped to [0, 1], with both odds kept above 1e-5.

    Source: docs/reference.md, section 4, reference update; its range is about -11.5 .. 11.5.
    """
    x = jnp.clip(x, 0.0, 1.0)
    return jnp.log(jnp.maximum(x, _INVERSE_SIGMOID_EPS)) - jnp.log(
        jnp.maximum(1.0 - x, _INVERSE_SIGMOID_EPS)
    )


def box_area(boxes_xyxy: Float[Array, "*n 4"]) -> Float[Array, "*n"]:
    """Signed area: inverted boxes are not corrected, as in the original."""
    size = boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]
    return size[..., 0] * size[..., 1]


def generalized_iou(
    a_xyxy: Float[Array, "*n 4"], b_xyxy: Float[Array, "*n 4"]
) -> Float[Array, "*n"]:
    """Generalised IoU of equal-shaped boxes, row by row, in (-1, 1].

    1e-6 is added to both denominators, so that degenerate boxes stay finite.

    Source: arXiv 1902.09630; docs/reference.md, section 8.
    """
    inter_low = jnp.maximum(a_xyxy[..., :2], b_xyxy[..., :2])
    inter_high = jnp.minimum(a_xyxy[..., 2:], b_xyxy[..., 2:])
    inter_size = jnp.maximum(inter_high - inter_low, 0.0)
    inter = inter_size[..., 0] * inter_size[..., 1]
    union = box_area(a_xyxy) + box_area(b_xyxy) - inter
    hull_low = jnp.minimum(a_xyxy[..., :2], b_xyxy[..., :2])
    hull_high = jnp.maximum(a_xyxy[..., 2:], b_xyxy[..., 2:])
    hull_size = jnp.maximum(hull_high - hull_low, 0.0)
    hull = hull_size[..., 0] * hull_size[..., 1]
    return inter / (union + _GIOU_EPS) - (hull - union) / (hull + _GIOU_EPS)


def pairwise_generalized_iou(
    a_xyxy: Float[Array, "*b n 4"], b_xyxy: Float[Array, "*b m 4"]
) -> Float[Array, "*b n m"]:
    """Generalised IoU of every box of `a` with every box of `b`."""
    shape = (*a_xyxy.shape[:-1], b_xyxy.shape[-2], 4)
    return generalized_iou(
        jnp.broadcast_to(a_xyxy[..., :, None, :], shape),
        jnp.broadcast_to(b_xyxy[..., None, :, :], shape),
    )


def add_box_noise(
    boxes: Float[Array, "b n 4"],
    noise: Float[Array, "b n 4"],
    scale: float | Float[Array, "b n 1"],
) -> Float[Array, "b n 4"]:
    """Shifts and resizes boxes by uniform noise, clamped to the canvas.

    The centre moves by at most `scale` half sizes, width and height by `scale` sizes.

    Args:
        boxes: cxcywh in 0..1.
        noise: uniform in [0, 1).
        scale: relative size of the noise.

    Returns:
        Boxes clamped to 0..1. Source: docs/reference.md, section 5, arXiv 2203.01305.
    """
    size = boxes[..., 2:]
    reach = jnp.concatenate([size / 2, size], axis=-1)
    return jnp.clip(boxes + (noise * 2.0 - 1.0) * reach * scale, 0.0, 1.0)


OUTSIDE_LOGIT = -10.0
"""Mask logit outside the limits of a mask."""


def box_limits(
    boxes: Float[Array, "*n 4"], is_box: Bool[Array, "*n"], margin: float
) -> Float[Array, "*n 4"]:
    """Limits (x0, y0, x1, y1) of prompt masks: the enlarged box, or the whole canvas for clicks.

    Args:
        boxes: cxcywh, fractions of the canvas.
        is_box: which prompts are boxes.
        margin: factor on the sides of a box, since outlines end between cells.
    """
    enlarged = jnp.concatenate([boxes[..., :2], margin * boxes[..., 2:]], axis=-1)
    canvas = jnp.broadcast_to(jnp.asarray([0.0, 0.0, 1.0, 1.0], boxes.dtype), boxes.shape)
    return jnp.where(is_box[..., None], cxcywh_to_xyxy(enlarged), canvas)


def points_within(
    points: Float[Array, "#b #n j 2"], limits: Float[Array, "b n 4"]
) -> Bool[Array, "b n j"]:
    """Which points (x, y) lie within limits (x0, y0, x1, y1), borders included."""
    low, high = limits[..., None, :2], limits[..., None, 2:]
    return ((points >= low) & (points <= high)).all(-1)


def cells_within(
    limits: Float[Array, "*n 4"], height: int, width: int
) -> Bool[Array, "*n {height} {width}"]:
    """Which cells of a map over the canvas have their centre within limits (x0, y0, x1, y1).

    If the limits are smaller than a cell, the cells nearest to their centre are.
    """
    inside = []
    for axis, side in ((1, height), (0, width)):
        middle = (limits[..., axis] + limits[..., axis + 2]) / 2
        half = jnp.maximum((limits[..., axis + 2] - limits[..., axis]) / 2, 0.5 / side)
        centers = jnp.expand_dims((jnp.arange(side) + 0.5) / side, range(middle.ndim))
        inside.append(jnp.abs(centers - middle[..., None]) <= half[..., None])
    return inside[0][..., :, None] & inside[1][..., None, :]
