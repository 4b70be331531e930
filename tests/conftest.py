"""Test-wide switches: exact arithmetic, no silent broadcasting, 8 CPU devices, fast compiling."""

import gc
import os
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.golden import table, weights

# Before jax looks for accelerators: tests compare numbers of one kind of machine.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

# One cache of compiled programs for all workers and the processes that tests start, kept between
# runs. JAX names its entries by program, flags and version, so nothing stale can be found there.
_USER_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_USER_CACHE / "semsam_jax_tests"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
CACHE_DAYS = 14
"""Compiled programs older than this are removed, so that the cache does not grow forever."""

import jax  # noqa: E402 (reads the variables above)

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Notebooks that are kept run at their own sizes, which takes far longer without optimisations.
AS_SHIPPED = any(
    os.environ.get(f"SEMSAM_JAX_{name}") for name in ("TEST_AS_SHIPPED", "KEEP_NOTEBOOKS")
)
"""Whether everything is compiled as users have it."""
QUICK_FLAGS = "--xla_cpu_use_fusion_emitters=false" if jax.__version_info__ < (0, 11) else ""
"""With LLVM's optimisations off, they halve what compiling takes; later versions do not know it."""
COMPILE_QUICKLY = (
    {} if AS_SHIPPED else {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "XLA_FLAGS": QUICK_FLAGS}
)
"""Variables for processes that tests start: small models compile for minutes, run for moments."""

# Files that take longest start first, so that no worker is left with one of them at the end.
LONGEST_FIRST = ("sharded", "e2e", "notebooks", "packaging", "demo", "golden", "train", "evals")
# Session fixtures that are costly to make (an installation, a server): each of these groups of
# folders goes to one worker.
TOGETHER = {"packaging": "packaging", "notebooks": "packaging", "demo": "demo"}


def _compile_quickly() -> None:
    """Small models compile for seconds and run for milliseconds: their code need not be fast.

    XLA reads its flags once, when the backend starts: processes that tests start do not get them.
    """
    before = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{before} {QUICK_FLAGS}".strip()
    jax.config.update("jax_disable_most_optimizations", True)
    jax.jit(lambda x: x + 1)(1)
    os.environ["XLA_FLAGS"] = before


if not AS_SHIPPED:
    _compile_quickly()


# Tracing makes many objects that stay; looking through them as often as Python does by default
# would take a fifth of its time. Commands of the product do the same (`core/ending.py`).
gc.set_threshold(20_000)


@contextmanager
def optimizations_off():
    """XLA's optimisations are off inside; afterwards they are as they were."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


def pytest_configure(config):
    """Removes old compiled programs and rebuilds the recorded weights, once for all workers."""
    if hasattr(config, "workerinput"):
        return
    for name in weights.NAMES:
        weights.provide(name)
    folder = Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    if folder.is_dir():
        limit = time.time() - CACHE_DAYS * 24 * 3600
        for file in folder.iterdir():
            if file.is_file() and file.stat().st_mtime < limit:
                file.unlink(missing_ok=True)


def pytest_collection_modifyitems(items):
    """Sorts the folders: longest first."""
    rank = {name: index for index, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(_folder(item.nodeid), len(rank)))


def _folder(nodeid: str) -> str:
    return nodeid.removeprefix("tests/").partition("/")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Gives whole files to the workers of `pytest -n`: what a file compiles is compiled once."""
    from xdist.scheduler import LoadScopeScheduling

    class WholeFiles(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return TOGETHER.get(_folder(nodeid), nodeid.partition("::")[0])

    config.option.loadscopereorder = False  # keep the order of the collection
    return WholeFiles(config, log)


def pytest_sessionfinish(session):
    """A worker of `pytest -n` hands its comparisons with recorded numbers to the process that
    reports.
    """
    if hasattr(session.config, "workeroutput"):
        rows = [(row.name, float(row.max_error), float(row.tolerance)) for row in table.ROWS]
        session.config.workeroutput["parity"] = rows


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """Takes what a worker hands over."""
    rows = getattr(node, "workeroutput", {}).get("parity", ())
    table.ROWS.extend(table.ParityRow(*row) for row in rows)


def pytest_terminal_summary(terminalreporter):
    """Prints the table of all comparisons with recorded numbers."""
    if table.ROWS:
        terminalreporter.section("parity with recordings of the original")
        for line in table.lines():
            terminalreporter.write_line(line)
