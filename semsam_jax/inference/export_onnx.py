"""Exported programs as ONNX models, with the parameters in them; `onnx` is in the extra `onnx`."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx

from semsam_jax.inference.export import PREDICTED
from semsam_jax.inference.onnx_graph import Graph, Value, known
from semsam_jax.inference.onnx_rules import RULES
from semsam_jax.inference.programs import Program


def write_model(program: Program, params: Any, file: Path) -> dict[str, list[str]]:
    """Writes a program; returns the names of its inputs and outputs, in order."""
    model = to_onnx(program, params)
    onnx.save_model(model, str(file))
    names = {"inputs": model.graph.input, "outputs": model.graph.output}
    return {key: [one.name for one in values] for key, values in names.items()}


def to_onnx(program: Program, params: Any) -> onnx.ModelProto:
    """Translates a program for float32 parameters.

    Inputs and outputs are named after the program's arguments and results; see `PREDICTED`.

    Raises:
        ConfigError: the program has an operation without a rule.
    """
    arguments = program.inputs
    traced, results = jax.make_jaxpr(program.function, return_shape=True)(
        params, *arguments.values()
    )
    inputs: dict[str, jax.ShapeDtypeStruct] = {}
    for name, argument in arguments.items():
        parts = argument if isinstance(argument, dict) else {name: argument}
        inputs |= {key: parts[key] for key in sorted(parts)}
    operands = [known(np.asarray(leaf)) for leaf in jax.tree.leaves(params)]
    for name, leaf in inputs.items():  # in the order of the traced function's leaves
        operands.append(Value(leaf.shape, np.dtype(leaf.dtype), leaf.shape, name))
    graph = Graph(RULES)
    found = graph.run(traced.jaxpr, traced.consts, operands)
    names = [f"{PREDICTED}{name}" if name in inputs else name for name in sorted(results)]
    return graph.model(inputs, dict(zip(names, found, strict=True)), program.name)
