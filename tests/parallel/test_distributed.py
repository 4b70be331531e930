"""What the log of a run of several processes says about where a line comes from."""

import logging
import socket

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
