import numpy as np
import pytest

from semsam_jax.ops.nms import box_iou, nms
from tests.golden.table import EXACT, compare, golden


@pytest.mark.parametrize("threshold", ["0.3", "0.7"])
def test_nms_equals_reference(threshold):
    units = golden("units")
    keep = nms(units["nms/boxes"], units["nms/scores"], float(threshold))
    compare("units", f"nms/keep_{threshold}", keep, EXACT)


def test_equal_scores_keep_their_order_and_empty_input_is_empty():
    boxes = np.array([[0, 0, 4, 4], [0, 0, 4, 4], [9, 9, 12, 12]])
    assert nms(boxes, np.ones(3), 0.5).tolist() == [0, 2]
    assert nms(np.zeros((0, 4)), np.zeros(0), 0.5).tolist() == []


def test_boxes_of_one_pixel_in_width_are_compared_by_their_pixels():
    boxes = np.array([[5, 5, 5, 20], [5, 5, 5, 20], [5, 5, 5, 12], [0, 0, 31, 31], [7, 7, 7, 7]])
    np.testing.assert_allclose(box_iou(boxes[0], boxes), [1, 1, 0.5, 16 / 1024, 0])
    np.testing.assert_allclose(box_iou(boxes[4], boxes), [0, 0, 0, 1 / 1024, 1])
    assert nms(boxes, np.array([0.5, 0.9, 0.8, 0.7, 0.6]), 0.7).tolist() == [1, 2, 3, 4]
