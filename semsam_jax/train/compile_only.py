"""Reports the memory and operations of a run on a TPU slice, without having one.

    python -m semsam_jax.main --config=configs/joint.py:swin_l --compile_only --topology=v5e:4x4

Both programs of the step are compiled ahead of time by libtpu (in the extra `test`), exactly as
a run on the slice would compile them. The compiler says how many bytes a chip holds; a
program that does not fit is an error of the compiler, and is reported with what it says.
"""

import dataclasses
import json
import os
import re
import time
from pathlib import Path

import jax

from semsam_jax import config as config_lib
from semsam_jax.config import RunConfig
from semsam_jax.core.backend import compiling_for
from semsam_jax.core.errors import ConfigError
from semsam_jax.parallel import hardware, program
from semsam_jax.parallel.arithmetic import Arithmetic
from semsam_jax.parallel.mesh import build_mesh, num_batch_shards
from semsam_jax.train import aot, build, cost_report
from semsam_jax.train import input as input_lib
from semsam_jax.train.abstract import abstract_inputs
from semsam_jax.train.aot import TracedProgram

_MEGACORE = ("v4", "v5p")  # two cores of a chip are one device
_TOPOLOGY = re.compile(r"(?:(?P<slices>[1-9]\d*)\*)?(?P<shape>(?P<kind>v\d\w*):\d+(x\d+)+)$")
_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One program on one chip.

    Attributes:
        name: of the program.
        times: how often a step runs it.
        memory: what the compiler plans, None if it failed.
        collectives: number of each kind; one inside a loop counts once.
        problem: message of the compiler if the program does not fit.
    """

    name: str
    times: int
    memory: program.MemoryUse | None
    collectives: dict[str, int]
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class CompileReport:
    """Requirements of a run on a slice.

    Attributes:
        preset, topology: what was compiled for what.
        mesh: devices along each axis.
        rows_per_chip: interactive and generic rows on a chip.
        programs: both programs, of each micro-batch.
        resident: bytes of parameters, optimiser state and batch on a chip.
        hbm: bytes of a chip, None if unknown.
        flops: arithmetic of a step on all chips, without recomputation.
        repeated_flops: recomputation.
        seconds: time that compiling took.
        work: arithmetic by precision, and rows that are gathered and scattered.
        cost: estimated cycles, None where a program does not fit or the chip is not known.
    """

    preset: str
    topology: str
    mesh: dict[str, int]
    rows_per_chip: tuple[int, int]
    programs: tuple[Compiled, ...]
    resident: int
    hbm: int | None
    flops: float
    repeated_flops: float
    seconds: float
    work: Arithmetic | None = None
    cost: cost_report.Cost | None = None

    @property
    def peak(self) -> int | None:
        """Peak memory of a chip in bytes, None if a program does not fit.

        While a program runs, resident arrays that are not its arguments take memory, too. With
        micro-batches the residuals of the next one are there as well.
        """
        if any(one.memory is None for one in self.programs):
            return None
        ahead = 0
        if sum(one.times for one in self.programs) > 2:
            ahead = max(p.memory.outputs for p in self.programs if p.name.startswith("forward"))
        return self.resident + ahead + max(self._added(one) for one in self.programs)

    def _added(self, one: Compiled) -> int:
        """Upper bound of the memory that a program adds to the resident arrays."""
        memory = one.memory
        if one.name.startswith("forward"):
            return memory.outputs + memory.temporary
        # The residuals are arguments; parameters and optimiser state are counted already.
        return max(memory.peak - self.resident, memory.temporary)

    def to_dict(self) -> dict:
        """Plain values."""
        return dataclasses.asdict(self) | {"peak": self.peak}

    def details(self) -> list[str]:
        """Further figures: arithmetic by precision, moved rows, estimated times."""
        lines = []
        if self.work is not None:
            products = sorted(self.work.products.items(), key=lambda item: -item[1])
            lines.append(
                "TFLOP per step with recomputation: "
                + ", ".join(f"{n / 1e12:.1f} {kind}" for kind, n in products)
                + f". Rows: {self.work.gathered / 1e6:.1f} M gathered, "
                f"{self.work.scattered / 1e6:.1f} M scattered."
            )
        return lines + (self.cost.lines() if self.cost else [])

    def row(self) -> str:
        """One row of the table, as Markdown."""
        chips = self.mesh["data"] * self.mesh["fsdp"]
        peak = "does not fit" if self.peak is None else f"{self.peak / _GIB:.1f}"
        of = "?" if self.hbm is None else f"{self.hbm / _GIB:.0f}"
        counts = [f"{one.name}: {_counted(one)}" for one in self.programs]
        return (
            f"| {self.preset} | {self.topology} ({chips}) | {self.mesh['data']} x "
            f"{self.mesh['fsdp']} | {self.rows_per_chip[0]} + {self.rows_per_chip[1]} | "
            f"{peak} of {of} | {'; '.join(counts)} | {self.flops / 1e12:.0f} "
            f"(+{100 * self.repeated_flops / self.flops:.0f} %) |"
        )


HEADER = """\
| preset | slice (chips) | data x fsdp | rows per chip | GiB per chip | collectives | TFLOP/step |
| --- | --- | --- | --- | --- | --- | --- |"""


def compile_only(run: RunConfig, topology: str, workdir: str | os.PathLike | None) -> CompileReport:
    """Compiles a run's step for a slice, prints the table row and writes it.

    Args:
        run: the run; quotas are those of the whole slice.
        topology: such as "v5e:4x4", "v4:2x2x4", or "2*v5e:16x16" for two slices.
        workdir: where compile_only.json is written, None to print only.

    Raises:
        ConfigError: libtpu is missing, the slice is unknown, or the quotas do not divide.
    """
    start = time.perf_counter()
    print(f"compiling {run.model.preset} for {topology}; full sizes take minutes", flush=True)
    mesh = build_mesh(run.fsdp, slice_devices(topology), run.slices)
    config_lib.check_batch(run, num_batch_shards(mesh))
    vocabulary = input_lib.open_vocabulary(run, input_lib.used_datasets(run))
    model = build.build_model(run)
    tx = build.build_tx(run, model)
    step = build.build_step(run, model, tx, mesh, vocabulary.num_objects)
    inputs = abstract_inputs(run, model, tx, mesh, vocabulary.num_objects, len(vocabulary))
    programs, traced, texts = [], [], []
    with compiling_for("tpu", mesh.devices.flat[0].device_kind):
        for name, part, times in step.parts(inputs.batch):
            first = aot.trace_forward(step, name, inputs.state, part, inputs.text, times)
            given, compiled = _compile(first, texts)
            programs.append(compiled)
            second = aot.trace_backward(step, name, inputs.state, given, part, times)
            traced += [first, second]
            programs.append(_compile(second, texts)[1] if compiled.memory else _skipped(second))
    work = aot.count(traced)
    shards = num_batch_shards(mesh)
    kind = mesh.devices.flat[0].device_kind
    fits = all(one.memory is not None for one in programs)
    shapes = _sampled_levels(run, model.config.pixel_decoder.num_levels)
    report = CompileReport(
        preset=run.model.preset,
        topology=topology,
        mesh=dict(mesh.shape),
        rows_per_chip=(run.data.interactive_batch // shards, run.data.generic_batch // shards),
        programs=tuple(programs),
        resident=_bytes_on_a_chip((inputs.state, inputs.batch, inputs.text)),
        hbm=(chip := hardware.chip(mesh.devices.flat[0])) and chip.memory,
        flops=work.useful,
        repeated_flops=work.repeated,
        seconds=time.perf_counter() - start,
        work=work,
        cost=cost_report.estimate(texts, work, shards, kind, shapes) if fits else None,
    )
    print(f"compiled in {report.seconds:.0f} s\n{HEADER}\n{report.row()}\n", flush=True)
    print("\n".join(report.details()), flush=True)
    if workdir is not None:
        folder = Path(workdir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "compile_only.json").write_text(json.dumps(report.to_dict(), indent=2) + "\n")
    return report


def slice_devices(topology: str) -> list[jax.Device]:
    """Devices of a TPU slice that need not exist.

    Raises:
        ConfigError: libtpu is missing or does not know the slice.
    """
    match = _TOPOLOGY.match(topology)
    if not match:
        raise ConfigError(
            f"--topology: got {topology!r}, expected KIND:SIDES such as v5e:4x4 or v4:2x2x4, "
            f"or SLICES*KIND:SIDES."
        )
    # The compiler needs no TPU, no metadata server, and no lock against other users.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")
    from jax.experimental import topologies

    options = {"chips_per_host_bounds": [2, 2, 1], "num_slices": int(match["slices"] or 1)}
    if match["kind"] in _MEGACORE:
        options["chip_config_name"] = "megacore"
    try:
        described = topologies.get_topology_desc(
            platform="tpu", topology_name=match["shape"], **options
        )
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise ConfigError(
            f"--topology {topology}: {str(error).splitlines()[0]}; sides must be a slice that "
            f"exists, and libtpu must be installed (pip install libtpu)."
        ) from error
    return list(described.devices)


def _sampled_levels(run: RunConfig, num_levels: int) -> tuple[tuple[int, int], ...]:
    """Sizes of the levels of the pixel decoder, strides 8, 16, ..."""
    sides = [-(-run.data.image_size // (8 << level)) for level in range(num_levels)]
    return tuple((side, side) for side in sides)


def _compile(stage: TracedProgram, texts: list[tuple[str, int]]) -> tuple[tuple, Compiled]:
    """Compiles a program and reports it; also returns the outputs as shapes with their shardings.

    The program is appended to `texts`, with how often a step runs it.
    """
    lowered = stage.traced.lower()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print(f"{stage.name}: does not fit: {str(error).splitlines()[0]}", flush=True)
        return lowered.out_info, Compiled(stage.name, stage.times, None, {}, str(error))
    memory = program.memory(compiled)
    one = Compiled(stage.name, stage.times, memory, program.count_collectives(compiled))
    texts.append((compiled.as_text(), stage.times))
    print(
        f"{one.name}: arguments {memory.arguments / _GIB:.2f}, outputs "
        f"{memory.outputs / _GIB:.2f}, temporary {memory.temporary / _GIB:.2f} GiB; "
        f"{_counted(one)}",
        flush=True,
    )
    return aot.placed_outputs(stage, compiled), one


def _skipped(stage: TracedProgram) -> Compiled:
    """A program whose input is the output of one that does not fit: its sharding is unknown."""
    print(f"{stage.name}: not compiled, since what comes before it does not fit", flush=True)
    return Compiled(stage.name, stage.times, None, {}, "not compiled")


def _counted(one: Compiled) -> str:
    if one.memory is None:
        return "not known"
    return ", ".join(f"{n} {name}" for name, n in one.collectives.items()) or "no collective"


def _bytes_on_a_chip(tree: object) -> int:
    total = 0
    for leaf in jax.tree.leaves(tree):
        size = leaf.dtype.itemsize
        for side in leaf.sharding.shard_shape(leaf.shape):
            size *= side
        total += size
    return total
