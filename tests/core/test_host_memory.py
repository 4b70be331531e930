"""Commands reuse the memory of large arrays, unless the user's environment decides otherwise."""

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
{start}
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    data = b"x" * (64 << 20)
    del data
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""
KEEP = "from semsam_jax.core.host_memory import keep_freed_memory\nkeep_freed_memory()"
PAGES = (64 << 20) // 4096


def count_faults(start: str, **variables: str) -> int:
    """Page faults of a second array of 64 MiB, in a process of its own."""
    names = ("MALLOC_", "GLIBC_TUNABLES")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(names)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(start=start)],
        env=environment | variables,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="there is nothing to set")
def test_freed_memory_is_used_again_unless_the_environment_decides() -> None:
    assert count_faults("") > PAGES // 2  # glibc by itself maps the array anew
    assert count_faults(KEEP) < PAGES // 100
    assert count_faults(KEEP, MALLOC_ARENA_MAX="4") > PAGES // 2
    assert count_faults(KEEP, GLIBC_TUNABLES="glibc.malloc.arena_max=4") > PAGES // 2
