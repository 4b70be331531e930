"""What --verbose and --quiet do, and what `semsam env` shows."""

import logging
import sys
import warnings

import pytest

import semsam_jax
from semsam_jax.__main__ import main
from semsam_jax.core import console, environment


def test_quiet_drops_output_bars_and_warnings_and_gives_them_back(capsys):
    level = logging.getLogger().level
    with console.verbosity(quiet=True):
        print("unheard")
        assert console.hides_progress() is True
        assert not logging.getLogger("semsam_jax").isEnabledFor(logging.WARNING)
        print("an error", file=sys.stderr)
    assert capsys.readouterr() == ("", "an error\n")
    assert console.hides_progress() is None
    assert logging.getLogger().level == level


def test_verbose_shows_messages_of_level_info():
    level = logging.getLogger().level
    with console.verbosity(verbose=True):
        assert logging.getLogger("semsam_jax").isEnabledFor(logging.INFO)
    assert logging.getLogger().level == level


def test_output_comes_back_after_an_error(capsys):
    with pytest.raises(ValueError, match="broken"), console.verbosity(quiet=True):
        raise ValueError("broken")
    print("heard")
    assert capsys.readouterr().out == "heard\n"


def test_env_tells_versions_devices_and_settings(monkeypatch, capsys):
    monkeypatch.setenv("SEMSAM_JAX_CACHE", "/somewhere")
    monkeypatch.setattr(environment, "_PACKAGES", ("jax", "no-such-package"))
    assert main(["env"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["semsam_jax"].startswith(semsam_jax.__version__)
    assert lines["no-such-package"] == "not installed"
    assert lines["devices"] == "8 x cpu (cpu)"
    assert lines["SEMSAM_JAX_CACHE"] == "/somewhere"


def test_a_warning_of_a_command_is_one_line_without_the_code(capsys):
    with console.verbosity():
        shown = warnings.formatwarning(UserWarning("two\nlines"), UserWarning, "file.py", 1)
    assert shown == "note: two lines\n"
    with console.verbosity(quiet=True):
        warnings.warn("unheard", stacklevel=1)
    assert capsys.readouterr().err == ""
    assert warnings.formatwarning("a", UserWarning, "file.py", 1).startswith("file.py:1")
