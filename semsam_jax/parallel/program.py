"""Collectives and memory of a compiled program."""

import dataclasses
import re
from collections import Counter

import jax

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
_OPERATION = re.compile(
    r"= (?P<type>.+?) (?P<name>" + "|".join(COLLECTIVES) + r")(?:-start)?\(.*", re.MULTILINE
)
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
_ARRAY = re.compile(r"\b[a-z]+\d+[a-z0-9]*\[(?P<sides>[\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a program: its kind and output shapes."""

    name: str
    shapes: tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class MemoryUse:
    """Bytes on one device while a program runs.

    Attributes:
        arguments: inputs.
        outputs: outputs that do not alias an input.
        temporary: everything else.
    """

    arguments: int
    outputs: int
    temporary: int

    @property
    def peak(self) -> int:
        """Upper bound of what the program needs at any moment."""
        return self.arguments + self.outputs + self.temporary


def collectives(compiled: jax.stages.Compiled) -> list[Collective]:
    """Lists the collectives of a compiled program; one inside a loop counts once.

    So does one that the compiler overlaps with computation in several steps, all of which have the
    same channel.
    """
    found, channels = [], set()
    for match in _OPERATION.finditer(compiled.as_text()):
        channel = _CHANNEL.search(match[0])
        if channel and channel[1] in channels:
            continue
        channels |= {channel[1]} if channel else set()
        sides = (array["sides"] for array in _ARRAY.finditer(match["type"]))
        shapes = tuple(tuple(int(n) for n in s.split(",") if n) for s in sides)
        found.append(Collective(match["name"], shapes))
    return found


def count_collectives(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Number of collectives of each kind; kinds that do not occur are left out."""
    counts = Counter(one.name for one in collectives(compiled))
    return {name: counts[name] for name in COLLECTIVES if counts[name]}


def memory(compiled: jax.stages.Compiled) -> MemoryUse:
    """Memory that the compiler plans on one device."""
    stats = compiled.memory_analysis()
    return MemoryUse(
        arguments=stats.argument_size_in_bytes,
        outputs=stats.output_size_in_bytes - stats.alias_size_in_bytes,
        temporary=stats.temp_size_in_bytes,
    )
