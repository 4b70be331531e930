"""Which outputs of a traced program depend on none of its inputs."""

import jax
from jax.extend.core import Jaxpr, Literal

_CALLS = ("jit", "closed_call", "remat2", "checkpoint", "custom_jvp_call", "custom_vjp_call")


def constant_outputs(jaxpr: Jaxpr) -> list[jax.core.AbstractValue]:
    """Shapes of the outputs that are the same whatever goes in, arrays of one number left out.

    What comes out of a loop counts as depending on what goes into it.
    """
    depends = _depends(jaxpr, [True] * len(jaxpr.invars))
    outputs = zip(jaxpr.outvars, depends, strict=True)
    return [var.aval for var, does in outputs if not does and var.aval.size > 1]


def _depends(jaxpr: Jaxpr, inputs: list[bool]) -> list[bool]:
    """Whether each output depends on an input that counts."""
    known = dict(zip(jaxpr.invars, inputs, strict=True))

    def of(var) -> bool:
        return not isinstance(var, Literal) and known.get(var, False)

    for equation in jaxpr.eqns:
        given = [of(var) for var in equation.invars]
        inner = _body(equation)
        if inner is not None and len(inner.invars) == len(given):
            found = _depends(inner, given)
        else:
            found = [any(given)] * len(equation.outvars)
        known.update(zip(equation.outvars, found, strict=True))
    return [of(var) for var in jaxpr.outvars]


def _body(equation) -> Jaxpr | None:
    if equation.primitive.name not in _CALLS:
        return None
    for name in ("jaxpr", "call_jaxpr"):
        if name in equation.params:
            return getattr(equation.params[name], "jaxpr", equation.params[name])
    return None
