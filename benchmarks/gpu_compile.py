"""What XLA's compiler for GPUs makes of deformable attention, without a GPU.

    pip install jax-cuda12-pjrt==VERSION jax-cuda12-plugin==VERSION nvidia-cuda-nvcc-cu12
    JAX_PLATFORMS=cpu python -m benchmarks.gpu_compile --size 1024

VERSION is that of jax. Compiles one encoder layer of one image ahead of time for an H200 and prints
what it writes to memory. Kernels are chosen without timing any, and nothing is run: this says which
arrays exist, not how long anything takes.
"""

import argparse
import importlib.util
import math
import os
import re
import sys
from pathlib import Path

HEADS, CHANNELS, POINTS, STRIDES = 8, 32, 4, (8, 16, 32, 64)
# From NVIDIA's data sheet and programming guide, compute capability 9.0.
H200 = """
gpu_device_info {
  threads_per_block_limit: 1024  threads_per_warp: 32  threads_per_core_limit: 2048
  shared_memory_per_block: 49152  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  core_count: 132  fpus_per_core: 128  clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000  l2_cache_size: 52428800  device_memory_size: 150000000000
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
device_description_str: "NVIDIA H200"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 12 minor: 9 patch: 0 }
"""
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4}
_COMPUTATION = re.compile(r"(?:ENTRY )?%([\w.\-]+) \(")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%[\w.\-]+ = (.*?) ([\w\-]+)\(")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_WRITES_NOTHING = {"parameter", "get-tuple-element", "tuple", "bitcast", "while", "constant"}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--size", type=int, default=1024, help="side of the image")
    parser.add_argument("--implementation", default="cell_gather")
    args = parser.parse_args()
    if importlib.util.find_spec("jax_cuda12_plugin") is None:
        sys.exit("gpu_compile: JAX has no CUDA plugin; install the packages that the file names.")
    use_compiler()
    sides = [-(-args.size // stride) for stride in STRIDES]
    cells = sum(side * side for side in sides) * len(sides) * POINTS * 4 * CHANNELS * 4
    print(f"an array of all corners of one head's samples, float32: {cells / 1e6:.0f} MB")
    print("| dtype | pass | largest array written, MB | temporaries, MB |")
    print("| --- | --- | --- | --- |")
    for dtype in ("bfloat16", "float32"):
        for both_ways in (False, True):
            program = compile_layer(args.implementation, sides, dtype, both_ways)
            temporary = program.memory_analysis().temp_size_in_bytes
            largest = max(bytes_written(program.as_text()))
            name = "forward and backward" if both_ways else "forward"
            print(f"| {dtype} | {name} | {largest / 1e6:.0f} | {temporary / 1e6:.0f} |", flush=True)


def use_compiler() -> None:
    """Lets the compiler find its tools, and no GPU; before JAX starts."""
    flags = [os.environ.get("XLA_FLAGS", ""), "--xla_gpu_autotune_level=0"]
    nvidia = importlib.util.find_spec("nvidia")
    for folder in nvidia.submodule_search_locations if nvidia else ():
        if (tools := Path(folder) / "cuda_nvcc").is_dir():
            flags.append(f"--xla_gpu_cuda_data_dir={tools}")
    os.environ["XLA_FLAGS"] = " ".join(flags)
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    os.environ["JAX_PLATFORMS"] = "cpu"


def compile_layer(implementation: str, sides: list[int], dtype: str, both_ways: bool):
    """Compiles the deformable attention of one encoder layer of one square image.

    Args:
        implementation: of `deform_attention`.
        sides: of the levels of the pyramid.
        dtype: of values; places and weights are float32.
        both_ways: forward and backward, else forward alone.

    Returns:
        The `jax.stages.Compiled`.
    """
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies

    from semsam_jax.core.backend import compiling_for
    from semsam_jax.ops.deform_attention import deform_attention

    jax.config.update("jax_enable_compilation_cache", False)
    device = topologies.get_topology_desc(
        platform="cuda", topology_name="h200", target_config=H200, topology="1x1x1"
    ).devices[0]
    place = jax.sharding.SingleDeviceSharding(device)
    shapes = tuple((side, side) for side in sides)
    pixels = sum(side * side for side in sides)

    def array(kind, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, pixels, *shape), kind, sharding=place)

    def run(*inputs):
        return deform_attention(inputs[0], shapes, *inputs[1:], implementation=implementation)

    def forward_and_backward(value, places, weights, grad):
        out, pull = jax.vjp(run, value, places, weights)
        return out, pull(grad)

    inputs = [
        array(dtype, HEADS, CHANNELS),
        array(jnp.float32, HEADS, len(sides), POINTS, 2),
        array(jnp.float32, HEADS, len(sides), POINTS),
    ]
    if both_ways:
        inputs.append(array(dtype, HEADS * CHANNELS))
    with compiling_for("gpu", device.device_kind):
        traced = jax.jit(forward_and_backward if both_ways else run).trace(*inputs)
        return traced.lower(lowering_platforms=("cuda",)).compile()


def bytes_written(text: str) -> list[int]:
    """Sizes of the arrays that an optimised program writes to memory.

    Args:
        text: of `Compiled.as_text()`. What lies inside a fusion is never written.

    Returns:
        Bytes of each result, the largest array of each tuple.
    """
    fused = set(re.findall(r"(?:calls|to_apply)=%([\w.\-]+)", text))
    sizes, computation = [], ""
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            computation = header[1]
        row = _INSTRUCTION.match(line)
        if not row or computation in fused or row[2] in _WRITES_NOTHING:
            continue
        arrays = _ARRAY.findall(row[1])
        sizes.append(
            max(
                _BYTES.get(kind, 8) * math.prod(int(side) for side in shape.split(",") if side)
                for kind, shape in arrays
            )
        )
    return sizes


if __name__ == "__main__":
    main()
