"""Estimates how long a step takes on a TPU from the compiler's figures. Nothing here is measured.

The compiler estimates the cycles of most instructions. The rest:

* the kernels of deformable attention: bundles of the compiler's final schedule (a core issues one
  in a cycle) times the steps that they take, which follow the spread of the samples. `SCHEDULES`
  is what `python -m benchmarks.kernel_schedule` prints;
* gathered and scattered rows: `ROW_CYCLES` each, an assumption;
* collectives, the host and waiting for memory beyond what the compiler plans: left out.
"""

import dataclasses
import math

from semsam_jax.ops.deform_attention.matmul_tiles import Plan, make_plan
from semsam_jax.parallel import cycles
from semsam_jax.parallel.arithmetic import Arithmetic, Kernel

ROW_CYCLES = 5.0
SPREADS = {"start": 0.11, "2 px": 0.21, "5 px": 0.36, "10 px": 0.57, "anywhere": 1.0}
"""Share of the rows of a 1024 px pyramid that a tile's samples touch (`touched_rows`).

At the start of training, with normal noise of so many pixels around that, and at worst. A run logs
its own as `encoder/touched_rows`; no run of this size has been made.
"""
ASSUMED = "5 px"
KERNELS = ("deform_attention_forward", "deform_attention_backward")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Bundles of one kernel, on one kind of chip, for bfloat16 and 32 channels a head.

    Attributes:
        steps: of a step of 256 pixels, for levels of 128 or more, 64, 32 and 16 columns.
        rest: of everything else in a grid step.
    """

    steps: tuple[int, int, int, int]
    rest: int

    def cycles(self, plan: Plan, tiles: int, share: float) -> float:
        """Of a whole call, `tiles` on the grid."""
        steps = sum(
            level.num_steps * self.steps[max(0, 7 - int(math.log2(level.padded_width)))]
            for level in plan.levels
        )
        return tiles * (self.rest + share * steps)


@dataclasses.dataclass(frozen=True)
class ChipClock:
    """Conversion of cycles to seconds.

    Attributes:
        hertz: clock that gives the manufacturer's peak rate with all matrix units in use.
        cores: that share the grid of a kernel.
        schedules: of the kernels, in the order of `KERNELS`.
    """

    hertz: float
    cores: int
    schedules: tuple[Schedule, Schedule]


CHIPS = {
    "TPU v5 lite": ChipClock(
        1.5e9, 1, (Schedule((148, 185, 202, 215), 533), Schedule((524, 592, 720, 820), 1972))
    ),
    "TPU v4": ChipClock(
        1.05e9, 2, (Schedule((328, 355, 386, 417), 1025), Schedule((1183, 1355, 1506, 1755), 3142))
    ),
    "TPU v5": ChipClock(
        1.75e9, 2, (Schedule((148, 185, 202, 215), 601), Schedule((524, 589, 720, 820), 2104))
    ),
    "TPU v6 lite": ChipClock(
        1.75e9, 1, (Schedule((164, 169, 180, 216), 469), Schedule((472, 527, 597, 714), 1443))
    ),
}


@dataclasses.dataclass(frozen=True)
class Cost:
    """Estimated cycles of a step on one chip.

    Attributes:
        parts: by part of the model; the kernels are in those that call them.
        kernels: of the kernels alone, for each of `SPREADS`.
        rows: of gathered and scattered rows.
        hertz: clock.
        unknown_loops: loops that count once because the compiler does not know their length.
    """

    parts: dict[str, float]
    kernels: dict[str, float]
    rows: float
    hertz: float
    unknown_loops: int

    def seconds(self, spread: str = ASSUMED) -> float:
        """Of a step."""
        moved = self.kernels[spread] - self.kernels[ASSUMED]
        return (sum(self.parts.values()) + moved + self.rows) / self.hertz

    def lines(self) -> list[str]:
        """The table, as Markdown, with its assumptions."""
        least, most = self.seconds("start"), self.seconds("anywhere")
        shares = sorted(self.parts.items(), key=lambda item: -item[1])
        total = self.seconds()
        return [
            f"Estimated step: {total:.2f} s ({least:.2f} at the start of training, {most:.2f} with "
            f"samples anywhere). Not measured. Assumed: {self.hertz / 1e9:.2f} GHz; samples that "
            f"spread by {ASSUMED} (encoder/touched_rows {SPREADS[ASSUMED]}); {ROW_CYCLES:.0f} "
            "cycles a gathered or scattered row; collectives and host not counted"
            + (f"; {self.unknown_loops} loops counted once." if self.unknown_loops else "."),
            "| part | estimated ms per step | share |",
            "| --- | --- | --- |",
            *(
                f"| {part} | {1e3 * n / self.hertz:.1f} | {100 * n / self.hertz / total:.0f} % |"
                for part, n in [*shares, ("gathered and scattered rows", self.rows)]
            ),
            f"| (kernels of deformable attention, in the parts above) | "
            f"{1e3 * self.kernels[ASSUMED] / self.hertz:.1f} | "
            f"{100 * self.kernels[ASSUMED] / self.hertz / total:.0f} % |",
        ]


def estimate(
    programs: list[tuple[str, int]],
    work: Arithmetic,
    chips: int,
    device_kind: str,
    spatial_shapes: tuple[tuple[int, int], ...],
) -> Cost | None:
    """Adds up the programs of a step.

    Args:
        programs: text of each compiled program, and how often a step runs it.
        work: of the step on all chips.
        chips: over which it is split.
        device_kind: `jax.Device.device_kind`.
        spatial_shapes: (H, W) of the levels that are sampled.

    Returns:
        The estimate, or None for chips whose kernels have no schedule here.
    """
    chip = CHIPS.get(device_kind)
    if chip is None:
        return None
    parts: dict[str, float] = {}
    kernels = dict.fromkeys(SPREADS, 0.0)
    unknown = 0
    for text, runs in programs:
        found = cycles.estimate(text)
        unknown += found.unknown_loops
        for part, n in found.parts.items():
            parts[part] = parts.get(part, 0.0) + n * runs
        for part, kernel in found.kernels:
            for spread in SPREADS:
                n = kernel_cycles(kernel, spread, chip, spatial_shapes) * runs
                kernels[spread] += n
                if spread == ASSUMED:
                    parts[part] = parts.get(part, 0.0) + n
    rows = ROW_CYCLES * (work.gathered + work.scattered) / chips
    return Cost(parts, kernels, rows, chip.hertz, unknown)


def kernel_cycles(
    kernel: Kernel, spread: str, chip: ChipClock, spatial_shapes: tuple[tuple[int, int], ...]
) -> float:
    """Of all runs of a kernel; 0 of one that is not of deformable attention.

    Args:
        kernel: as a program has it.
        spread: key of `SPREADS`; queries that are not pixels may look anywhere in any case.
        chip: value of `CHIPS`.
        spatial_shapes: (H, W) of the levels that are sampled.
    """
    schedule = next(
        (s for name, s in zip(KERNELS, chip.schedules, strict=True) if name in kernel.name), None
    )
    if schedule is None:
        return 0.0
    _, places, weights, table, *_ = kernel.operands
    images, heads, samples, queries = weights
    plan = make_plan(spatial_shapes, samples // len(spatial_shapes))
    pixels = sum(height * width for height, width in spatial_shapes)
    share = SPREADS[spread] if queries >= pixels else 1.0
    tiles = images * heads * (places[-1] // plan.queries)
    channels = table[2] / 32
    return kernel.times * channels * schedule.cycles(plan, tiles, share) / chip.cores
