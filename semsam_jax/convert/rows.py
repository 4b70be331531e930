"""Rules that map groups of original tensors to parameters."""

import enum
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np


class TensorLayout(enum.Enum):
    """How an original tensor is converted to a parameter, and back by the inverse."""

    SAME = "same"
    DENSE = "[out, in] -> [in, out]"
    CONV = "[out, in, kh, kw] -> [kh, kw, in, out]"
    POINTWISE = "[out, in, 1, 1] -> [in, out]"

    def to_ours(self, array: np.ndarray) -> np.ndarray:
        """Reorders an original tensor into flax's layout (a view)."""
        if self is TensorLayout.DENSE:
            return array.T
        if self is TensorLayout.POINTWISE:
            return array[:, :, 0, 0].T
        return array.transpose(2, 3, 1, 0) if self is TensorLayout.CONV else array

    def to_reference(self, array: np.ndarray) -> np.ndarray:
        """Reorders a parameter into PyTorch's layout (a view)."""
        if self is TensorLayout.DENSE:
            return array.T
        if self is TensorLayout.POINTWISE:
            return array.T[:, :, None, None]
        return array.transpose(3, 2, 0, 1) if self is TensorLayout.CONV else array


@dataclass(frozen=True)
class Rule:
    """One parameter and the original tensors that it is made from.

    Attributes:
        path: of the parameter, components joined by "/".
        keys: original names; they are stacked in this order if `is_stacked`.
        layout: reordering of each tensor's axes.
        shape: shape of each original tensor.
        is_stacked: whether the parameter has a leading axis over `keys`.
        aliases: for each key, the other names under which files repeat the same tensor.
        is_required: whether the model needs it.
        initial: value of a scalar that files may lack.
    """

    path: str
    keys: tuple[str, ...]
    layout: TensorLayout
    shape: tuple[int, ...]
    is_stacked: bool = False
    aliases: tuple[tuple[str, ...], ...] = ()
    is_required: bool = True
    initial: float | None = None

    @property
    def part(self) -> str:
        """First component of the path, one of `PARTS`."""
        return self.path.split("/", 1)[0]

    @property
    def our_shape(self) -> tuple[int, ...]:
        """Shape of the parameter."""
        one = self.layout.to_ours(np.broadcast_to(np.float32(0), self.shape)).shape
        return (len(self.keys), *one) if self.is_stacked else one


@dataclass(frozen=True)
class TensorRow:
    """One original parameter inside a module; names are relative to the module."""

    key: str
    path: str
    layout: TensorLayout
    shape: tuple[int, ...]


def mlp_rows(key: str, path: str, sizes: Sequence[int]) -> list[TensorRow]:
    """Linear layers `KEY.layers.0`, `.1`, ... of the given widths."""
    rows: list[TensorRow] = []
    for layer, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
        name, place = join(".", key, f"layers.{layer}"), join("/", path, f"layers_{layer}")
        rows += dense(name, place, n_in, n_out)
    return rows


def dense(
    key: str, path: str, n_in: int, n_out: int, *, bias: bool = True, joint: str = "."
) -> list[TensorRow]:
    """A linear layer; `joint` stands between its name and `weight`."""
    rows = [TensorRow(f"{key}{joint}weight", f"{path}/kernel", TensorLayout.DENSE, (n_out, n_in))]
    if bias:
        rows.append(TensorRow(f"{key}{joint}bias", f"{path}/bias", TensorLayout.SAME, (n_out,)))
    return rows


def conv(
    key: str, path: str, n_in: int, n_out: int, size: int, *, bias: bool = True
) -> list[TensorRow]:
    """A square convolution."""
    rows = [
        TensorRow(f"{key}.weight", f"{path}/kernel", TensorLayout.CONV, (n_out, n_in, size, size))
    ]
    if bias:
        rows.append(TensorRow(f"{key}.bias", f"{path}/bias", TensorLayout.SAME, (n_out,)))
    return rows


def pointwise(key: str, path: str, n_in: int, n_out: int) -> list[TensorRow]:
    """A 1x1 convolution that is a linear layer here."""
    return [
        TensorRow(f"{key}.weight", f"{path}/kernel", TensorLayout.POINTWISE, (n_out, n_in, 1, 1)),
        TensorRow(f"{key}.bias", f"{path}/bias", TensorLayout.SAME, (n_out,)),
    ]


def norm(key: str, path: str, dim: int) -> list[TensorRow]:
    """Scale and bias of a norm."""
    return [
        TensorRow(join(".", key, "weight"), join("/", path, "scale"), TensorLayout.SAME, (dim,)),
        TensorRow(join(".", key, "bias"), join("/", path, "bias"), TensorLayout.SAME, (dim,)),
    ]


def tensor(key: str, path: str, *shape: int) -> list[TensorRow]:
    """A parameter whose axes are not reordered."""
    return [TensorRow(key, path, TensorLayout.SAME, shape)]


def single(
    rows: Iterable[TensorRow], prefix: str, place: str, other_prefixes: Sequence[str] = ()
) -> list[Rule]:
    """Rules of a module that occurs once; its tensors may repeat under other prefixes."""
    return [
        Rule(
            f"{place}/{row.path}",
            (join(".", prefix, row.key),),
            row.layout,
            row.shape,
            aliases=(tuple(f"{other}.{row.key}" for other in other_prefixes),),
        )
        for row in rows
    ]


def stacked(rows: Iterable[TensorRow], prefixes: Sequence[str], place: str) -> list[Rule]:
    """Rules of equal modules whose tensors are stacked in the order of `prefixes`."""
    return [
        Rule(
            f"{place}/{row.path}",
            tuple(f"{prefix}.{row.key}" for prefix in prefixes),
            row.layout,
            row.shape,
            is_stacked=True,
        )
        for row in rows
    ]


def join(joint: str, *names: str) -> str:
    """Joins the names that are not empty."""
    return joint.join(name for name in names if name)
