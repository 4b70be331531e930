"""Points near prompts: where they lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semsam_jax.criterion.prompt_points import RADII, draw_points
from tests.criterion import recorded

COUNT = 200_000


@pytest.fixture(scope="module")
def rows():
    rows = jax.tree.map(lambda x: jnp.concatenate([x[:1]] * 2), recorded.interactive_rows())
    b, p = rows.prompt_valid.shape
    # One prompt in a corner, where many points would fall off the canvas.
    boxes = rows.prompt_box.at[0, 0, :2].set(jnp.array([0.02, 0.99]))
    valid = jnp.ones((b, p), bool).at[0, 1].set(False).at[-1].set(False)
    return rows.replace(prompt_box=boxes, prompt_valid=valid)


@pytest.fixture(scope="module")
def drawn(rows):
    """Points of which none, and of which many lie near prompts; otherwise the same."""
    key = jax.random.key(3)
    return draw_points(key, COUNT, rows, 0.0), draw_points(key, COUNT, rows, 0.6)


def test_moved_points_surround_valid_prompts_on_the_canvas(rows, drawn):
    uniform, points = drawn
    moved = np.asarray((points != uniform).any(-1))
    assert 0.1 < moved[0].mean() < 0.61
    assert ((points >= 0) & (points < 1)).all()
    centres = np.asarray(rows.prompt_box[0, np.asarray(rows.prompt_valid[0]), :2])
    away = np.linalg.norm(np.asarray(points)[0, moved[0], None] - centres, axis=-1).min(1)
    assert away.max() < 7 * max(RADII)
    assert np.median(away) < 2 * np.median(RADII)


def test_row_without_valid_prompts_keeps_its_points(drawn):
    uniform, points = drawn
    np.testing.assert_array_equal(points[-1], uniform[-1])
