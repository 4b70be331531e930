"""What one step of every recipe computes, and the least time that it can take.

    python -m benchmarks.recipes            # the table of docs/recipes.md

Counted on the traced step; nothing is compiled or run, and nobody has measured a step of these
recipes. The times are lower bounds: products at the chip's peak rate (float32 counts as bfloat16 by
default and six times as much where all digits are asked for, as TPUs do), the kernels of deformable
attention by the compiler's schedule with samples spread as assumed, and five cycles a gathered or
scattered row. Copies, norms, windows, collectives and the host come on top:
`--compile_only` estimates some of that, and takes half an hour a row.
"""

import argparse

import jax

from configs import generic_coco, joint, reproduce_sam, sa1b
from semsam_jax import config as config_lib
from semsam_jax.core.backend import compiling_for
from semsam_jax.parallel.arithmetic import Arithmetic
from semsam_jax.parallel.hardware import CHIPS
from semsam_jax.parallel.mesh import build_mesh
from semsam_jax.train import aot, build, cost_report
from semsam_jax.train import input as input_lib
from semsam_jax.train.abstract import abstract_inputs

RECIPES = (
    ("sa1b.py", sa1b, "swin_t"),
    ("sa1b.py", sa1b, "swin_l"),
    ("reproduce_sam.py", reproduce_sam, "swin_l"),
    ("generic_coco.py", generic_coco, "swin_t"),
    ("joint.py", joint, "swin_t"),
    ("joint.py", joint, "swin_l"),
)
MACHINE, KIND, NUM_CHIPS = "v5e-16", "TPU v5 lite", 16
PASSES = {"high": 3, "bf16_bf16_f32_x3": 3, "highest": 6, "bf16_bf16_f32_x6": 6}
"""How often a TPU multiplies for a float32 product of which more is asked than the default."""


def main() -> None:
    """Prints the table."""
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", NUM_CHIPS)  # stand for the chips: nothing runs
    columns = (
        "recipe",
        "rows per step",
        "steps",
        "TFLOP bfloat16 / float32 in 1 pass / float32 in 3 or 6 passes",
        "recomputed",
        "M array rows gathered / scattered",
        f"products, ms on {MACHINE}",
        "kernels, ms",
        "gather and scatter, ms",
        "at least s per step",
        "at least hours",
    )
    print("| " + " | ".join(columns) + " |")
    print("| --- " * len(columns) + "|")
    for file, module, preset in RECIPES:
        run = config_lib.build(module.get_config(preset))
        print(row(f"`{file}:{preset}`", run), flush=True)


def row(name: str, run: config_lib.RunConfig) -> str:
    """One line of the table.

    Args:
        name: of the recipe.
        run: its configuration.
    """
    work = count(run)
    chip, rate = cost_report.CHIPS[KIND], CHIPS[KIND].flops * NUM_CHIPS
    flops = {"bfloat16": 0.0, "float32 once": 0.0, "float32 in passes": 0.0}
    products = 0.0
    for kind, n in work.products.items():
        dtype, _, asked = kind.partition(" ")
        passes = 1 if dtype == "bfloat16" else PASSES.get(asked, 1)
        flops[dtype if dtype == "bfloat16" else _class_of(passes)] += n / 1e12
        products += passes * n / rate
    sides = [-(-run.data.image_size // stride) for stride in (8, 16, 32, 64)]
    shapes = tuple((side, side) for side in sides)
    kernels = sum(
        cost_report.kernel_cycles(kernel, cost_report.ASSUMED, chip, shapes)
        for kernel in work.kernels
    )
    kernels /= chip.hertz  # Each chip runs them on its own rows; all else counts for all chips.
    moved = cost_report.ROW_CYCLES * (work.gathered + work.scattered) / NUM_CHIPS / chip.hertz
    total = products + kernels + moved
    return (
        f"| {name} | {run.data.interactive_batch + run.data.generic_batch} | {run.steps:,} | "
        + " / ".join(f"{n:.1f}" for n in flops.values())
        + f" | +{100 * work.repeated / work.useful:.0f} % | "
        f"{work.gathered / 1e6:.0f} / {work.scattered / 1e6:.0f} | {1e3 * products:.0f} | "
        f"{1e3 * kernels:.0f} | {1e3 * moved:.0f} | {total:.2f} | {run.steps * total / 3600:.0f} |"
    )


def _class_of(passes: int) -> str:
    return "float32 once" if passes == 1 else "float32 in passes"


def count(run: config_lib.RunConfig) -> Arithmetic:
    """Work of one step of a run, on all chips together."""
    mesh = build_mesh()
    names = input_lib.open_vocabulary(run, input_lib.used_datasets(run))
    model = build.build_model(run)
    tx = build.build_tx(run, model)
    step = build.build_step(run, model, tx, mesh, names.num_objects)
    inputs = abstract_inputs(run, model, tx, mesh, names.num_objects, len(names))
    with compiling_for("tpu", KIND):
        return aot.count(aot.trace(step, inputs.state, inputs.batch, inputs.text))


if __name__ == "__main__":
    main()
