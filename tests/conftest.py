"""Test-wide switches: exact arithmetic, no silent broadcasting, 8 CPU devices, quick compiling."""

import os

import pytest

from tests.golden import table

# Before jax looks for accelerators: tests compare numbers of one kind of machine.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_numpy_rank_promotion", "raise")

AS_SHIPPED = bool(os.environ.get("SEMSAM_JAX_TEST_AS_SHIPPED"))
"""Whether everything is compiled as users have it."""
QUICK_FLAGS = "--xla_cpu_use_fusion_emitters=false" if jax.__version_info__ < (0, 11) else ""
"""With LLVM's optimisations off, they halve what compiling takes; later versions do not know it."""


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
    table.ROWS.extend(table.Row(*row) for row in rows)


def pytest_terminal_summary(terminalreporter):
    """Prints the table of all comparisons with recorded numbers."""
    if table.ROWS:
        terminalreporter.section("parity with the recorded reference")
        for line in table.lines():
            terminalreporter.write_line(line)
