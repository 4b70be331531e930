"""Box operations against recorded numbers and simple facts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semsam_jax.ops import boxes
from tests.golden.table import DATA, compare


@pytest.fixture(scope="module")
def golden():
    with np.load(DATA / "units.npz") as data:
        return {k: data[k] for k in data.files if k.startswith(("inverse_sigmoid", "giou"))}


def test_inverse_sigmoid_golden(golden):
    out = boxes.inverse_sigmoid(jnp.asarray(golden["inverse_sigmoid/in"]))
    compare("units", "inverse_sigmoid/out", out, 1e-5)


def test_inverse_sigmoid_gradient_is_finite_at_the_ends():
    grad = jax.grad(lambda x: boxes.inverse_sigmoid(x).sum())(jnp.array([0.0, 1.0, -1.0, 2.0, 0.5]))
    assert np.isfinite(grad).all()
    assert grad[-1] == pytest.approx(4.0, abs=1e-5)


def test_generalized_iou_golden(golden):
    a, b = jnp.asarray(golden["giou/boxes1_xyxy"]), jnp.asarray(golden["giou/boxes2_xyxy"])
    out = boxes.pairwise_generalized_iou(a, b)
    compare("units", "giou/out", out, 1e-6)
    rows = boxes.generalized_iou(a[:4], b)
    np.testing.assert_allclose(rows, np.diag(golden["giou/out"][:4]), atol=1e-6)


def test_pairwise_takes_leading_axes(golden):
    a, b = jnp.asarray(golden["giou/boxes1_xyxy"]), jnp.asarray(golden["giou/boxes2_xyxy"])
    out = boxes.pairwise_generalized_iou(jnp.stack([a, a + 0.1]), jnp.stack([b, b + 0.1]))
    assert out.shape == (2, 6, 4)
    np.testing.assert_allclose(out[0], golden["giou/out"], atol=1e-6)


def test_corners_of_centres_and_sizes():
    cxcywh = jax.random.uniform(jax.random.key(0), (5, 4))
    xyxy = boxes.cxcywh_to_xyxy(cxcywh)
    np.testing.assert_allclose((xyxy[:, :2] + xyxy[:, 2:]) / 2, cxcywh[:, :2], atol=1e-6)
    np.testing.assert_allclose(xyxy[:, 2:] - xyxy[:, :2], cxcywh[:, 2:], atol=1e-6)
    np.testing.assert_allclose(boxes.box_area(xyxy), cxcywh[:, 2] * cxcywh[:, 3], atol=1e-6)
    half = boxes.cxcywh_to_xyxy(jnp.array([0.5, 0.4, 0.2, 0.6]))
    np.testing.assert_allclose(half, [0.4, 0.1, 0.6, 0.7], atol=1e-6)


def test_limits_of_boxes_and_clicks():
    prompts = jnp.asarray([[0.5, 0.5, 0.2, 0.4], [0.3, 0.3, 0.1, 0.1], [0.52, 0.5, 0.001, 0.001]])
    limits = boxes.box_limits(prompts, jnp.asarray([True, False, True]), 1.25)
    np.testing.assert_allclose(limits[0], [0.375, 0.25, 0.625, 0.75], atol=1e-6)
    np.testing.assert_array_equal(limits[1], [0, 0, 1, 1])
    cells = np.asarray(boxes.cells_within(limits, 5, 10))
    assert np.argwhere(cells[0]).tolist() == [[y, x] for y in (1, 2, 3) for x in (4, 5)]
    assert cells[1].all()
    assert np.argwhere(cells[2]).tolist() == [[2, 5]]  # smaller than a cell: the nearest one
    inside = boxes.points_within(jnp.asarray([[[[0.4, 0.3], [0.4, 0.1]]]]), limits[None, :1])
    np.testing.assert_array_equal(inside, [[[True, False]]])
