"""Compares the implementations of deformable attention, forward and backward.

python -m benchmarks.deform_attention --size 640 --threads 2
"""

import argparse
import os
from typing import Any


def main() -> None:
    """Prints a table of seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, nargs="+", default=[640], help="side, or height width")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--channels", type=int, default=32, help="of a head; lite has 16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--implementations", nargs="+", help="all by default; matmul only where it is compiled"
    )
    args = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])

    import jax
    import jax.numpy as jnp
    import numpy as np

    from benchmarks.encode import best_time
    from semsam_jax.models.pixel_decoder import pixel_centres
    from semsam_jax.ops.deform_attention import IMPLEMENTATIONS, deform_attention

    height, width = args.size[0], args.size[-1]
    shapes = tuple((-(-height // s), -(-width // s)) for s in (8, 16, 32, 64))
    pixels = sum(h * w for h, w in shapes)
    heads, points = 8, 4
    keys = jax.random.split(jax.random.key(0), 3)
    value = jax.random.normal(keys[0], (args.batch, pixels, heads, args.channels))
    # As in a trained encoder: every query looks a few pixels around itself.
    sizes = np.asarray([(w, h) for h, w in shapes], np.float32)[None, None, None, :, None]
    lead = (args.batch, pixels, heads, len(shapes), points)
    offsets = 2 * jax.random.normal(keys[1], (*lead, 2)) / sizes
    locations = pixel_centres(shapes)[None, :, None, None, None] + offsets
    weights = jax.nn.softmax(jax.random.normal(keys[2], (*lead[:3], len(shapes) * points)))
    weights = weights.reshape(lead)

    print(f"{pixels} queries on {shapes}, {jax.default_backend()}")
    print(f"{'implementation':16s}{'forward s':>12s}{'both ways s':>12s}")
    # On other devices `matmul` is interpreted: right, and without meaning as a time.
    skipped = set() if jax.default_backend() == "tpu" else {"matmul"}
    for name in args.implementations or sorted(set(IMPLEMENTATIONS) - skipped):

        def forward(*inputs: jax.Array, name: str = name) -> Any:
            return deform_attention(inputs[0], shapes, *inputs[1:], implementation=name)

        def loss(*inputs: jax.Array, forward: Any = forward) -> jax.Array:
            return jnp.sum(jnp.square(forward(*inputs)))

        inputs = (value, locations, weights)
        seconds = [
            best_time(jax.jit(run), *inputs, repeats=args.repeats)
            for run in (forward, jax.grad(loss, (0, 1, 2)))
        ]
        print(f"{name:16s}{seconds[0]:12.4f}{seconds[1]:12.4f}", flush=True)


if __name__ == "__main__":
    main()
