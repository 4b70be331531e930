import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from semsam_jax.core.errors import ConfigError
from semsam_jax.parallel import distributed
from semsam_jax.parallel.mesh import _slices, batch_sharding, build_mesh, num_batch_shards
from semsam_jax.parallel.sharding import parameter_spec, state_shardings


def test_mesh_shapes():
    assert dict(build_mesh(2).shape) == {"data": 4, "fsdp": 2}
    assert dict(build_mesh(-1).shape) == {"data": 1, "fsdp": 8}
    assert num_batch_shards(build_mesh(4)) == 8
    with pytest.raises(ConfigError, match=r"3 does not divide the 8 devices; use one of \[1, 2"):
        build_mesh(3)


@dataclasses.dataclass(frozen=True)
class _Chip:
    """What a device says of a machine with several slices."""

    id: int
    slice_index: int


def test_parameters_never_cross_from_one_slice_to_another():
    chips = [_Chip(i, i % 2) for i in range(8)]
    tiers = _slices(chips, 0)
    assert [[chip.slice_index for chip in tier] for tier in tiers] == [[0] * 4, [1] * 4]
    assert [[chip.id for chip in tier] for tier in tiers] == [[0, 2, 4, 6], [1, 3, 5, 7]]
    mesh = build_mesh(-1, slices=2)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 4}
    assert [[d.id for d in row] for row in mesh.devices] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert dict(build_mesh(2, slices=2).shape) == {"data": 4, "fsdp": 2}


def test_slices_that_do_not_fit_are_an_error():
    with pytest.raises(ConfigError, match=r"fsdp: 8 does not divide the 4 devices of a slice"):
        build_mesh(8, slices=2)
    with pytest.raises(ConfigError, match=r"slices: 3 does not fit the 8 devices \(slice 0: 8\)"):
        build_mesh(1, slices=3)
    with pytest.raises(ConfigError, match=r"slices: 4 does not fit .*slice 0: 4, slice 1: 4"):
        _slices([_Chip(i, i % 2) for i in range(8)], 4)
    with pytest.raises(ConfigError, match=r"slice 0: 3, slice 1: 1"):
        _slices([_Chip(i, i // 3) for i in range(4)], 0)


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
