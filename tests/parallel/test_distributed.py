"""What a run of several processes says: where a line comes from, and that another one is gone."""

import logging
import socket

import jax
import pytest
from absl import logging as absl_logging

from semsam_jax.parallel import distributed


def test_every_line_names_its_host_and_process(capsys):
    handler = absl_logging.get_absl_handler()
    before = handler.formatter
    try:
        distributed._name_this_process()
        record = logging.LogRecord("absl", logging.WARNING, __file__, 1, "a word", None, None)
        line = handler.format(record)
    finally:
        handler.setFormatter(before)
    name = f"[{socket.gethostname()} 0/1]"
    assert line == f"{name} WARNING a word"
    assert capsys.readouterr().err.startswith(name)


@pytest.mark.parametrize(
    ("error", "processes", "is_lost"),
    [
        (jax.errors.JaxRuntimeError("UNKNOWN: Gloo AllGather failed"), 2, True),
        (ValueError("UNKNOWN: Gloo AllGather failed: Connection reset by peer"), 2, True),
        (jax.errors.JaxRuntimeError("UNKNOWN: Gloo AllGather failed"), 1, False),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"), 2, False),
        (OSError(28, "No space left on device"), 2, False),
    ],
)
def test_a_lost_process_is_known_by_type_or_text(monkeypatch, error, processes, is_lost):
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    assert distributed.has_lost_process(error) == is_lost
    wrapped = RuntimeError("save failed")
    wrapped.__cause__ = error
    assert distributed.has_lost_process(wrapped) == is_lost
