import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from semsam_jax.core import checkpoint_io
from semsam_jax.core.errors import CheckpointError

PARAMS = {"a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}, "b": np.float32(2.5)}
META = {"preset": "tiny", "level_order": [3, 2, 0, 4, 1, 5]}


def test_round_trip_is_bit_equal(tmp_path):
    step = checkpoint_io.write_model(tmp_path / "m", PARAMS, META)
    for path in (tmp_path / "m", tmp_path / "m" / "checkpoints", step):
        params, meta = checkpoint_io.read_model(path)
        np.testing.assert_array_equal(params["a"]["kernel"], PARAMS["a"]["kernel"])
        assert params["b"] == PARAMS["b"]
        assert meta["preset"] == "tiny"


def test_reads_what_orbax_reads(tmp_path):
    """Orbax is the oracle: chunks of several devices, other dtypes, scalars, a strange path."""
    devices = np.array(jax.devices()[:2])
    sharding = NamedSharding(jax.sharding.Mesh(devices, ("x",)), PartitionSpec("x"))
    rng = np.random.default_rng(0)
    split = jax.device_put(rng.normal(size=(6, 5)).astype(np.float32), sharding)
    params = {
        "deep": {"er": {"split": split}},
        "half": jnp.asarray(rng.normal(size=7), jnp.bfloat16),
        "count": jnp.int32(7),
        "zero": jnp.zeros(4),
    }
    state = {"params": params, "ema_params": jax.tree.map(lambda x: x + 1, params)}
    state["opt_state"] = (jnp.ones(2), {"mu": params})
    step = checkpoint_io.write_model(tmp_path / "a b%20#?é", PARAMS, META)
    shutil.rmtree(step / "state")
    handler = checkpoint_io.state_handler()
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(step / "state", args=ocp.args.PyTreeSave(state))
    wanted = handler.restore(step / "state")
    for has_ema, key in ((False, "params"), (True, "ema_params")):
        (step / "meta" / "metadata").write_text(
            json.dumps({**META, "schema_version": 1, "has_ema": has_ema})
        )
        found, _ = checkpoint_io.read_model(step)
        assert jax.tree.structure(found) == jax.tree.structure(wanted[key])
        for mine, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted[key]), strict=True):
            assert mine.dtype == theirs.dtype
            np.testing.assert_array_equal(mine, np.asarray(theirs))


def test_a_state_without_parameters_is_one_error(tmp_path):
    step = checkpoint_io.write_model(tmp_path / "m", PARAMS, META)
    (step / "meta" / "metadata").write_text(
        json.dumps({**META, "schema_version": 1, "has_ema": True})
    )
    with pytest.raises(CheckpointError, match=r"damaged or incomplete.*ema_params"):
        checkpoint_io.read_model(step)


def listing(*arrays):
    """`_METADATA` that lists arrays by their names."""
    tree = {str(i): {"key_metadata": [{"key": k} for k in a]} for i, a in enumerate(arrays)}
    return json.dumps({"use_zarr3": False, "tree_metadata": tree})


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        "\xff",
        '{"use_zarr3": false, "tree_metadata": []}',
        '{"use_zarr3": false, "tree_metadata": {"x": 1}}',
        listing([]),
        listing(["params"]),
        listing(["params", 3]),
        listing(["params", "b"], ["params", "b", "c"]),
        listing(["params", "absent"]),
    ],
)
def test_a_damaged_list_of_arrays_is_one_error(tmp_path, content):
    step = checkpoint_io.write_model(tmp_path / "m", PARAMS, META)
    (step / "state" / "_METADATA").write_text(content, "latin-1")
    with pytest.raises(CheckpointError, match="damaged or incomplete"):
        checkpoint_io.read_model(step)


def test_a_half_written_step_is_passed_over(tmp_path):
    checkpoint_io.write_model(tmp_path / "m", PARAMS, META)
    (tmp_path / "m" / "checkpoints" / "7" / "state").mkdir(parents=True)
    assert checkpoint_io.newest_step(tmp_path / "m").name == "0"


def test_missing_foreign_and_damaged_folders_name_the_fix(tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        checkpoint_io.read_model(tmp_path / "none")
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "swint.pth").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"swint\.pth.*convert"):
        checkpoint_io.read_model(tmp_path / "x")
    step = checkpoint_io.write_model(tmp_path / "m", PARAMS, META)
    file = step / "meta" / "metadata"
    file.write_text(json.dumps({"schema_version": 99}))
    with pytest.raises(CheckpointError, match="schema version 99"):
        checkpoint_io.read_model(tmp_path / "m")
    file.write_text("{")
    with pytest.raises(CheckpointError, match="unreadable meta"):
        checkpoint_io.read_model(tmp_path / "m")


def test_truncated_data_is_one_error(tmp_path):
    step = checkpoint_io.write_model(tmp_path / "m", PARAMS, META)
    for file in (step / "state").rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(file.read_bytes()[:5])
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint_io.read_model(tmp_path / "m")


def test_existing_checkpoint_is_not_overwritten(tmp_path):
    checkpoint_io.write_model(tmp_path / "m", PARAMS, META)
    with pytest.raises(CheckpointError, match="already holds"):
        checkpoint_io.write_model(tmp_path / "m", PARAMS, META)


def test_last_run_is_forgotten_when_it_is_gone(tmp_path, monkeypatch):
    monkeypatch.setenv("SEMSAM_JAX_CACHE", str(tmp_path / "cache"))
    assert checkpoint_io.last_run() is None
    checkpoint_io.write_model(tmp_path / "m", PARAMS, META)
    checkpoint_io.remember_last_run(tmp_path / "m")
    assert checkpoint_io.last_run() == (tmp_path / "m").resolve()
    (tmp_path / "m" / "checkpoints").rename(tmp_path / "m" / "gone")
    assert checkpoint_io.last_run() is None
