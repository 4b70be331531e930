"""How much of the host's matching is hidden behind the device when a step has micro-batches.

    XLA_FLAGS=--xla_cpu_multi_thread_eigen=false python -m benchmarks.accumulation

Steps of preset `lite` on the embedded sample, once with the host matching one micro-batch while
the device runs the forward program of the next (as training does), and once in turn. With the flag
the "device" is one CPU core, and a second core is free for the host, as beside an accelerator;
without it both want the same cores and nothing can be hidden. A CPU also runs the forward program
beside the rest of a backward program, which one accelerator does not: more time than that of the
matching can be saved. Each mode is timed in turns.
"""

import argparse
import dataclasses
import time

import jax
import numpy as np

from configs import joint
from semsam_jax import config as config_lib
from semsam_jax.parallel.mesh import build_mesh
from semsam_jax.train import build
from semsam_jax.train import input as input_lib
from semsam_jax.train.optimizer import build_optimizer
from semsam_jax.train.state import TrainState, shard_state
from semsam_jax.train.step import TextInputs, TrainStep
from semsam_jax.train.text import build_text
from semsam_jax.train.warm_start import random_params


def main() -> None:
    """Prints the seconds of a step in both modes, and those of the matching."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=8, help="measured steps of each mode")
    parser.add_argument("--rows", type=int, default=4, help="interactive and generic rows each")
    parser.add_argument("--size", type=int, default=128, help="canvas in pixels")
    args = parser.parse_args()
    run = config_lib.build(joint.get_config("lite"))
    data = dataclasses.replace(
        run.data, image_size=args.size, interactive_batch=args.rows, generic_batch=args.rows
    )
    run = dataclasses.replace(run, data=data, accumulate=args.rows // 2)
    step, state, batches, text = _prepare(run, args.steps)
    seconds, host = {"ahead": [], "in turn": []}, []
    for index, batch in enumerate([*batches[:2], *batches]):
        for name, own in (("ahead", step), ("in turn", _in_turn(step))):
            begin = time.perf_counter()
            new, _, report = own(jax.tree.map(jax.numpy.copy, state), batch, text)
            jax.block_until_ready(new)
            if index >= 2:
                seconds[name].append(time.perf_counter() - begin)
                host += [report.host_sec] if name == "in turn" else []
    ahead, in_turn = (float(np.median(seconds[name])) for name in ("ahead", "in turn"))
    matching = float(np.median(host))
    print(
        f"{run.accumulate} micro-batches of 2 + 2 rows at {args.size} px, median of {args.steps} "
        f"steps: {in_turn:.3f} s in turn, of which matching {matching:.4f} s "
        f"({100 * matching / in_turn:.1f} %); {ahead:.3f} s with the next forward program ahead"
    )


def _prepare(run, steps: int) -> tuple[TrainStep, TrainState, list, TextInputs]:
    mesh = build_mesh(1, jax.devices()[:1])
    vocabulary = input_lib.open_vocabulary(run, input_lib.used_datasets(run))
    model = build.build_model(run)
    text = build_text(run, model.config, vocabulary.names, vocabulary.num_objects, mesh)
    data = input_lib.build_input(run, vocabulary, text.class_mask, mesh)
    batches = [next(data) for _ in range(steps)]
    data.close()
    frozen = build.frozen_groups(model.config, run)
    tx = build_optimizer(run.optimizer, run.steps, frozen)
    state = shard_state(random_params(model, run.seed), tx, run.optimizer.ema > 0, mesh)
    step = build.build_step(run, model, tx, mesh, vocabulary.num_objects)
    return step, state, batches, text.inputs(0)


def _in_turn(step: TrainStep):
    """The same compiled programs, with every micro-batch matched before the next one starts."""

    def run(state, batch, text):
        forward = step.forward

        def and_wait(*args):
            return jax.block_until_ready(forward(*args))

        step.forward = and_wait
        try:
            return step(state, batch, text)
        finally:
            step.forward = forward

    return run


if __name__ == "__main__":
    main()
