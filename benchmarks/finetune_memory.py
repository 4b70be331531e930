"""Memory of fine-tuning by mode and rows a step: the table of docs/finetune.md.

    python -m benchmarks.finetune_memory                       # lite at 384 px, as compiled here
    python -m benchmarks.finetune_memory --preset swin_t --image_size 1024 --trace_only \
        --set model.dtype=bfloat16 model.remat=full

`state` is what stays on the device: parameters, optimiser state, averaged parameters
and the batch. `kept` is what the forward program leaves for the backward one; both are exact, by
the shapes of the traced step. `peak` is the compiler's plan for this machine's devices: everything,
with the temporary arrays of the fuller of the two programs. Nothing is run.
"""

import argparse

import jax
import jax.extend

from configs import finetune
from semsam_jax import config as config_lib
from semsam_jax.parallel import program
from semsam_jax.parallel.mesh import build_mesh
from semsam_jax.train import aot, build
from semsam_jax.train.abstract import abstract_inputs

NUM_NAMES = 10
_MIB = 2**20


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="lite")
    parser.add_argument("--image_size", type=int, default=384)
    parser.add_argument("--modes", nargs="+", default=list(finetune.FROZEN))
    parser.add_argument(
        "--rows", nargs="+", default=["4+2", "2+1", "1+1"], help="interactive + generic rows"
    )
    parser.add_argument("--trace_only", action="store_true", help="compile nothing: no peak")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="of the recipe")
    args = parser.parse_args()
    print("| preset | mode | rows | state, MiB | kept, MiB | peak, MiB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for mode in args.modes:
        for rows in args.rows:
            found = measure(run_of(args, mode, rows), is_traced=args.trace_only)
            cells = [f"{n / _MIB:,.0f}" if n is not None else "" for n in found]
            print(f"| {args.preset} | {mode} | {rows} | " + " | ".join(cells) + " |", flush=True)


def run_of(args: argparse.Namespace, mode: str, rows: str) -> config_lib.RunConfig:
    """The run of a mode, as if its checkpoint had been one of `args.preset`.

    Args:
        args: of the command.
        mode: one of `finetune.FROZEN`.
        rows: interactive and generic rows a step, such as `4+2`.
    """
    config = finetune.get_config(mode)
    interactive, _, generic = rows.partition("+")
    config.model.preset, config.data.image_size = args.preset, args.image_size
    config.text.source, config.loss.from_checkpoint = "table", False
    if args.preset != "lite":
        config.text.source = "encoder"
    config.eval_suites = ("one_click",)
    config.data.interactive_batch, config.data.generic_batch = int(interactive), int(generic)
    for item in args.set:
        key, _, value = item.partition("=")
        config.update_from_flattened_dict({key: value})
    return config_lib.build(config)


def measure(run: config_lib.RunConfig, is_traced: bool) -> tuple[int, int, int | None]:
    """Memory of a training step on one device.

    Args:
        run: the configuration.
        is_traced: compile nothing.

    Returns:
        Bytes of the state, of what is kept between the programs, and at the fullest moment (None
        if nothing was compiled).
    """
    mesh = build_mesh(devices=jax.devices()[:1])
    model = build.build_model(run)
    tx = build.build_tx(run, model)
    step = build.build_step(run, model, tx, mesh, NUM_NAMES)
    inputs = abstract_inputs(run, model, tx, mesh, NUM_NAMES, NUM_NAMES)
    state = size_of((inputs.state, inputs.batch, inputs.text))
    ((name, part, times),) = step.parts(inputs.batch)
    forward = aot.trace_forward(step, name, inputs.state, part, inputs.text, times)
    kept = size_of_new(forward.traced.jaxpr.jaxpr)
    if is_traced:
        return state, kept, None
    compiled = forward.traced.lower().compile()
    first = program.memory(compiled)
    given = aot.placed_outputs(forward, compiled)
    second = program.memory(
        aot.trace_backward(step, name, inputs.state, given, part, times).traced.lower().compile()
    )
    return state, kept, state + max(first.outputs + first.temporary, second.peak - state)


def size_of_new(jaxpr: jax.extend.core.Jaxpr) -> int:
    """Bytes of the results that are none of the arguments, as parameters are, each once."""
    given = set(jaxpr.invars)
    new = {var for var in jaxpr.outvars if isinstance(var, jax.extend.core.Var)} - given
    return size_of([var.aval for var in new])


def size_of(tree: object) -> int:
    """Bytes of all arrays of a tree."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


if __name__ == "__main__":
    main()
