"""Position encodings against recorded numbers."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from semsam_jax.ops.positional import sine_boxes, sine_grid

GOLDEN = Path(__file__).parents[1] / "golden" / "data"


@pytest.mark.parametrize("level", [3, 4, 5, 6])
def test_sine_grid_of_the_pyramid(level: int) -> None:
    with np.load(GOLDEN / "tiny_image_a.npz") as file:
        want = file[f"pixdec/pos_res{level}"][0].transpose(1, 2, 0)
    np.testing.assert_allclose(sine_grid(*want.shape), want, atol=2e-6)


def test_sine_grid_unit() -> None:
    with np.load(GOLDEN / "units.npz") as file:
        want = file["posenc/sine_6x9_nfeat32"][0].transpose(1, 2, 0)
    np.testing.assert_allclose(sine_grid(6, 9, 64), want, atol=2e-6)


@pytest.mark.parametrize("features", [32, 128])
def test_sine_boxes(features: int) -> None:
    with np.load(GOLDEN / "units.npz") as file:
        boxes, want = file["sineembed/boxes"], file[f"sineembed/out_dim{features}"]
    got = sine_boxes(jnp.asarray(boxes), 4 * features)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, atol=2e-6)
