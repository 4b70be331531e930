"""Host and device time of the matching: `python -m benchmarks.matching`.

Host: from costs on the device to assignments on the device, for 60 prompts and for 300 queries x
100 instances x 11 matchings per image; and the rows that a host of v4-32 has of the 64 of the joint
recipe (8 interactive and 8 generic), with 15, 40 and 100 of 100 slots in use. Median and least of
some repeats, and seconds of the processor: on a busy machine the wall clock counts other work.
Device: computing the prompt costs.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np

from semsam_jax.core.structs import Batch, Costs, Predictions
from semsam_jax.criterion.terms import LossWeights
from semsam_jax.matching.costs import prompt_costs
from semsam_jax.matching.solvers import solve_prompts, solve_queries
from semsam_jax.matching.transport import assign

PROMPTS, TOKENS, INSTANCES, QUERIES, MATCHINGS = 60, 6, 100, 300, 11
POINTS, CANVAS, DIM = 12544, 512, 64


def main() -> None:
    """Prints the times of the host and of the device."""
    for images in (1, 8):
        print(f"{images} images, prompts:  host {host_ms(images, 'prompts'):8.2f} ms")
        print(f"{images} images, queries:  host {host_ms(images, 'queries'):8.2f} ms")
    for instances in (15, 40, 100):
        median, least, processor, solvers = v4_32_ms(instances)
        print(
            f"v4-32, {instances:>3} instances: host {median:8.2f} ms, least {least:.2f}, "
            f"processor {processor:.2f}, of it in the solvers {solvers:.2f}"
        )
    print(f"1 image, prompt costs at {POINTS} points: {device_ms():8.1f} ms on {jax.devices()[0]}")


def host_ms(images: int, stream: str, repeats: int = 5) -> float:
    """Median milliseconds of `assign`.

    Args:
        images: rows of the batch.
        stream: `prompts` or `queries`.
        repeats: timed calls.
    """
    rng = np.random.default_rng(0)
    if stream == "prompts":
        shape = (images, PROMPTS, TOKENS, TOKENS)
        costs = Costs(jnp.asarray(rng.random(shape, np.float32)), None)
        validity = (jnp.zeros((images, PROMPTS, TOKENS), jnp.int32), None)
    else:
        shape = (images, MATCHINGS, QUERIES, INSTANCES)
        costs = Costs(None, jnp.asarray(rng.random(shape, np.float32)))
        validity = (None, jnp.ones((images, INSTANCES), bool))
    return 1e3 * float(np.median([assign(costs, *validity)[1].host_sec for _ in range(repeats)]))


def v4_32_ms(instances: int, rows: int = 8, repeats: int = 21) -> tuple[float, float, float, float]:
    """Milliseconds of `assign` for both streams of a host.

    Args:
        instances: slots in use, of `INSTANCES`.
        rows: of each stream.
        repeats: timed calls.

    Returns:
        Median and least of the wall clock; seconds of all processors, median of the whole call and
        least of the solvers alone.
    """
    rng = np.random.default_rng(0)
    prompts = rng.random((rows, PROMPTS, TOKENS, TOKENS), np.float32)
    queries = rng.random((rows, MATCHINGS, QUERIES, INSTANCES), np.float32)
    targets = rng.integers(-1, INSTANCES, (rows, PROMPTS, TOKENS), np.int32)
    valid = np.broadcast_to(np.arange(INSTANCES) < instances, (rows, INSTANCES))
    costs = Costs(jnp.asarray(prompts), jnp.asarray(queries))
    on_device = jnp.asarray(targets), jnp.asarray(valid)
    wall, processor, solvers = [], [], []
    for _ in range(repeats):
        start = time.process_time()
        wall.append(assign(costs, *on_device)[1].host_sec)
        middle = time.process_time()
        solve_prompts(prompts, targets >= 0)
        solve_queries(queries, valid)
        processor.append(middle - start)
        solvers.append(time.process_time() - middle)
    found = np.median(wall), min(wall), np.median(processor), min(solvers)
    return tuple(1e3 * float(x) for x in found)


def device_ms(repeats: int = 3) -> float:
    """Median milliseconds of `prompt_costs` for one image."""
    rng = np.random.default_rng(0)

    def uniform(*shape: int) -> jax.Array:
        return jnp.asarray(rng.random(shape, np.float32))

    rows = Batch(
        image=jnp.zeros((1, 8, 8, 3), jnp.uint8),
        size_hw=jnp.full((1, 2), CANVAS),
        mask_bits=jnp.asarray(rng.integers(0, 256, (1, INSTANCES, CANVAS, CANVAS // 8), np.uint8)),
        boxes=uniform(1, INSTANCES, 4),
        object_id=jnp.full((1, INSTANCES), -1),
        part_id=jnp.full((1, INSTANCES), -1),
        instance_valid=jnp.ones((1, INSTANCES), bool),
        prompt_box=uniform(1, PROMPTS, 4),
        prompt_is_box=jnp.zeros((1, PROMPTS), bool),
        prompt_valid=jnp.ones((1, PROMPTS), bool),
        prompt_targets=jnp.asarray(rng.integers(0, INSTANCES, (1, PROMPTS, TOKENS), np.int32)),
        pseudo_targets=jnp.full((1, PROMPTS, TOKENS), -1),
        vocab_valid=jnp.ones((1, 1), bool),
        vocab_owned=jnp.zeros((1, 1), jnp.uint8),
        has_masks=jnp.ones(1, bool),
        dataset=jnp.zeros(1, jnp.int32),
    )
    predictions = Predictions(
        mask_embed=uniform(1, PROMPTS, TOKENS, DIM), boxes=uniform(1, PROMPTS, TOKENS, 4)
    )
    features = uniform(1, CANVAS // 4, CANVAS // 4, DIM)
    compiled = jax.jit(lambda *args: prompt_costs(*args, LossWeights()))
    points = uniform(1, POINTS, 2)
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(compiled(predictions, features, rows, points))
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times[1:]))


if __name__ == "__main__":
    main()
