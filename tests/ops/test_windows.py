"""Windows: order of pixels, recorded mask and index."""

import jax.numpy as jnp
import numpy as np

from semsam_jax.ops.windows import (
    from_windows,
    padded_size,
    relative_position_index,
    shifted_window_regions,
    to_windows,
)
from tests.golden.table import EXACT, compare


def test_windows_are_row_major_and_invertible() -> None:
    x = jnp.arange(2 * 4 * 6, dtype=jnp.float32).reshape(2, 4, 6, 1)
    windows = to_windows(x, 2)
    assert windows.shape == (2 * 6, 4, 1)
    np.testing.assert_array_equal(windows[1, :, 0], [2, 3, 8, 9])
    np.testing.assert_array_equal(windows[3, :, 0], [12, 13, 18, 19])
    np.testing.assert_array_equal(from_windows(windows, 2, 4, 6), x)


def test_padded_size() -> None:
    assert [padded_size(n, 7) for n in (1, 7, 8)] == [7, 7, 14]


def test_recorded_mask_and_index() -> None:
    region = shifted_window_regions(14, 14, 7, 3)
    mask = np.where(region[:, :, None] != region[:, None, :], np.float32(-100), 0)
    compare("units", "swin/shift_mask_H12_W10_win7", mask, EXACT)
    compare("units", "swin/relative_position_index_win7", relative_position_index(7), EXACT)
