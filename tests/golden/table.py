"""Comparison with recorded numbers; every comparison becomes a row of the summary table."""

import dataclasses
import functools
import pathlib

import numpy as np

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
class Row:
    """One compared array."""

    name: str
    max_error: float
    tolerance: float

    @property
    def is_good(self) -> bool:
        return self.max_error <= self.tolerance


ROWS: list[Row] = []


@functools.cache
def golden(file: str) -> dict[str, np.ndarray]:
    """All arrays of tests/golden/data/<file>.npz."""
    with np.load(DATA / f"{file}.npz") as data:
        return {key: data[key] for key in data.files}


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
    row = Row(f"{file}:{key}", error, tolerance)
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
