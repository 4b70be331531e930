"""One cache of compiled programs for all runs, also of parallel test workers."""

import os

import pytest


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "e2e_cache"
    folder.mkdir(exist_ok=True)
    return folder
