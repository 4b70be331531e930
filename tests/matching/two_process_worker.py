"""One of two processes of `test_transport.test_two_processes`: address and index as arguments."""

import sys

import jax

jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))

import numpy as np  # noqa: E402
from jax.experimental import multihost_utils  # noqa: E402

from semsam_jax.config import ModelChoice, RunConfig, TextChoice, model_config  # noqa: E402
from semsam_jax.core.structs import Costs  # noqa: E402
from semsam_jax.matching.solvers import solve_prompts, solve_queries  # noqa: E402
from semsam_jax.matching.transport import assign  # noqa: E402
from semsam_jax.parallel.mesh import batch_sharding, build_mesh  # noqa: E402
from semsam_jax.train.text import build_text  # noqa: E402

rng = np.random.default_rng(1)
prompts = rng.uniform(-3, 3, (4, 5, 6, 4)).astype(np.float32)
targets = np.where(np.arange(4) < rng.integers(0, 5, (4, 5, 1)), 1, -1).astype(np.int32)
queries = rng.uniform(-3, 3, (8, 3, 9, 7)).astype(np.float32)
valid = np.arange(7) < rng.integers(0, 8, (8, 1))

rows = batch_sharding(build_mesh(2))
assert len(jax.devices()) == 4
assert len(jax.local_devices()) == 2


def put(whole: np.ndarray) -> jax.Array:
    return jax.make_array_from_callback(whole.shape, rows, lambda index: whole[index])


assignment, _ = assign(Costs(put(prompts), put(queries)), put(targets), put(valid))
for got, want in (
    (assignment.token_of_target, solve_prompts(prompts, targets >= 0)[0]),
    (assignment.query_of_instance, solve_queries(queries, valid)[0]),
):
    assert got.shape == want.shape
    for shard in got.addressable_shards:
        np.testing.assert_array_equal(shard.data, want[shard.index])
# A global sum needs both processes: the arrays are one, not two.
total = jax.jit(lambda a: a.token_of_target.sum() + a.nonfinite.sum())(assignment)
assert int(total) == int(solve_prompts(prompts, targets >= 0)[0].sum())

# Nothing that a step puts on the devices may wait for the other process.
compared = []
multihost_utils.assert_equal = lambda *args, **kwargs: compared.append(args)
run = RunConfig(text=TextChoice("encoder"), model=ModelChoice("tiny"))
names = ("dog", "cat", "head")
text = build_text(run, model_config(run.model), names, 2, build_mesh(2))
assert text.inputs(3).token_ids.shape == (3, model_config(run.model).text.context_length)
assert not compared
print(f"process {jax.process_index()} ok")
