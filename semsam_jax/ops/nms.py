"""Greedy non-maximum suppression on the host."""

import numpy as np
from jaxtyping import Float, Int, Shaped


def box_iou(
    box: Shaped[np.ndarray, "4"], boxes: Shaped[np.ndarray, "n 4"]
) -> Float[np.ndarray, " n"]:
    """IoU of one xyxy box with many.

    Boxes between the centres of the outermost pixels (as SAM computes them) have no area if the
    mask is one pixel wide. Where one of two boxes has none, the pixels that they cover are
    compared instead, so that equal boxes always have an IoU of 1.
    """
    is_thin = (boxes[:, 2:] <= boxes[:, :2]).any(1) | (box[2:] <= box[:2]).any()
    extra = is_thin.astype(np.float64)[:, None]
    low = np.maximum(box[:2], boxes[:, :2])
    high = np.minimum(box[2:], boxes[:, 2:])
    overlap = np.prod(np.maximum(high - low + extra, 0), axis=1)
    area = np.prod(boxes[:, 2:] - boxes[:, :2] + extra, axis=1)
    union = area + np.prod(box[2:] - box[:2] + extra, axis=1) - overlap
    return np.divide(overlap, union, out=np.zeros(len(boxes)), where=union > 0)


def nms(
    boxes: Shaped[np.ndarray, "n 4"], scores: Float[np.ndarray, " n"], iou_threshold: float
) -> Int[np.ndarray, " m"]:
    """Returns the indices of the boxes to keep, best score first.

    A box is dropped if its IoU with a kept box exceeds the threshold. Equal scores keep their
    order.

    Args:
        boxes: x0, y0, x1, y1.
        scores: higher is better.
        iou_threshold: 0..1.
    """
    boxes = boxes.astype(np.float64)
    order = np.argsort(-scores, kind="stable")
    keep = []
    while len(order):
        best, rest = order[0], order[1:]
        keep.append(best)
        order = rest[box_iou(boxes[best], boxes[rest]) <= iou_threshold]
    return np.array(keep, np.int64)
