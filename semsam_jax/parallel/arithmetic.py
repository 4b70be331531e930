"""Arithmetic of a traced program of the whole mesh, before partitioning."""

import dataclasses
from collections import Counter
from collections.abc import Iterable

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A Pallas kernel in a program.

    Attributes:
        name: holds the name that it was given, such as "deform_attention_forward".
        operands: shapes of what it takes.
        times: how often it runs.
    """

    name: str
    operands: tuple[tuple[int, ...], ...]
    times: int


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """Operation counts of a program; loop bodies count as often as they run.

    Pallas kernels are listed separately, since their work depends on the data.

    Attributes:
        products: multiplications and additions of matrix products and convolutions, by dtype and
            precision: "bfloat16", "float32" (the backend's default), "float32 highest".
        repeated: those that recompute the forward pass in the backward pass.
        gathered: rows read by gathers.
        scattered: rows written or added by scatters.
        kernels: Pallas kernels, those with equal names and shapes together.
    """

    products: dict[str, float]
    repeated: float = 0.0
    gathered: float = 0.0
    scattered: float = 0.0
    kernels: tuple[Kernel, ...] = ()

    @property
    def total(self) -> float:
        """All products."""
        return sum(self.products.values(), 0.0)

    @property
    def useful(self) -> float:
        """Products without recomputation."""
        return self.total - self.repeated


def count(jaxpr: ClosedJaxpr) -> Arithmetic:
    """Counts a traced program.

    A rematerialised backward pass repeats each product of the forward pass once and has two more
    for its gradients, so a third of it is recomputation.
    """
    return _as_arithmetic(_count(jaxpr.jaxpr))


def add(parts: Iterable[tuple[Arithmetic, int]]) -> Arithmetic:
    """Adds up programs, each as often as it is run."""
    total: Counter = Counter()
    for part, times in parts:
        total.update({("product", name): n * times for name, n in part.products.items()})
        total.update({("kernel", k.name, k.operands): k.times * times for k in part.kernels})
        for name in ("repeated", "gathered", "scattered"):
            total[name] += getattr(part, name) * times
    return _as_arithmetic(total)


def _as_arithmetic(counts: Counter) -> Arithmetic:
    products = {name[1]: float(n) for name, n in counts.items() if name[0] == "product"}
    rest = (float(counts[name]) for name in ("repeated", "gathered", "scattered"))
    kernels = (Kernel(*key[1:], times=n) for key, n in counts.items() if key[0] == "kernel")
    return Arithmetic(products, *rest, kernels=tuple(kernels))


def _count(jaxpr: Jaxpr) -> Counter:
    """Keys are fields of `Arithmetic`, ("product", kind) and ("kernel", name, operands)."""
    counts: Counter = Counter()
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name in ("dot_general", "conv_general_dilated"):
            of = _of_dot if name == "dot_general" else _of_convolution
            counts["product", _kind(equation)] += of(equation)
        elif name == "gather":
            row = np.prod(params["slice_sizes"], dtype=float)
            counts["gathered"] += equation.outvars[0].aval.size / max(row, 1.0)
        elif name.startswith("scatter"):
            indices = equation.invars[1].aval
            counts["scattered"] += indices.size / max(indices.shape[-1], 1)
        elif name == "pallas_call":
            operands = tuple(tuple(operand.aval.shape) for operand in equation.invars)
            counts["kernel", params["name"], operands] += 1
        else:
            inner = sum((_count(one) for one in _inner(params)), Counter())
            times = params["length"] if name == "scan" else 1
            counts.update({key: n * times for key, n in inner.items()})
            if name in ("checkpoint", "remat2") and params["differentiated"]:
                products = sum(n for key, n in inner.items() if key[0] == "product")
                # Inner programs have counted their own recomputation, which is part of this.
                counts["repeated"] += products / 3 - inner["repeated"]
    return counts


def _kind(equation) -> str:
    """Dtype of the operands, and the precision if it is not the backend's default."""
    dtype = equation.invars[0].aval.dtype.name
    precision = equation.params["precision"]
    first = precision[0] if isinstance(precision, tuple) else precision
    asked = getattr(first, "name", str(first)).lower()
    return dtype if first is None or asked == "default" else f"{dtype} {asked}"


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
    return 2.0 * float(np.prod(equation.outvars[0].aval.shape, dtype=float)) * float(depth)


def _of_convolution(equation) -> float:
    kernel = equation.invars[1].aval.shape
    features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    per_output = float(np.prod(kernel, dtype=float)) / features
    return 2.0 * float(np.prod(equation.outvars[0].aval.shape, dtype=float)) * per_output
