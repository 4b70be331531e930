import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from semsam_jax.core.errors import ConfigError
from semsam_jax.parallel import distributed
from semsam_jax.parallel.mesh import batch_sharding, build_mesh, num_batch_shards
from semsam_jax.parallel.sharding import parameter_spec, state_shardings


def test_mesh_shapes():
    assert dict(build_mesh(2).shape) == {"data": 4, "fsdp": 2}
    assert dict(build_mesh(-1).shape) == {"data": 1, "fsdp": 8}
    assert num_batch_shards(build_mesh(4)) == 8
    with pytest.raises(ConfigError, match=r"3 does not divide the 8 devices; use one of \[1, 2"):
        build_mesh(3)


def test_batch_lies_over_both_axes():
    mesh = build_mesh(2)
    x = jax.device_put(jnp.arange(16.0).reshape(8, 2), batch_sharding(mesh))
    assert [s.data.shape for s in x.addressable_shards] == [(1, 2)] * 8


@pytest.mark.parametrize(
    ("shape", "fsdp", "spec"),
    [
        ((256, 2048), 4, P(None, "fsdp")),
        ((2048, 256), 4, P("fsdp")),
        ((512, 512), 4, P(None, "fsdp")),
        ((9, 256, 2048), 8, P(None, None, "fsdp")),
        ((10, 10), 2, P()),
        ((257, 1023), 2, P()),
        ((256, 2048), 1, P()),
        ((), 2, P()),
    ],
)
def test_the_largest_divisible_axis_of_large_arrays_is_split(shape, fsdp, spec):
    assert parameter_spec(shape, fsdp) == spec


def test_state_shardings_follow_the_rule():
    mesh = build_mesh(4)
    tree = {"kernel": jax.ShapeDtypeStruct((256, 2048), jnp.float32)}
    assert state_shardings(mesh, tree)["kernel"].spec == P(None, "fsdp")


def test_half_set_start_up_variables_are_an_error(monkeypatch):
    monkeypatch.setenv("SEMSAM_COORDINATOR", "127.0.0.1:1")
    with pytest.raises(ConfigError, match="SEMSAM_NUM_PROCESSES, SEMSAM_PROCESS_ID not set"):
        distributed.initialize()
