"""What a compiled program says about itself: collectives, memory, arithmetic."""

import dataclasses
import re
from collections import Counter

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

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
    """One collective of a program: its kind and the shapes that it puts out."""

    name: str
    shapes: tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device while a program runs.

    Attributes:
        arguments: inputs.
        outputs: outputs that are not written over an input.
        temporary: everything between.
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

    So does one that the compiler spreads over the arithmetic beside it: each of those steps names
    it, all with one channel.
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


def memory(compiled: jax.stages.Compiled) -> Memory:
    """What the compiler plans to hold on one device."""
    stats = compiled.memory_analysis()
    return Memory(
        arguments=stats.argument_size_in_bytes,
        outputs=stats.output_size_in_bytes - stats.alias_size_in_bytes,
        temporary=stats.temp_size_in_bytes,
    )


@dataclasses.dataclass(frozen=True)
class Flops:
    """Multiplications and additions of the matrix products and convolutions of a program.

    Attributes:
        total: all of them; the body of a loop counts as often as it runs.
        repeated: those that only repeat the forward pass inside the backward pass.
    """

    total: float
    repeated: float

    @property
    def useful(self) -> float:
        """What would be left without recomputation."""
        return self.total - self.repeated


def count_flops(jaxpr: ClosedJaxpr) -> Flops:
    """Counts a traced program of the whole mesh, before it is cut into pieces.

    A rematerialised part of the backward pass holds each product of its forward pass once
    and the two products that differentiate it, so a third of it is repetition.
    """
    total, repeated = _count(jaxpr.jaxpr)
    return Flops(total, repeated)


def _count(jaxpr: Jaxpr) -> np.ndarray:
    flops = np.zeros(2)
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            flops[0] += _of_dot(equation)
            continue
        if name == "conv_general_dilated":
            flops[0] += _of_convolution(equation)
            continue
        inner = sum((_count(one) for one in _inner(params)), np.zeros(2))
        if name == "scan":
            inner = inner * params["length"]
        if name in ("checkpoint", "remat2") and params["differentiated"]:
            inner[1] = inner[0] / 3
        flops += inner
    return flops


def _inner(params: dict) -> list[Jaxpr]:
    found = []
    for value in params.values():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(one, ClosedJaxpr):
                found.append(one.jaxpr)
            elif isinstance(one, Jaxpr):
                found.append(one)
    return found


def _of_dot(equation) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    depth = np.prod([left[axis] for axis in contracted], dtype=float)
    return 2.0 * float(np.prod(equation.outvars[0].aval.shape, dtype=float)) * depth


def _of_convolution(equation) -> float:
    kernel = equation.invars[1].aval.shape
    features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    per_output = np.prod(kernel, dtype=float) / features
    return 2.0 * float(np.prod(equation.outvars[0].aval.shape, dtype=float)) * per_output
