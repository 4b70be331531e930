"""How fast an image is encoded, next to how fast the machine multiplies matrices.

python -m benchmarks.encode --preset swin_t --size 640 --threads 2
"""

import argparse
import math
import os
import time
from collections.abc import Callable
from typing import Any


def best_time(run: Callable[..., Any], *args: Any, repeats: int) -> float:
    """Returns the shortest of several times in seconds, after one call to compile."""
    import jax

    jax.block_until_ready(run(*args))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run(*args))
        times.append(time.perf_counter() - start)
    return min(times)


def count_operations(run: Callable[..., Any], *args: Any) -> int:
    """Counts multiplications and additions of matrix products and convolutions."""
    import jax

    return _count(jax.make_jaxpr(run)(*args).jaxpr)


def _count(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            depth = math.prod(shape[axis] for axis in contracted)
            total += 2 * depth * math.prod(equation.outvars[0].aval.shape)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            features = kernel[params["dimension_numbers"].rhs_spec[0]]
            depth = math.prod(kernel) // features
            total += 2 * depth * math.prod(equation.outvars[0].aval.shape)
        times = params.get("length", 1) if name == "scan" else 1
        for value in params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += times * _count(inner)
    return total


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="swin_t")
    parser.add_argument("--size", type=int, nargs="+", default=[640], help="side, or height width")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])

    import jax
    import jax.numpy as jnp
    import numpy as np

    from semsam_jax.models.pixel_decoder import PixelDecoder
    from semsam_jax.models.presets import SwinConfig, model_config
    from semsam_jax.models.semantic_sam import SemanticSAM, init_params

    left, right = jnp.ones((11480, 256)), jnp.ones((256, 2048))
    product = jax.jit(jnp.matmul)
    work = 2 * left.size * right.shape[1]
    rate = work / best_time(product, left, right, repeats=20) / 1e9
    print(f"product 11480x256 by 256x2048     {rate:8.1f} GFLOP/s")

    config = model_config(args.preset)
    height, width = args.size[0], args.size[-1]
    model = SemanticSAM(config)
    # Only sizes matter for speed, and random numbers of all branches take long to draw.
    shapes = jax.eval_shape(lambda key: init_params(model, key), jax.random.key(0))
    rng = np.random.default_rng(0)
    params = {
        part: jax.tree.map(
            lambda x: jnp.asarray(0.02 * rng.standard_normal(x.shape, np.float32)), shapes[part]
        )
        for part in ("backbone", "pixel_decoder")
    }
    key = jax.random.key(1)
    image = jax.random.randint(key, (1, height, width, 3), 0, 256).astype(jnp.uint8)
    size_hw = jnp.asarray([[height, width]], jnp.int32)

    def encode(params: Any, image: jax.Array) -> Any:
        return model.apply({"params": params}, image, size_hw, method="encode_image")

    def refine(params: Any, maps: Any) -> Any:
        return PixelDecoder(config.pixel_decoder).apply({"params": params}, maps)

    shapes = [
        (1, -(-height // stride), -(-width // stride), channels)
        for stride, channels in zip((4, 8, 16, 32), config.backbone.channels, strict=True)
    ]
    maps = tuple(jax.random.normal(key, shape) for shape in shapes)
    total = best_time(jax.jit(encode), params, image, repeats=args.repeats)
    decoder = best_time(jax.jit(refine), params["pixel_decoder"], maps, repeats=args.repeats)
    total_work = count_operations(encode, params, image) / 1e9
    decoder_work = count_operations(refine, params["pixel_decoder"], maps) / 1e9
    again = work / best_time(product, left, right, repeats=20) / 1e9
    kind = "swin" if isinstance(config.backbone, SwinConfig) else "efficientnet"
    print(f"product again                     {again:8.1f} GFLOP/s")
    for name, seconds, gflop in (
        (f"backbone ({kind})", total - decoder, total_work - decoder_work),
        ("pixel decoder", decoder, decoder_work),
        ("encode_image", total, total_work),
    ):
        share = gflop / seconds / max(rate, again)
        print(f"{name:24s}{seconds:8.3f} s {gflop:8.1f} GFLOP {share:6.1%} of the product's rate")


if __name__ == "__main__":
    main()
