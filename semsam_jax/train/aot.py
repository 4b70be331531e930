"""Traces the two programs of a training step on shapes, and counts their operations.

Everything works on `jax.ShapeDtypeStruct`s, so neither the devices nor the arrays of a run
have to exist.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from semsam_jax.core.structs import Assignment, Costs, StreamBatch
from semsam_jax.parallel import arithmetic, hardware
from semsam_jax.parallel.arithmetic import Arithmetic
from semsam_jax.parallel.mesh import batch_sharding, replicated
from semsam_jax.train.state import TrainState
from semsam_jax.train.step import TextInputs, TrainStep


@dataclasses.dataclass(frozen=True)
class TracedProgram:
    """One traced program of a step.

    Attributes:
        name: "forward", "backward" or "accumulate"; with its stream if they run separately.
        traced: what `jax.jit(...).trace` gave.
        times: how often a step runs it.
    """

    name: str
    traced: jax.stages.Traced
    times: int


def model_flops(
    step: TrainStep, state: TrainState, batch: StreamBatch, text: TextInputs
) -> float | None:
    """FLOP of a step without recomputation, or None on devices of unknown speed.

    Tracing takes seconds, and without a peak rate the figure is of little use.
    """
    if hardware.chip(jax.devices()[0]) is None:
        return None
    return count(trace(step, state, batch, text)).useful


def count(programs: list[TracedProgram]) -> Arithmetic:
    """Work of all programs of a step."""
    return arithmetic.add((arithmetic.count(stage.traced.jaxpr), stage.times) for stage in programs)


def trace(
    step: TrainStep, state: TrainState, batch: StreamBatch, text: TextInputs
) -> list[TracedProgram]:
    """Traces both programs of every kind of micro-batch.

    Inputs of the backward program have the shapes of the forward program's outputs, whose sharding
    is known only once that is compiled.
    """
    programs = []
    for name, part, times in step.parts(batch):
        forward = trace_forward(step, name, state, part, text, times)
        programs += [
            forward,
            trace_backward(step, name, state, forward.traced.out_info, part, times),
        ]
    return programs


def placed_outputs(stage: TracedProgram, compiled: jax.stages.Compiled) -> tuple:
    """Outputs of a program as shapes, with the sharding that the compiler chose."""
    return jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
        stage.traced.out_info,
        compiled.output_shardings,
    )


def trace_forward(
    step: TrainStep, name: str, state: TrainState, part: StreamBatch, text: TextInputs, times: int
) -> TracedProgram:
    """Traces the network and its costs."""
    return TracedProgram(
        f"forward{name}", step.forward.trace(state.params, state.step, part, text), times
    )


def trace_backward(
    step: TrainStep, name: str, state: TrainState, given: tuple, part: StreamBatch, times: int
) -> TracedProgram:
    """Traces the program after the matching.

    Args:
        step: the step.
        name: of the micro-batch.
        state: of the run.
        given: (outputs, pull-back, costs) as shapes.
        part: the micro-batch.
        times: how often a step runs it.
    """
    outputs, vjp_fn, costs = given
    rest = (outputs, vjp_fn, abstract_assignment(step.mesh, costs), part)
    if step.is_whole:
        return TracedProgram("backward", step.backward.trace(state, *rest), times)
    accumulate = step.accumulate.trace(state.params, *rest, state.step)
    return TracedProgram(f"accumulate{name}", accumulate, times)


def abstract_assignment(mesh: Mesh, costs: Costs) -> Assignment:
    """Shapes of the assignments for some costs, sharded like the batch."""
    rows = batch_sharding(mesh)

    def answer(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=rows)

    tokens = queries = None
    counted = 0
    if costs.prompts is not None:
        b, p, _, t = costs.prompts.shape
        tokens, counted = answer(b, p, t), counted + b
    if costs.queries is not None:
        b, layers, _, n = costs.queries.shape
        queries, counted = answer(b, layers, n), counted + b
    nothing = jax.ShapeDtypeStruct((1,), jnp.int32, sharding=replicated(mesh))
    return Assignment(tokens, queries, answer(counted) if counted else nothing)
