"""The documentation site, from every page of the repository."""

import subprocess
import sys

import pytest

from tests.packaging.conftest import ROOT


@pytest.mark.nightly
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "tools.build_docs", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    assert "predict_many" in (tmp_path / "docs" / "api.html").read_text()
    assert (tmp_path / "index.html").exists()
