"""Arithmetic of one step of every recipe, counted, and the hours that it would take.

    python -m benchmarks.recipes            # the table of docs/recipes.md

Counts the matrix products and convolutions of the traced step; nothing is compiled or run. The
hours are an estimate: counted arithmetic, recomputation included, at an assumed share of the
chip's peak. Nobody has measured a step of these recipes on the chips named here.
"""

import argparse

import jax

from configs import generic_coco, joint, reproduce_sam, sa1b
from semsam_jax import config as config_lib
from semsam_jax.core.backend import compiling_for
from semsam_jax.parallel.arithmetic import Arithmetic
from semsam_jax.parallel.hardware import CHIPS
from semsam_jax.parallel.mesh import build_mesh
from semsam_jax.train import aot, loop
from semsam_jax.train import input as input_lib
from semsam_jax.train.abstract import abstract_inputs
from semsam_jax.train.optimizer import build_optimizer

RECIPES = (
    ("sa1b.py", sa1b, "swin_t"),
    ("sa1b.py", sa1b, "swin_l"),
    ("reproduce_sam.py", reproduce_sam, "swin_l"),
    ("generic_coco.py", generic_coco, "swin_t"),
    ("joint.py", joint, "swin_t"),
    ("joint.py", joint, "swin_l"),
)
MACHINES = (("v5e-16", "TPU v5 lite", 16), ("v4-32", "TPU v4", 16))
SHARE = 0.2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--share", type=float, default=SHARE, help="assumed share of the peak")
    args = parser.parse_args()
    names = " | ".join(f"hours on {name}" for name, _, _ in MACHINES)
    print(f"| recipe | rows a step | steps | TFLOP a step | recomputed | {names} |")
    print("| --- " * (5 + len(MACHINES)) + "|")
    for file, module, preset in RECIPES:
        run = config_lib.build(module.get_config(preset))
        flops = count(run)
        hours = [
            run.steps * flops.total / (args.share * CHIPS[kind].flops * chips) / 3600
            for _, kind, chips in MACHINES
        ]
        rows = run.data.interactive_batch + run.data.generic_batch
        print(
            f"| `{file}:{preset}` | {rows} | {run.steps:,} | {flops.useful / 1e12:.0f} | "
            f"+{100 * flops.repeated / flops.useful:.0f} % | "
            + " | ".join(f"{value:.0f}" for value in hours)
            + " |",
            flush=True,
        )


def count(run: config_lib.RunConfig) -> Arithmetic:
    """Arithmetic of one step of a run."""
    mesh = build_mesh(1, jax.devices()[:1])
    names = input_lib.open_vocabulary(run, input_lib.used_datasets(run))
    model = loop.build_model(run)
    tx = build_optimizer(run.optimizer, run.steps, loop.frozen_groups(model.config, run))
    step = loop.build_step(run, model, tx, mesh, names.num_objects)
    inputs = abstract_inputs(run, model, tx, mesh, names.num_objects, len(names))
    with compiling_for("tpu"):
        return aot.count(aot.trace(step, inputs.state, inputs.batch, inputs.text))


if __name__ == "__main__":
    main()
