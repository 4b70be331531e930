"""Checkpoints that were truncated, left half-written, or cannot be written."""

import json
import logging
import resource
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from semsam_jax.core.errors import CheckpointError, ConfigError, TrainingError
from semsam_jax.models import presets
from semsam_jax.parallel.mesh import build_mesh
from semsam_jax.train import build
from semsam_jax.train.checkpoints import Checkpoints, check_same_run, sole_run
from semsam_jax.train.state import shard_state

META = {"must_match": {"preset": "x", "data": {"image_size": 256, "flip": 0.5}}}


def _state(step):
    params = {"part": {"kernel": np.random.default_rng(step).normal(size=(64, 64)).astype("f")}}
    state = shard_state(params, optax.adam(1e-3), False, build_mesh(1, jax.devices()[:1]))
    return state.replace(step=jnp.asarray(step, jnp.int32))


@pytest.fixture
def saved(tmp_path):
    """A workdir with steps 2 and 4."""
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (2, 4):
        checkpoints.save(_state(step), {"at": step}, META, wait=True)
    checkpoints.close()
    return tmp_path


def _restore(workdir):
    checkpoints = Checkpoints(workdir, keep=3)
    state, data, meta = checkpoints.restore(_state(0))
    checkpoints.close()
    assert meta["step"] == int(state.step)
    return state, data


def _largest_file(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_the_newest_step_comes_back(saved, caplog):
    state, data = _restore(saved)
    assert not caplog.records  # Orbax warns where it is asked about steps without handlers
    assert (int(state.step), data) == (4, {"at": 4})
    np.testing.assert_array_equal(
        state.params["part"]["kernel"], _state(4).params["part"]["kernel"]
    )


@pytest.mark.parametrize("what", ["array data", "meta", "data position", "missing file"])
def test_a_truncated_step_is_set_aside_and_the_one_before_is_used(saved, what, caplog):
    step = saved / "checkpoints" / "4"
    if what == "missing file":
        _largest_file(step / "state").unlink()
    else:
        part = {"array data": "state", "meta": "meta", "data position": "data"}[what]
        file = _largest_file(step / part) if part == "state" else step / part / "metadata"
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with caplog.at_level(logging.WARNING, logger="absl"):
        state, data = _restore(saved)
    assert (int(state.step), data) == (2, {"at": 2})
    assert "is damaged" in caplog.text
    assert "set aside as damaged-4, the step before it is used" in caplog.text
    assert (saved / "checkpoints" / "damaged-4").is_dir()
    # The same step can be saved again, and is then the newest.
    checkpoints = Checkpoints(saved, keep=3)
    checkpoints.save(_state(4), {"at": 4}, META, wait=True)
    checkpoints.close()
    assert int(_restore(saved)[0].step) == 4


def test_a_half_written_step_is_set_aside(saved, caplog):
    step = saved / "checkpoints" / "4"
    (step / "_CHECKPOINT_METADATA").unlink()
    shutil.rmtree(step / "meta")
    with caplog.at_level(logging.WARNING, logger="absl"):
        state, _ = _restore(saved)
    assert int(state.step) == 2
    assert "is incomplete (killed while saving?)" in caplog.text


def test_without_a_readable_step_nothing_starts_over_silently(saved):
    for step in ("2", "4"):
        file = _largest_file(saved / "checkpoints" / step / "state")
        file.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"none can be read \(steps 4, 2 are damaged"):
        _restore(saved)


def _check(changes, allowed=(), saved=META["must_match"], defaults=()):
    meta = {"must_match": {**META["must_match"], **changes}}
    return check_same_run({"must_match": saved, "step": 4}, meta, dict(defaults), allowed)


def test_of_another_configuration_the_keys_that_differ_are_named():
    other = {"data": {"image_size": 512, "flip": 0.5}, "preset": "y"}
    with pytest.raises(CheckpointError, match=r"data\.image_size: .* 256, .* 512") as caught:
        _check(other)
    assert "preset: checkpoint 'x', this run 'y'" in str(caught.value)
    assert "flip" not in str(caught.value)


def test_a_size_that_an_earlier_release_did_not_have_is_at_its_default():
    sizes = json.loads(presets.to_json(presets.PRESETS["swin_t"]))
    wanted = {"model_config": sizes}
    older = {key: value for key, value in sizes.items() if key != "learned_names"}
    older["decoder"] = {k: v for k, v in sizes["decoder"].items() if k != "pooled_names"}
    saved = META["must_match"] | {"model_config": older}
    assert _check(wanted, saved=saved, defaults=build.default_match()) == []
    sizes["decoder"]["pooled_names"] = True
    with pytest.raises(CheckpointError, match=r"pooled_names: checkpoint False, this run True"):
        _check(wanted, saved=saved, defaults=build.default_match())


def test_a_dataset_without_a_share_is_none():
    data = META["must_match"]["data"]
    assert _check({"data": data | {"datasets": {"coco": 0.0}}}) == []
    with pytest.raises(CheckpointError, match=r"data\.datasets\.coco: checkpoint None, .* 1\.0"):
        _check({"data": data | {"datasets": {"coco": 1.0}}})


def test_what_may_change_is_named_by_the_user():
    saved = META["must_match"] | {"seed": 0, "optimizer": {"learning_rate": 1e-3, "ema": 0.9}}
    wanted = saved | {"seed": 1, "optimizer": {"learning_rate": 1e-4, "ema": 0.9}}
    told = _check(wanted, ["seed", "optimizer.learning_rate"], saved)
    assert told == [
        "optimizer.learning_rate: checkpoint 0.001, this run 0.0001",
        "seed: checkpoint 0, this run 1",
    ]
    with pytest.raises(CheckpointError, match=r"configuration: seed: checkpoint 0") as caught:
        _check(wanted, ["optimizer"], saved)
    assert "learning_rate:" not in str(caught.value)
    with pytest.raises(CheckpointError, match=r"optimizer\.ema: checkpoint 0\.9, this run 0\.5"):
        _check(saved | {"optimizer": {"learning_rate": 1e-3, "ema": 0.5}}, ["optimizer"], saved)
    for key in ("preset", "data.flip", "optimizer.frozen", "nonsense"):
        with pytest.raises(ConfigError, match=f"'{key}' cannot change"):
            _check({}, [key])


def test_a_key_that_the_checkpoint_is_too_old_for_is_at_its_default():
    new = {"data": {"image_size": 256, "flip": 0.5, "mosaic": 0.0}}
    assert _check(new, defaults={"data": {"mosaic": 0.0}}) == []
    with pytest.raises(CheckpointError, match=r"mosaic: checkpoint 0\.5, this run 0\.0"):
        _check(new, defaults={"data": {"mosaic": 0.5}})


def test_a_full_disk_is_one_clear_error(saved):
    """A limit on the size of files stands for the disk: writes fail in the same places."""
    checkpoints = Checkpoints(saved, keep=3)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(TrainingError, match=r"checkpoint of step 6 .* not written .* earlier"):
            checkpoints.save(_state(6), {"at": 6}, META, wait=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    state, _ = _restore(saved)
    assert int(state.step) == 4


@pytest.mark.parametrize("folder", ["/proc/semsam_jax", "/sys/semsam_jax"])
def test_a_file_system_that_takes_no_files_is_one_clear_error(folder):
    with pytest.raises(TrainingError, match=f"workdir {folder}: cannot be written"):
        Checkpoints(folder, keep=1)


def test_a_workdir_has_one_run_at_a_time(tmp_path):
    workdir = tmp_path / "run"
    with sole_run(workdir):
        with pytest.raises(TrainingError, match="another run is training here"), sole_run(workdir):
            pass
        with sole_run(tmp_path / "other"):
            pass
    with sole_run(workdir):
        pass
    assert not list(workdir.iterdir())
    (tmp_path / "file").write_text("")
    with sole_run(tmp_path / "file" / "run"):  # `Checkpoints` says why that is no folder
        pass
