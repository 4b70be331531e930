"""Cycles of the deformable attention kernels, counted from the TPU compiler's final schedule.

    python -m benchmarks.kernel_schedule --topology v5e:2x2

Compiles both kernels ahead of time (libtpu, no TPU) with the compiler's dumps switched on, and
counts the bundles of each loop: a bundle is what a core issues in one cycle. What is printed is
kept in `semsam_jax/train/cost_report.py`, and multiplied there with the number of steps. It is
an estimate: waiting for memory is not in it, and no chip has run these kernels.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

SIDE = 1024
_LINE = re.compile(r"\s*(?:0x[0-9a-f]+|0)\s+(LH|LB|LE|PB|PF|CT)?:?\s*((?:> ?)*):?\s*\{")


def main() -> None:
    """Prints the table of bundles."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--topology", default="v5e:2x2")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--dump", help="folder for the dumps; also says: compile here, now")
    args = parser.parse_args()
    if args.dump:
        compile_kernels(args.topology, args.dtype)
        return
    with tempfile.TemporaryDirectory() as folder:
        flags = (
            f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true --xla_mosaic_dump_to={folder}"
        )
        environment = os.environ | {"LIBTPU_INIT_ARGS": flags, "JAX_PLATFORMS": "cpu"}
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        again = [sys.executable, "-m", "benchmarks.kernel_schedule", "--dump", folder]
        again += ["--topology", args.topology, "--dtype", args.dtype]
        subprocess.run(again, env=environment, check=True)
        print("| kernel | bundles a step, level by level | all others |")
        print("| --- | --- | --- |")
        for name in ("forward", "backward"):
            loops, rest = count_bundles(Path(folder), f"deform_attention_{name}")
            print(f"| {name} | {', '.join(str(n) for n in loops)} | {rest} |")


def compile_kernels(topology: str, dtype: str) -> None:
    """Compiles forward and backward of one encoder layer of one image; the compiler writes dumps.

    Args:
        topology: of the TPU slice, such as `v5e:2x2`.
        dtype: of values; places and weights are float32.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

    from semsam_jax.core.backend import compiling_for
    from semsam_jax.ops.deform_attention import deform_attention
    from semsam_jax.train.compile_only import slice_devices

    jax.config.update("jax_enable_compilation_cache", False)
    device = slice_devices(topology)[0]
    place = NamedSharding(
        Mesh(np.asarray([device]), ("x",), axis_types=(AxisType.Auto,)), PartitionSpec()
    )
    shapes = tuple((SIDE // s, SIDE // s) for s in (8, 16, 32, 64))
    pixels = sum(h * w for h, w in shapes)

    def array(kind, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, pixels, *shape), kind, sharding=place)

    def both_ways(value, places, weights, grad):
        def run(*inputs):
            return deform_attention(inputs[0], shapes, *inputs[1:], implementation="matmul")

        out, pull = jax.vjp(run, value, places, weights)
        return out, pull(grad)

    args = (
        array(dtype, 8, 32),
        array(jnp.float32, 8, len(shapes), 4, 2),
        array(jnp.float32, 8, len(shapes), 4),
        array(dtype, 256),
    )
    with compiling_for("tpu", device.device_kind):
        jax.jit(both_ways).lower(*args).compile()


def count_bundles(folder: Path, kernel: str) -> tuple[list[int], int]:
    """Bundles of a kernel.

    Args:
        folder: with the compiler's dumps.
        kernel: its name.

    Returns:
        Bundles of each inner loop, and of everything outside of them.

    Raises:
        SystemExit: the compiler wrote no schedule of it.
    """
    files = sorted(
        f for f in folder.glob(f"*{kernel}*final_bundles.txt") if "analysis" not in f.name
    )
    if not files:
        raise SystemExit(f"kernel_schedule: the compiler wrote no schedule of {kernel}")
    rows = [match for line in files[-1].open() if (match := _LINE.match(line))]
    depths = [row[2].count(">") for row in rows]
    loops, deepest = [], 0
    for i, row in enumerate(rows):
        if row[1] != "LB":
            continue
        end = i
        while end + 1 < len(rows) and depths[end + 1] >= depths[i]:
            end += 1
        loops.append((depths[i], end - i + 1))
        deepest = max(deepest, depths[i])
    inner = [count for depth, count in loops if depth == deepest]
    return inner, len(rows) - sum(inner)


if __name__ == "__main__":
    main()
