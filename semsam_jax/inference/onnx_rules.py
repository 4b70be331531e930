"""JAX operations as ONNX nodes, for `onnx_graph`.

A rule gets the graph, the operation's parameters, the shapes and dtypes of its results and its
operands, and returns its results.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, SupportsInt

import numpy as np
from jax import lax
from onnx import helper

from semsam_jax.inference.onnx_graph import Graph, Rule, Rules, Value, known, refused


def _result(out: Any, name: str, held: Sequence[SupportsInt] | None = None) -> Value:
    shape = tuple(out.shape)
    return Value(shape, np.dtype(out.dtype), shape if held is None else tuple(held), name)


# Elementwise


def _elementwise(write: Callable[..., str]) -> Rule:
    """A rule for an operation that ONNX broadcasts."""

    def rule(graph: Graph, params: dict, outs: list, *values: Value) -> list[Value]:
        held = np.broadcast_shapes(*(value.held for value in values))
        name = write(graph, params, outs[0], *(graph.tensor(value) for value in values))
        return [_result(outs[0], name, held)]

    return rule


def _plain(operation: str) -> Rule:
    return _elementwise(lambda graph, params, out, *names: graph.node(operation, names))


def _logical(operation: str) -> Rule:
    plain = _plain(operation)

    def rule(graph: Graph, params: dict, outs: list, *values: Value) -> list[Value]:
        if outs[0].dtype != np.bool_:
            raise refused(f"{operation} of integers")
        return plain(graph, params, outs, *values)

    return rule


def _chain(*operations: str) -> Rule:
    """One unary operation after the other."""

    def write(graph: Graph, params: dict, out: Any, name: str) -> str:
        for operation in operations:
            name = graph.node(operation, [name])
        return name

    return _elementwise(write)


def _cast(graph: Graph, params: dict, out: Any, name: str) -> str:
    return graph.node("Cast", [name], to=helper.np_dtype_to_tensor_dtype(np.dtype(out.dtype)))


def _one(graph: Graph, out: Any) -> str:
    return graph.store(np.ones((), out.dtype))


def _integer_pow(graph: Graph, params: dict, out: Any, name: str) -> str:
    if params["y"] == 2:
        return graph.node("Mul", [name, name])
    return graph.node("Pow", [name, graph.store(np.asarray(params["y"], out.dtype))])


def _select(graph: Graph, params: dict, outs: list, which: Value, *cases: Value) -> list[Value]:
    if which.dtype != np.bool_:
        raise refused("select_n of more than two cases")
    rule = _elementwise(lambda g, p, out, c, no, yes: g.node("Where", [c, yes, no]))
    return rule(graph, params, outs, which, *cases)


# Shapes


def _broadcast_in_dim(graph: Graph, params: dict, outs: list, value: Value) -> list[Value]:
    held = [1] * len(params["shape"])
    for axis, place in enumerate(params["broadcast_dimensions"]):
        held[place] = value.held[axis]
    return [graph.reshape(value, held, params["shape"])]


def _reshape(graph: Graph, params: dict, outs: list, value: Value) -> list[Value]:
    shape = tuple(outs[0].shape)
    sides = [n for n in value.shape if n != 1]
    if sides == [n for n in shape if n != 1]:  # axes of one come and go; the others stay lazy
        rest = iter(h for n, h in zip(value.shape, value.held, strict=True) if n != 1)
        return [graph.reshape(value, [1 if n == 1 else next(rest) for n in shape], shape)]
    if value.data is not None:
        return [known(np.broadcast_to(value.data, value.shape).reshape(shape))]
    name = graph.node("Reshape", [graph.whole(value), graph.integers(shape)])
    return [_result(outs[0], name)]


def _transpose(graph: Graph, params: dict, outs: list, value: Value) -> list[Value]:
    order = [int(axis) for axis in params["permutation"]]
    held = [value.held[axis] for axis in order]
    name = graph.node("Transpose", [graph.tensor(value)], perm=order)
    return [_result(outs[0], name, held)]


def _slice(graph: Graph, params: dict, outs: list, value: Value) -> list[Value]:
    starts, ends = params["start_indices"], params["limit_indices"]
    steps = params["strides"] or (1,) * len(starts)
    axes = [
        axis
        for axis, size in enumerate(value.shape)
        if (starts[axis], ends[axis], steps[axis]) != (0, size, 1)
    ]
    name = graph.whole(value)
    if axes:
        lists = ([x[axis] for axis in axes] for x in (starts, ends, range(len(starts)), steps))
        name = graph.node("Slice", [name, *(graph.integers(numbers) for numbers in lists)])
    return [_result(outs[0], name)]


def _pad(graph: Graph, params: dict, outs: list, value: Value, filling: Value) -> list[Value]:
    low, high, inside = zip(*params["padding_config"], strict=True)
    if any(inside):
        raise refused("padding between elements")
    names = [graph.whole(value), graph.integers([*low, *high]), graph.tensor(filling)]
    return [_result(outs[0], graph.node("Pad", names))]


def _concatenate(graph: Graph, params: dict, outs: list, *values: Value) -> list[Value]:
    names = [graph.whole(value) for value in values]
    return [_result(outs[0], graph.node("Concat", names, axis=int(params["dimension"])))]


def _stack(graph: Graph, params: dict, outs: list, *values: Value) -> list[Value]:
    return [_result(outs[0], _stacked(graph, values, int(params["axis"])))]


def _stacked(graph: Graph, values: Sequence[Value], axis: int) -> str:
    axes = graph.integers([axis])
    names = [graph.node("Unsqueeze", [graph.whole(value), axes]) for value in values]
    return graph.node("Concat", names, axis=axis)


def _split(graph: Graph, params: dict, outs: list, value: Value) -> list[Value]:
    names = [graph.whole(value), graph.integers(params["sizes"])]
    if len(outs) == 1:
        return [_result(outs[0], names[0])]
    parts = graph.node("Split", names, outputs=len(outs), axis=int(params["axis"]))
    return [_result(out, part) for out, part in zip(outs, parts, strict=True)]


def _reduce(operation: str) -> Rule:
    def rule(graph: Graph, params: dict, outs: list, value: Value) -> list[Value]:
        names = [graph.whole(value), graph.integers(params["axes"])]
        return [_result(outs[0], graph.node(operation, names, keepdims=0))]

    return rule


# Products


def _dot_general(graph: Graph, params: dict, outs: list, a: Value, b: Value) -> list[Value]:
    (contract_a, contract_b), (batch_a, batch_b) = params["dimension_numbers"]
    free_a = [i for i in range(len(a.shape)) if i not in (*contract_a, *batch_a)]
    free_b = [i for i in range(len(b.shape)) if i not in (*contract_b, *batch_b)]
    if not batch_a and len(b.shape) == 2 and contract_a == (len(a.shape) - 1,):
        second = _moved(graph, b, (*contract_b, *free_b), None)
        return [_result(outs[0], graph.node("MatMul", [graph.whole(a), second]))]

    def size(value: Value, axes: Sequence[SupportsInt]) -> int:
        return int(np.prod([value.shape[i] for i in axes]))

    inner = size(a, contract_a)
    first = _moved(
        graph, a, (*batch_a, *free_a, *contract_a), (size(a, batch_a), size(a, free_a), inner)
    )
    second = _moved(
        graph, b, (*batch_b, *contract_b, *free_b), (size(b, batch_b), inner, size(b, free_b))
    )
    name = graph.node("MatMul", [first, second])
    return [_result(outs[0], graph.node("Reshape", [name, graph.integers(outs[0].shape)]))]


def _moved(
    graph: Graph, value: Value, order: Sequence[SupportsInt], shape: Sequence[SupportsInt] | None
) -> str:
    """Tensor with its axes in another order, then in another shape."""
    order = [int(axis) for axis in order]
    if value.data is not None:
        array = np.broadcast_to(value.data, value.shape).transpose(order)
        return graph.store(array if shape is None else array.reshape(shape))
    name = graph.whole(value)
    if order != sorted(order):
        name = graph.node("Transpose", [name], perm=order)
    return name if shape is None else graph.node("Reshape", [name, graph.integers(shape)])


def _convolution(graph: Graph, params: dict, outs: list, x: Value, kernel: Value) -> list[Value]:
    if params["batch_group_count"] != 1 or set(params["lhs_dilation"]) != {1}:
        raise refused("a transposed or batch-grouped convolution")
    places = params["dimension_numbers"]
    low, high = zip(*params["padding"], strict=True)
    name = graph.node(
        "Conv",
        [_moved(graph, x, places.lhs_spec, None), _moved(graph, kernel, places.rhs_spec, None)],
        pads=[int(n) for n in (*low, *high)],
        strides=[int(n) for n in params["window_strides"]],
        dilations=[int(n) for n in params["rhs_dilation"]],
        group=int(params["feature_group_count"]),
    )
    back = [int(axis) for axis in np.argsort(places.out_spec)]
    return [_result(outs[0], graph.node("Transpose", [name], perm=back))]


def _gather(graph: Graph, params: dict, outs: list, table: Value, index: Value) -> list[Value]:
    """Whole rows of a table, by one or several of its axes and any batch axes."""
    numbers, out = params["dimension_numbers"], outs[0]
    batch = tuple(int(i) for i in numbers.operand_batching_dims)
    axes = tuple(int(i) for i in numbers.start_index_map)
    rest = [i for i in range(len(table.shape)) if i not in (*batch, *axes)]
    is_plain = (
        params["mode"] == lax.GatherScatterMode.PROMISE_IN_BOUNDS
        and set(axes) == {int(i) for i in numbers.collapsed_slice_dims}
        and all(params["slice_sizes"][i] == table.shape[i] for i in rest)
        and tuple(numbers.start_indices_batching_dims) == tuple(range(len(batch)))
        and tuple(numbers.offset_dims) == tuple(range(len(out.shape)))[len(out.shape) - len(rest) :]
    )
    if not is_plain:
        raise refused("indexing other than of whole rows that are promised to exist")
    sizes = [table.shape[i] for i in (*batch, *axes)]
    strides = np.cumprod([1, *sizes[:0:-1]])[::-1].astype(np.int32)
    rows = _moved(
        graph, table, (*batch, *axes, *rest), (int(np.prod(sizes)), *(table.shape[i] for i in rest))
    )
    lead = index.shape[:-1]
    own = np.zeros((1,) * len(lead), np.int32)  # what the batch axes add
    for axis in range(len(batch)):
        steps = np.arange(sizes[axis], dtype=np.int32) * strides[axis]
        own = own + steps.reshape([-1 if i == axis else 1 for i in range(len(lead))])
    last = graph.integers([len(lead)])
    if len(axes) == 1:
        place = graph.node("Squeeze", [graph.whole(index), last])
    else:
        place = graph.node("Mul", [graph.whole(index), graph.store(strides[len(batch) :])])
        place = graph.node("ReduceSum", [place, last], keepdims=0)
    if own.any():
        place = graph.node("Add", [place, graph.store(own)])
    return [_result(out, graph.node("Gather", [rows, place], axis=0))]


# Operations that hold others


def _inline(key: str) -> Rule:
    def rule(graph: Graph, params: dict, outs: list, *values: Value) -> list[Value]:
        inner = params[key]
        if hasattr(inner, "consts"):
            return graph.run(inner.jaxpr, inner.consts, values)
        return graph.run(inner, (), values)

    return rule


def _scan(graph: Graph, params: dict, outs: list, *values: Value) -> list[Value]:
    num_constants, num_carried = params["num_consts"], params["num_carry"]
    constants = values[:num_constants]
    carried = list(values[num_constants : num_constants + num_carried])
    sequences = values[num_constants + num_carried :]
    steps = range(params["length"])
    collected: list[list[Value]] = [[] for _ in outs[num_carried:]]
    for step in reversed(steps) if params["reverse"] else steps:
        own = [_at(graph, sequence, step) for sequence in sequences]
        body = params["jaxpr"]
        results = graph.run(body.jaxpr, body.consts, [*constants, *carried, *own])
        carried = results[:num_carried]
        for values_so_far, result in zip(collected, results[num_carried:], strict=True):
            values_so_far.append(result)
    stacked = []
    for out, parts in zip(outs[num_carried:], collected, strict=True):
        parts = parts[::-1] if params["reverse"] else parts
        stacked.append(_result(out, _stacked(graph, parts, 0)))
    return [*carried, *stacked]


def _at(graph: Graph, sequence: Value, step: int) -> Value:
    """One element of what a loop runs over."""
    shape, held = sequence.shape[1:], sequence.held[1:]
    place = step if sequence.held[0] > 1 else 0
    if sequence.data is not None:
        return Value(shape, sequence.dtype, held, data=sequence.data[place])
    index = graph.store(np.asarray(place, np.int64))
    name = graph.node("Gather", [sequence.name, index], axis=0)
    return Value(shape, sequence.dtype, held, name)


def _same(graph: Graph, params: dict, outs: list, *values: Value) -> list[Value]:
    return [
        dataclasses.replace(value, shape=tuple(out.shape))
        for value, out in zip(values, outs, strict=True)
    ]


_ELEMENTWISE: dict[str, Rule] = {
    "add": _plain("Add"),
    "sub": _plain("Sub"),
    "mul": _plain("Mul"),
    "div": _plain("Div"),
    "max": _plain("Max"),
    "min": _plain("Min"),
    "pow": _plain("Pow"),
    "neg": _plain("Neg"),
    "abs": _plain("Abs"),
    "sign": _plain("Sign"),
    "floor": _plain("Floor"),
    "exp": _plain("Exp"),
    "log": _plain("Log"),
    "sin": _plain("Sin"),
    "cos": _plain("Cos"),
    "tanh": _plain("Tanh"),
    "erf": _plain("Erf"),
    "sqrt": _plain("Sqrt"),
    "logistic": _plain("Sigmoid"),
    "rsqrt": _chain("Sqrt", "Reciprocal"),
    "square": _elementwise(lambda g, p, out, x: g.node("Mul", [x, x])),
    "integer_pow": _elementwise(_integer_pow),
    "log1p": _elementwise(lambda g, p, out, x: g.node("Log", [g.node("Add", [x, _one(g, out)])])),
    "erfc": _elementwise(lambda g, p, out, x: g.node("Sub", [_one(g, out), g.node("Erf", [x])])),
    "lt": _plain("Less"),
    "le": _plain("LessOrEqual"),
    "gt": _plain("Greater"),
    "ge": _plain("GreaterOrEqual"),
    "eq": _plain("Equal"),
    "ne": _elementwise(lambda g, p, out, *x: g.node("Not", [g.node("Equal", x)])),
    "and": _logical("And"),
    "or": _logical("Or"),
    "not": _logical("Not"),
    "select_n": _select,
    "convert_element_type": _elementwise(_cast),
    "clamp": _elementwise(lambda g, p, out, a, x, b: g.node("Min", [g.node("Max", [x, a]), b])),
}

_OTHERS: dict[str, Rule] = {
    "transpose": _transpose,
    "slice": _slice,
    "pad": _pad,
    "concatenate": _concatenate,
    "stack": _stack,
    "split": _split,
    "reduce_sum": _reduce("ReduceSum"),
    "reduce_max": _reduce("ReduceMax"),
    "reduce_min": _reduce("ReduceMin"),
    "dot_general": _dot_general,
    "conv_general_dilated": _convolution,
    "gather": _gather,
}

_STRUCTURAL: dict[str, Rule] = {
    "broadcast_in_dim": _broadcast_in_dim,
    "reshape": _reshape,
    "squeeze": _reshape,
    "expand_dims": _reshape,
    "stop_gradient": _same,
    "copy": _same,
    "optimization_barrier": _same,
    "jit": _inline("jaxpr"),
    "checkpoint": _inline("jaxpr"),
    "custom_jvp_call": _inline("call_jaxpr"),
    "custom_vjp_call": _inline("call_jaxpr"),
    "scan": _scan,
}

RULES = Rules(_ELEMENTWISE, _OTHERS, _STRUCTURAL)
