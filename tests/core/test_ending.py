"""Commands end with their exit code, interrupted at any moment or not."""

import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.inference.conftest import golden, image_a, tiny_checkpoint, tiny_params  # noqa: F401

PYTHON_STARTS = "Failed to import the site module"
"""What Python itself says where a Ctrl-C comes before it is ready; nothing of ours runs yet."""


@pytest.fixture(autouse=True, scope="module")
def hears_interrupts():
    """Commands that tests start hear Ctrl-C, also if the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def start(*command, **options):
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def interrupted_program(body):
    head = "import os, signal, sys\nfrom semsam_jax.core.ending import run_command\n"
    done = start("-c", f"{head}def main():\n    {body}\nrun_command(main)\n")
    out, error = done.communicate(timeout=60)
    return done.returncode, out, error


@pytest.mark.parametrize(
    "body",
    [
        "os.kill(os.getpid(), signal.SIGINT); print('not reached')",
        # lost in a destructor
        "T = type('T', (), {'__del__': lambda s: os.kill(os.getpid(), signal.SIGINT)}); T(); "
        "any(False for _ in range(10**9)); print('not reached')",
        # turned into another error
        "exec('try:\\n os.kill(os.getpid(), signal.SIGINT)\\nexcept BaseException as e:\\n"
        " raise ValueError from e')",
        # answered with another exit code
        "exec('try:\\n os.kill(os.getpid(), signal.SIGINT)\\nexcept BaseException:\\n'"
        "' sys.exit(1)')",
    ],
)
def test_an_interrupt_is_never_lost(body):
    code, out, error = interrupted_program(body)
    assert (code, out) == (130, ""), error
    assert "Traceback" not in error


def test_an_import_is_finished_first(tmp_path):
    """Extension modules crash the process if an exception is raised while they initialise."""
    text = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nvalue = 5\n"
    (tmp_path / "interrupted.py").write_text(text)
    code, out, _ = interrupted_program(
        f"sys.path.insert(0, {str(tmp_path)!r}); import interrupted, time; "
        "print(interrupted.value); time.sleep(60)"
    )
    assert (code, out) == (130, "5\n")


def test_what_interrupted_frames_hold_is_not_freed():
    """Freeing a half-initialised extension module, or buffers in use, crashes the process."""
    code, out, _ = interrupted_program(
        'exec(\'class Held:\\n def __del__(self): print("freed")\\n'
        "def f():\\n held = Held()\\n os.kill(os.getpid(), signal.SIGINT)\\n"
        " any(False for _ in range(10**9))\\n"
        'try:\\n f()\\nexcept KeyboardInterrupt:\\n pass\\nprint("caught")\', globals())'
    )
    assert (code, out) == (130, "caught\n")


def test_other_ends_keep_their_codes():
    assert interrupted_program("return 7")[0] == 7
    assert interrupted_program("sys.exit(3)")[0] == 3
    code, _, error = interrupted_program("raise ValueError('x')")
    assert code == 1
    assert "ValueError: x" in error


def test_finally_blocks_run_and_a_second_interrupt_ends_at_once():
    code, out, _ = interrupted_program(
        "exec('try:\\n os.kill(os.getpid(), signal.SIGINT)\\nfinally:\\n print(\"cleaned\")')"
    )
    assert (code, out) == (130, "cleaned\n")
    code, out, _ = interrupted_program(
        "exec('try:\\n os.kill(os.getpid(), signal.SIGINT)\\nfinally:\\n"
        " os.kill(os.getpid(), signal.SIGINT)\\n print(1)')"
    )
    assert (code, out) == (130, "")


@pytest.fixture
def command(tmp_path, tiny_checkpoint):  # noqa: F811
    image = tmp_path / "image.png"
    Image.effect_noise((320, 320), 50).convert("RGB").save(image)
    return ["-m", "semsam_jax", "segment", image, "--checkpoint", tiny_checkpoint, "--size", 256]


def test_a_wrong_prompt_ends_with_2_and_one_line(command):
    """A wrong name is refused before the network starts; nothing crashes at the end."""
    done = start(*command, "--point", "5,5", "--labels", "dog")
    _, error = done.communicate(timeout=120)
    assert (done.returncode, error.count("\n")) == (2, 1), error


def cpu_sec(process):
    """CPU time that a process has used; on a busy machine its progress is no matter of clocks."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def interrupt(command, seconds, folder):
    """Starts a command, interrupts it after a CPU time; returns its code and what it said."""
    env = {**os.environ, "SEMSAM_JAX_CACHE": str(folder)}
    process = start(*command, env=env)
    while process.poll() is None and cpu_sec(process) < seconds:
        time.sleep(0.01)
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=600)
    return process.returncode, error


def check_interrupts(command, moments, out, folder):
    finished = 0
    for moment in moments:
        code, error = interrupt([*command, "--point", "60,60", "--out", out], moment, folder)
        # Before the command's first line Python ends by the signal; a shell calls that 130 too.
        if PYTHON_STARTS not in error:
            assert code in (0, 130, -signal.SIGINT), (moment, code, error)
            assert "Fatal" not in error, (moment, error)
        finished += code == 0
        left = {path.name for path in out.glob("*")} if out.exists() else set()
        assert left <= {"masks.json", "overlay.png", "source.json"}, (moment, left)
    return finished


def test_interrupts_at_a_few_moments(command, tmp_path):
    check_interrupts(command, (0.15, 0.6, 1.5, 3.0), tmp_path / "out", tmp_path / "cache")


@pytest.mark.nightly
def test_fifty_interrupts(command, tmp_path):
    whole = [*command, "--point", "60,60", "--out", tmp_path / "all"]
    for _ in range(2):  # the first one also compiles
        before = os.times()
        code, error = interrupt(whole, math.inf, tmp_path / "cache")
        assert code == 0, error
        after = os.times()
    length = sum(after[2:4]) - sum(before[2:4])  # CPU time of the second command
    rng = random.Random(0)
    moments = [rng.uniform(0, 1.1 * length) for _ in range(50)]
    finished = check_interrupts(command, moments, tmp_path / "out", tmp_path / "cache")
    assert finished < 40  # most were interrupted


def test_names_that_a_terminal_cannot_show_are_escaped():
    program = "from semsam_jax.core.ending import run_command\n"
    program += "run_command(lambda: print(chr(0x65e5), chr(0xdce9)))"
    done = start("-c", program, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    out, error = done.communicate(timeout=60)
    assert (done.returncode, out, error) == (0, "\\u65e5 \\udce9\n", "")
