"""Cycles that the TPU compiler estimates for a program, by part of the model.

The compiler writes an estimate beside most instructions of its final program. It writes none for
gathers, scatters, Pallas kernels and collectives, which are listed separately.
"""

import dataclasses
import re
from collections import Counter

from semsam_jax.parallel.arithmetic import Kernel

_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+)[ (].*\{\s*$")
_RESULT = re.compile(r"\s+(?:ROOT )?%?(?P<name>[\w.\-]+) = ")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_SOURCE = re.compile(r'op_name="([^"]*)"')
_WHILE = re.compile(r" while\(.*condition=%?(?P<condition>[\w.\-]+), body=%?(?P<body>[\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_LIMIT = re.compile(r" = s32\[\]\S* constant\((\d+)\)")
_CALLED = re.compile(r" (?:call|conditional)\(.*to_apply=%?([\w.\-]+)")
_OPERANDS = re.compile(r"operand_layout_constraints=\{(.*?\})\}")
_SHAPE = re.compile(r"\b(?P<dtype>[a-z]+\d+)\[(?P<sides>[\d,]*)\]")

PARTS = {
    "backbone": "/backbone/",
    "encoder": "/encoder/",
    "rest of the pixel decoder": "pixel_decoder/",
    "text tower": "text_encoder/",
    "decoder": "decode_",
    "matching costs": "matching_costs",
    "losses": "losses",
    "optimizer": "optimizer",
}
"""Parts of a step, and a part of their operations' names; the first match counts."""
OTHER = "other"


@dataclasses.dataclass(frozen=True)
class Cycles:
    """The compiler's estimates for a program on one chip.

    Attributes:
        parts: estimated cycles, by part.
        kernels: operations without an estimate, each with its part.
        unknown_loops: loops with an unknown trip count; counted once.
    """

    parts: dict[str, float]
    kernels: tuple[tuple[str, Kernel], ...]
    unknown_loops: int


def estimate(text: str) -> Cycles:
    """Adds up a compiled program, given as text; bodies of loops count as often as they run."""
    computations, entry = _computations(text)
    parts: Counter = Counter()
    kernels: list[tuple[str, Kernel]] = []
    unknown = 0
    waiting = [(entry, 1)]
    while waiting:
        name, times = waiting.pop()
        for line in computations.get(name, ()):
            source = found[1] if (found := _SOURCE.search(line)) else ""
            if found := _CYCLES.search(line):
                parts[part_of(source)] += float(found[1]) * times
            elif '"tpu_custom_call"' in line:
                kernels.append((part_of(source), _kernel(line, times)))
            if found := _WHILE.search(line):
                trips = _trips(line, computations.get(found["condition"], []))
                unknown += trips is None
                waiting.append((found["body"], times * (trips or 1)))
            waiting += [(called, times) for called in _CALLED.findall(line)]
    return Cycles(dict(parts), tuple(kernels), unknown)


def count_instructions(text: str) -> Counter:
    """Instructions of a compiled program by part, those inside fusions and loops once each."""
    return Counter(
        part_of(found[1]) for line in text.splitlines() if (found := _SOURCE.search(line))
    )


def part_of(source: str) -> str:
    """Part of the model that an operation belongs to, by the name that tracing gave it."""
    return next((part for part, sign in PARTS.items() if sign in source), OTHER)


def _trips(loop: str, condition: list[str]) -> int | None:
    """How often a loop runs: as the compiler says or, in programs for TPUs, where it does not, by
    the limit of the counter, which `jax.lax.scan` starts at 0 and raises by 1. None if unknown.
    """
    if said := _TRIPS.search(loop):
        return int(said[1])
    limits = [found[1] for line in condition if (found := _LIMIT.search(line))]
    is_below = any("ROOT" in line and "direction=LT" in line for line in condition)
    return int(limits[0]) if is_below and len(limits) == 1 else None


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Lines of each computation, and the name of the one that is run."""
    found: dict[str, list[str]] = {}
    entry = current = ""
    for line in text.splitlines():
        head = None if line.startswith(" ") else _COMPUTATION.match(line)
        if head:
            current = head["name"]
            found[current] = []
            entry = current if head["entry"] else entry
        elif current and line.startswith("  "):
            found[current].append(line)
    return found, entry


def _kernel(line: str, times: int) -> Kernel:
    name = _RESULT.match(line)["name"]
    operands = _SHAPE.findall(_OPERANDS.search(line)[1])
    shapes = tuple(tuple(int(n) for n in sides.split(",") if n) for _, sides in operands)
    return Kernel(name, shapes, times)
