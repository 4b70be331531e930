"""Where the time to the first step goes, by program and by part of the model.

    python -m benchmarks.compile                             # configs/joint.py, as in the README
    python -m benchmarks.compile -- --config=configs/joint.py --config.data.image_size=128

Starts the run with an empty cache, takes one step and prints what each program cost to trace, lower
and compile, by what JAX itself reports (programs are compiled beside each other and beside the
evaluation, so the sum is more than what one waits for). Then the instructions of the step's
optimised programs, by part of the model. Two starts of one machine differ by a fifth and more:
compare commits in turns.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest import mock

EVENTS = {
    "/jax/core/compile/jaxpr_trace_duration": "trace",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lower",
    "/jax/core/compile/backend_compile_duration": "compile",
}
SMALL = 0.3


def main() -> None:
    """Starts the measured run in a process of its own, with an empty cache."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--warm", action="store_true", help="start once before, to fill the cache")
    parser.add_argument("--no-parts", action="store_true", help="programs alone")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    parser.add_argument("flags", nargs="*", help="after --: flags of semsam_jax.main")
    args = parser.parse_args()
    flags = args.flags or ["--config=configs/joint.py"]
    if args.inside:
        measure(Path(args.inside), flags, not args.no_parts)
        return
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"SEMSAM_JAX_CACHE": f"{folder}/cache"}
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        for start in range(1 + args.warm):
            command = [sys.executable, "-m", "benchmarks.compile", "--inside", f"{folder}/{start}"]
            command += ["--no-parts"] if args.no_parts else []
            subprocess.run([*command, "--", *flags], env=environment, check=True)


def measure(workdir: Path, flags: list[str], parts: bool) -> None:
    """One start up to its first step; prints the tables.

    Args:
        workdir: of the run.
        flags: of `semsam_jax.main`.
        parts: also count the instructions of the step, by part of the model.
    """
    start, cpu = time.perf_counter(), time.process_time()
    from absl import flags as absl_flags
    from ml_collections import config_flags

    from semsam_jax import config as config_lib
    from semsam_jax.core.compilation import use_compilation_cache

    flag = config_flags.DEFINE_config_file("config")
    absl_flags.FLAGS(["benchmarks.compile", *flags])
    config = flag.value
    config.steps = 1
    run = config_lib.build(config)
    use_compilation_cache()

    from semsam_jax.train import loop

    with compile_times() as seconds, _first_step() as first, suppress(FirstStep):
        loop.train(run, workdir)
    wall, own = first["wall"] - start, first["cpu"] - cpu
    print(
        f"first step after {wall:.1f} s, {own:.1f} s of CPU time in this process\n\n"
        "| program | trace s | lower s | compile s |\n| --- | --- | --- | --- |"
    )
    rest = Counter()
    for name, times in sorted(seconds.items(), key=lambda item: -sum(item[1].values())):
        if sum(times.values()) < SMALL:
            rest.update(times)
            rest["programs"] += 1
            continue
        print(f"| `{name}` | " + " | ".join(f"{times[k]:.1f}" for k in EVENTS.values()) + " |")
    print(
        f"| {rest['programs']} others | "
        + " | ".join(f"{rest[k]:.1f}" for k in EVENTS.values())
        + " |"
    )
    if parts:
        print_parts(first["step"])


class FirstStep(Exception):
    """The first step is done."""


@contextmanager
def _first_step():
    """Ends the run behind its first step, and keeps when that was and what it was called with."""
    import jax

    from semsam_jax.train import build

    found: dict = {}

    class OneStep(build.TrainStep):
        def __call__(self, *inputs):
            shapes = jax.tree.map(_shape, inputs)
            jax.block_until_ready(super().__call__(*inputs)[1])
            found.update(wall=time.perf_counter(), cpu=time.process_time(), step=(self, shapes))
            raise FirstStep

    with mock.patch.object(build, "TrainStep", OneStep):
        yield found


def _shape(array):
    import jax

    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)


@contextmanager
def compile_times():
    """Seconds of tracing, lowering and compiling of each program.

    Yields:
        Program -> `trace`, `lower` and `compile` -> seconds; filled while the block lasts.
    """
    from jax import monitoring

    seconds: dict[str, Counter] = {}

    def listen(event: str, duration: float, fun_name: str = "", **_) -> None:
        if event in EVENTS:
            name = fun_name.removeprefix("jit(").removesuffix(")")
            seconds.setdefault(name, Counter())[EVENTS[event]] += duration

    monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seconds
    finally:
        monitoring.unregister_event_duration_listener(listen)


def print_parts(first) -> None:
    """Prints the instructions of both halves of the step, by part.

    Args:
        first: the `TrainStep` and the shapes that it was called with.
    """
    from semsam_jax.parallel.cycles import count_instructions
    from semsam_jax.train import aot

    step, (state, batch, text) = first
    counts = {}
    for half in aot.trace(step, state, batch, text):
        counts[half.name] = count_instructions(half.traced.lower().compile().as_text())
    print("\n| part | " + " | ".join(f"instructions {name}" for name in counts) + " |")
    print("| --- " * (1 + len(counts)) + "|")
    total = sum(counts.values(), Counter())
    for part, _ in total.most_common():
        print(f"| {part} | " + " | ".join(f"{own[part]:,}" for own in counts.values()) + " |")


if __name__ == "__main__":
    main()
