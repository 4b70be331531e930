"""A traced JAX function as an ONNX model.

The function is traced to a jaxpr and its operations are translated one by one (`onnx_rules`).
Shapes are fixed. What depends on no input (parameters in another layout, masks of windows,
positions) is computed here and stored; loops are written out, once for each iteration.

Broadcasts stay unwritten as long as possible: ONNX broadcasts the operands of an elementwise
operation itself, so a `Value` keeps the tensor as it was before.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, SupportsInt

import jax.numpy as jnp
import numpy as np
import onnx
from jax.extend import core
from onnx import helper, numpy_helper

from semsam_jax.core.errors import ConfigError

OPSET = 18
IR_VERSION = 9
"""Both are read by onnxruntime 1.17 and onnxruntime-web 1.17, and everything later."""


@dataclasses.dataclass(frozen=True)
class Value:
    """A value of the traced function.

    Attributes:
        shape: as traced.
        dtype: as traced.
        held: shape of the tensor that stands for it: that of the value, with ones where
            it repeats.
        name: of the tensor; "" if it is known.
        data: the tensor, if it depends on no input.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    held: tuple[int, ...]
    name: str = ""
    data: np.ndarray | None = None


def known(array: Any) -> Value:
    """A value that depends on no input."""
    array = np.asarray(array)
    return Value(array.shape, array.dtype, array.shape, data=array)


Rule = Callable[..., list[Value]]
"""`(graph, parameters of the operation, shapes of its results, *operands) -> results`."""


@dataclasses.dataclass(frozen=True)
class Rules:
    """How operations are written, by their names in a jaxpr.

    Attributes:
        elementwise: on operands that broadcast; computed here if all operands are known.
        others: computed here if all operands are known.
        structural: always written by the rule itself, which deals with known operands.
    """

    elementwise: dict[str, Rule]
    others: dict[str, Rule]
    structural: dict[str, Rule]


class Graph:
    """Nodes and stored tensors of a model under construction."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self.nodes: list[onnx.NodeProto] = []
        self._stored: dict[str, np.ndarray] = {}
        self._names: dict[tuple, str] = {}

    def node(self, operation: str, inputs: Sequence[str], outputs: int = 1, **attributes) -> Any:
        """Adds a node; returns the name of its output, or a list of names if there are several."""
        first = len(self.nodes)
        names = [f"{operation}_{first}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(operation, inputs, names, **attributes))
        return names[0] if outputs == 1 else names

    def store(self, array: np.ndarray) -> str:
        """Name of a stored tensor; equal ones are stored once."""
        array = np.ascontiguousarray(array)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._names:
            self._names[key] = f"stored_{len(self._names)}"
            self._stored[self._names[key]] = array
        return self._names[key]

    def integers(self, numbers: Sequence[SupportsInt]) -> str:
        """A stored list of int64, as shapes and axes are given to nodes."""
        return self.store(np.array([int(n) for n in numbers], np.int64))

    def tensor(self, value: Value) -> str:
        """Name of the tensor that stands for a value, of shape `value.held`."""
        return value.name if value.data is None else self.store(value.data)

    def whole(self, value: Value) -> str:
        """Name of a tensor of the value's own shape."""
        name = self.tensor(value)
        if value.held == value.shape:
            return name
        return self.node("Expand", [name, self.integers(value.shape)])

    def reshape(
        self, value: Value, held: Sequence[SupportsInt], shape: Sequence[SupportsInt]
    ) -> Value:
        """A value of another shape whose tensor holds the same numbers in the same order."""
        held, shape = tuple(int(n) for n in held), tuple(int(n) for n in shape)
        if value.data is not None:
            return Value(shape, value.dtype, held, data=value.data.reshape(held))
        if held == value.held:
            return dataclasses.replace(value, shape=shape)
        name = self.node("Reshape", [value.name, self.integers(held)])
        return Value(shape, value.dtype, held, name)

    def run(
        self, jaxpr: core.Jaxpr, constants: Sequence[Any], inputs: Sequence[Value]
    ) -> list[Value]:
        """Adds the operations of a jaxpr; returns its results.

        Raises:
            ConfigError: an operation has no rule.
        """
        rules, values = self._rules, {}
        written = rules.elementwise | rules.others | rules.structural

        def read(x: core.Var | core.Literal) -> Value:
            if isinstance(x, core.Literal):
                return known(np.asarray(x.val, x.aval.dtype))
            return values[x]

        values.update(zip(jaxpr.constvars, map(known, constants), strict=True))
        values.update(zip(jaxpr.invars, inputs, strict=True))
        for equation in jaxpr.eqns:
            operands, name = [read(x) for x in equation.invars], equation.primitive.name
            if name not in rules.structural and all(x.data is not None for x in operands):
                results = _computed(equation, operands, name in rules.elementwise)
            elif name in written:
                shapes = [x.aval for x in equation.outvars]
                results = written[name](self, equation.params, shapes, *operands)
            else:
                raise refused(f"the operation {name!r}")
            values.update(zip(equation.outvars, results, strict=True))
        return [read(x) for x in jaxpr.outvars]

    def model(
        self, inputs: dict[str, Any], outputs: dict[str, Value], about: str
    ) -> onnx.ModelProto:
        """The finished model; what no output depends on is left out.

        Args:
            inputs: shape and dtype of each, by name.
            outputs: by name.
            about: name of the graph.
        """
        results = {}
        for name, value in outputs.items():
            self.nodes.append(helper.make_node("Identity", [self.whole(value)], [name]))
            results[name] = helper.make_tensor_value_info(name, _kind(value.dtype), value.shape)
        used, nodes = set(outputs), []
        for node in reversed(self.nodes):
            if used.intersection(node.output):
                used.update(node.input)
                nodes.append(node)
        stored = [
            numpy_helper.from_array(array, name)
            for name, array in self._stored.items()
            if name in used
        ]
        graph = helper.make_graph(
            nodes[::-1],
            about,
            [helper.make_tensor_value_info(n, _kind(x.dtype), x.shape) for n, x in inputs.items()],
            list(results.values()),
            stored,
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="semsam_jax",
        )
        onnx.checker.check_model(model)
        return model


def refused(what: str) -> ConfigError:
    """The error about what a network does and cannot be written."""
    return ConfigError(
        f"export: {what} has no ONNX form in this package; export with --format stablehlo."
    )


def _computed(equation: Any, operands: list[Value], is_elementwise: bool) -> list[Value]:
    """Results of an operation on known values, by JAX itself."""
    shapes = [x.held if is_elementwise else x.shape for x in operands]
    if is_elementwise:
        shapes = [np.broadcast_shapes(*shapes)] * len(operands)
    arrays = [
        jnp.asarray(np.broadcast_to(x.data, s)) for x, s in zip(operands, shapes, strict=True)
    ]
    found = equation.primitive.bind(*arrays, **equation.params)
    results = found if equation.primitive.multiple_results else [found]
    return [
        Value(tuple(out.aval.shape), np.dtype(out.aval.dtype), x.shape, data=np.asarray(x))
        for out, x in zip(equation.outvars, results, strict=True)
    ]


def _kind(dtype: np.dtype) -> int:
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
