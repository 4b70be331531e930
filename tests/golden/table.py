"""Comparison with recorded numbers; every comparison becomes a row of the summary table."""

import dataclasses
import functools
import pathlib

import numpy as np

from tests.golden.weights import uniform

DATA = pathlib.Path(__file__).parent / "data"

# Absolute tolerances in float32: about ten times what the reference itself loses
# against float64. Arrays stored in float16 are rounded and get the last one.
FEATURES = 5e-5
MASKS = 1e-3
BOXES = 5e-5
IOUS = 5e-5
CLASS_LOGITS = 2e-4
HALF_PRECISION = 2e-2
EXACT = 0.0


@dataclasses.dataclass(frozen=True)
class ParityRow:
    """One compared array."""

    name: str
    max_error: float
    tolerance: float

    @property
    def is_good(self) -> bool:
        return self.max_error <= self.tolerance


ROWS: list[ParityRow] = []


@functools.cache
def golden(file: str) -> dict[str, np.ndarray]:
    """All arrays of tests/golden/data/<file>.npz.

    Random numbers are stored as `NAME@draw`: seed, start in the generator's stream, shape.
    """
    with np.load(DATA / f"{file}.npz") as data:
        found = {key: data[key] for key in data.files}
    for key in [key for key in found if key.endswith("@draw")]:
        seed, start, *shape = found.pop(key).tolist()
        stop = start + int(np.prod(shape))
        found[key.removesuffix("@draw")] = uniform(seed, stop)[start:].reshape(shape)
    return found


def full_size_masks(recorded, name: str, logits, tolerance: float) -> dict[str, np.ndarray]:
    """What is recorded of masks at the size of the image, made of `logits` [m, h, w].

    Of each mask every fourth value in both directions is recorded, and the sign of every pixel;
    a sign counts where the logit is larger than the tolerance.

    Returns:
        `masks_every_4th` and `masks_positive` (packed bits), for `recorded[f"{name}/..."]`.
    """
    logits = np.asarray(logits)
    packed = recorded[f"{name}/masks_positive"]
    positive = np.unpackbits(packed, axis=-1, count=logits.shape[-1]).astype(bool)
    settled = np.where(np.abs(logits) <= tolerance, positive, logits > 0)
    return {
        "masks_every_4th": logits[:, ::4, ::4],
        "masks_positive": np.packbits(settled, axis=-1),
    }


def assert_masks_recorded(recorded, name: str, logits, tolerance: float, chosen=slice(None)):
    """Asserts that full-size logits are those recorded, of all masks or of some."""
    part = {
        f"{name}/{key}": recorded[f"{name}/{key}"][chosen]
        for key in ("masks_every_4th", "masks_positive")
    }
    got = full_size_masks(part, name, logits, tolerance)
    want = part[f"{name}/masks_every_4th"].astype(np.float32)
    np.testing.assert_allclose(got["masks_every_4th"], want, rtol=0, atol=tolerance)
    np.testing.assert_array_equal(got["masks_positive"], part[f"{name}/masks_positive"])


def compare(file: str, key: str, got, tolerance: float) -> None:
    """Asserts that `got` equals the recorded array within an absolute tolerance."""
    want, got = golden(file)[key], np.asarray(got)
    assert got.shape == want.shape, f"{file}:{key}: shape {got.shape}, recorded {want.shape}"
    if not want.size:
        error = 0.0
    elif want.dtype.kind == "f":
        error = float(np.abs(got.astype(np.float64) - want.astype(np.float64)).max())
    else:
        error = float(np.count_nonzero(got != want))
    row = ParityRow(f"{file}:{key}", error, tolerance)
    ROWS.append(row)
    assert row.is_good, f"{row.name}: max error {error:.3g}, tolerance {tolerance:.3g}"


def lines() -> list[str]:
    """The table: array, largest absolute error (or count of unequal integers), tolerance."""
    width = max(len(row.name) for row in ROWS)
    head = f"{'array':<{width}}  {'max error':>9}  {'tolerance':>9}"
    body = [
        f"{r.name:<{width}}  {r.max_error:9.1e}  {r.tolerance:9.1e}{'' if r.is_good else '  BAD'}"
        for r in sorted(ROWS, key=lambda r: r.name)
    ]
    return [head, *body]
