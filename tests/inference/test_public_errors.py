"""Wrong types and shapes end in a SemSamError, whatever public function gets them."""

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import COMPILE_QUICKLY


def test_every_public_function_refuses_what_it_cannot_take(tiny_checkpoint):
    script = Path(__file__).with_name("wrong_arguments.py")
    command = [sys.executable, str(script), str(tiny_checkpoint)]
    environment = os.environ | COMPILE_QUICKLY
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    surprises = [line for line in done.stdout.splitlines() if not line.startswith("checkpoint")]
    assert done.returncode == 0, "\n".join(surprises[-60:]) + done.stderr[-2000:]
    assert int(surprises[-1].split()[0]) > 2000  # calls
