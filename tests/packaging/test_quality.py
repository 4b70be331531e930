"""Lint, format and the types of the public surface, as pyproject.toml sets them."""

import subprocess
import sys

import pytest

import semsam_jax
from tests.packaging.conftest import ROOT


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=lambda c: c[0])
def test_ruff_has_nothing_to_say(command):
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *command, "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_pyright_sees_the_types_of_the_public_surface():
    """`typed_api.py` uses the package as a typed user would, and asserts what types it gets."""
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--pythonpath", sys.executable],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 errors" in done.stdout


def test_what_is_declared_public_can_be_imported():
    """Type checkers read `__all__`, users get `_PUBLIC`: the same names, all of them there."""
    assert set(semsam_jax.__all__) == {"__version__", *semsam_jax._PUBLIC}
    assert dir(semsam_jax) == sorted(semsam_jax.__all__)
    for name, module in semsam_jax._PUBLIC.items():
        assert getattr(semsam_jax, name).__module__ == module
    with pytest.raises(AttributeError, match="no attribute 'Predictr'"):
        _ = semsam_jax.Predictr
