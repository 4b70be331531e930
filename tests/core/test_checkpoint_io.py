"""Finding and reading a model: its two files, the steps of a run, and what is neither."""

import json
import os
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from semsam_jax.core import checkpoint_io, model_files
from semsam_jax.core.errors import CheckpointError
from semsam_jax.core.model_files import save_model

STORED_RUN = Path(__file__).parent / "data" / "orbax_run"
"""Step 7 of a run of release 0.1 (Orbax 0.12): state with average and low-rank updates."""

PARAMS = {
    "a": {"kernel": np.linspace(-3, 3, 6, dtype=np.float32).reshape(2, 3)},
    "b": np.float32(2.5),
}
META = {"preset": "tiny", "level_order": [3, 2, 0, 4, 1, 5], "step": 3}


def run_with_steps(folder, *steps):
    for step in steps:
        shutil.copytree(STORED_RUN / "checkpoints" / "7", folder / "checkpoints" / str(step))
    return folder


def test_round_trip_is_bit_equal(tmp_path):
    folder = save_model(tmp_path / "m", PARAMS, META)
    for path in (folder, folder / "model.safetensors"):
        params, meta = checkpoint_io.read_model(path)
        np.testing.assert_array_equal(params["a"]["kernel"], PARAMS["a"]["kernel"])
        assert params["b"] == PARAMS["b"]
        assert params["b"].shape == ()
        assert meta == META | {"schema_version": 1}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_rounded_once_and_loaded_as_float32(tmp_path, dtype):
    save_model(tmp_path / "m", PARAMS, META, dtype=dtype)
    stored = load_file(tmp_path / "m" / "model.safetensors")["a.kernel"]
    assert stored.dtype == model_files.STORED_DTYPES[dtype]
    params, _ = checkpoint_io.read_model(tmp_path / "m")
    assert params["a"]["kernel"].dtype == np.float32
    wanted = PARAMS["a"]["kernel"].astype(getattr(ml_dtypes, dtype, dtype)).astype(np.float32)
    np.testing.assert_array_equal(params["a"]["kernel"], wanted)


def test_a_weight_that_a_format_cannot_hold_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"a\.kernel.*1e\+05.*float16"):
        save_model(tmp_path / "m", {"a": {"kernel": np.float32([1e5])}}, META, dtype="float16")
    assert not model_files.has_model(tmp_path / "m")


def test_folders_of_the_training_machine_are_left_out(tmp_path):
    run = {"data": {"root": "/data", "custom": "/own", "flip": 0.5}, "model": {"warm_start": "/w"}}
    save_model(tmp_path / "m", PARAMS, META | {"config": run, "must_match": {"seed": 1}})
    text = (tmp_path / "m" / "config.json").read_text()
    assert "/" not in text
    assert json.loads(text)["config"]["data"]["flip"] == 0.5


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_both_files_have_the_permissions_of_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        folder = save_model(tmp_path / "m", PARAMS, META)
    finally:
        os.umask(before)
    modes = [
        (folder / name).stat().st_mode & 0o777 for name in ("model.safetensors", "config.json")
    ]
    assert modes == [0o666 & ~umask] * 2


def test_a_model_is_replaced_only_when_told_to(tmp_path):
    save_model(tmp_path / "m", PARAMS, META)
    with pytest.raises(CheckpointError, match="already holds"):
        save_model(tmp_path / "m", PARAMS, META)
    save_model(tmp_path / "m", {"c": np.zeros(1, np.float32)}, META | {"step": 9}, overwrite=True)
    params, meta = checkpoint_io.read_model(tmp_path / "m")
    assert list(params) == ["c"]
    assert meta["step"] == 9
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_damaged_weights_are_one_error(tmp_path, kept):
    file = save_model(tmp_path / "m", PARAMS, META) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged or unreadable"):
        checkpoint_io.read_model(tmp_path / "m")


def test_weights_in_each_others_place_are_one_error(tmp_path):
    file = save_model(tmp_path / "m", PARAMS, META) / "model.safetensors"
    save_file({"a": np.zeros(1), "a.b": np.zeros(1)}, file)
    with pytest.raises(CheckpointError, match="inside another array"):
        checkpoint_io.read_model(tmp_path / "m")


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "unreadable"), ("[]", "schema version None"), ('{"schema_version": 99}', "version 99")],
)
def test_a_config_of_no_use_is_one_error(tmp_path, text, message):
    (save_model(tmp_path / "m", PARAMS, META) / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        checkpoint_io.read_meta(tmp_path / "m")


def test_a_stored_run_of_the_first_release_stays_readable():
    """Averaged parameters, low-rank updates added; arrays that were checked by hand."""
    for path in (STORED_RUN, STORED_RUN / "checkpoints", STORED_RUN / "checkpoints" / "7"):
        params, meta = checkpoint_io.read_model(path)
        assert meta["level_order"] == [3, 2, 0, 4, 1, 5]
        assert sorted(params) == ["decoder", "text_encoder"]
        np.testing.assert_array_equal(params["decoder"]["norm"]["scale"], [1, 2, 3, 4])
        np.testing.assert_array_equal(params["text_encoder"]["half"], [1.5, -0.5])
        # ema = params + 1 everywhere: kernel 1..6, plus a @ b of twos and threes.
        np.testing.assert_array_equal(params["decoder"]["kernel"], [[[7, 8, 9], [10, 11, 12]]])


def test_of_a_run_the_newer_of_model_and_steps_counts(tmp_path):
    run = run_with_steps(tmp_path / "run", 5, 7)
    assert checkpoint_io.find_model(run).name == "7"
    save_model(run / "model", PARAMS, META | {"step": 7})
    assert checkpoint_io.find_model(run) == run / "model"
    run_with_steps(run, 9)
    assert checkpoint_io.find_model(run).name == "9"


@pytest.mark.parametrize("missing", ["_CHECKPOINT_METADATA", "meta/metadata", "state"])
def test_a_half_written_step_is_passed_over(tmp_path, missing):
    run = run_with_steps(tmp_path / "run", 5, 7)
    (run / "checkpoints" / "7" / missing).rename(tmp_path / "away")
    assert checkpoint_io.find_model(run).name == "5"
    assert [step.name for step in checkpoint_io.complete_steps(run)] == ["5"]


@pytest.mark.parametrize("name", ["_METADATA", "manifest.ocdbt", "d"])
def test_a_damaged_step_is_one_error(tmp_path, name):
    run = run_with_steps(tmp_path / "run", 7)
    for file in (run / "checkpoints" / "7" / "state").rglob("*"):
        if file.is_file() and name in (file.name, file.parent.name):
            file.write_bytes(file.read_bytes()[:5])
    with pytest.raises(CheckpointError, match="damaged or incomplete"):
        checkpoint_io.read_model(run)


def test_missing_and_foreign_folders_name_the_fix(tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        checkpoint_io.read_model(tmp_path / "none")
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "swint.pth").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"swint\.pth.*convert"):
        checkpoint_io.read_model(tmp_path / "x")
    run = run_with_steps(tmp_path / "run", 7)
    (run / "checkpoints" / "7" / "meta" / "metadata").write_text("{")
    with pytest.raises(CheckpointError, match="unreadable"):
        checkpoint_io.read_meta(run)


def test_the_order_of_levels_is_written_where_the_model_is_read(tmp_path):
    order = [5, 4, 3, 2, 1, 0]
    save_model(tmp_path / "m", PARAMS, META)
    for path in (tmp_path / "m", run_with_steps(tmp_path / "run", 7)):
        checkpoint_io.update_meta(path, {"level_order": order})
        assert checkpoint_io.read_meta(path)["level_order"] == order
        with pytest.raises(CheckpointError, match="does not name each"):
            checkpoint_io.update_meta(path, {"level_order": [0, 0, 1, 2, 3, 4]})


def test_the_checkpoint_of_a_command_is_chosen_in_the_open(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SEMSAM_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(checkpoint_io, "SHIPPED", tmp_path / "lite")
    with pytest.raises(CheckpointError, match="none given"):
        checkpoint_io.choose_checkpoint(None)
    with pytest.raises(CheckpointError, match="no finished training run"):
        checkpoint_io.choose_checkpoint("last")
    save_model(tmp_path / "lite", PARAMS, META)
    save_model(tmp_path / "run" / "model", PARAMS, META)
    checkpoint_io.remember_last_run(tmp_path / "run")
    assert checkpoint_io.choose_checkpoint(None) == tmp_path / "lite"
    assert checkpoint_io.choose_checkpoint("last") == (tmp_path / "run").resolve()
    assert checkpoint_io.choose_checkpoint("some/where") == Path("some/where")
    printed = capsys.readouterr().out.splitlines()
    assert printed == [
        f"checkpoint: {path}" for path in (tmp_path / "lite", tmp_path / "run", "some/where")
    ]
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(CheckpointError, match="no finished training run"):
        checkpoint_io.choose_checkpoint("last")


def test_a_full_disk_is_one_error_and_leaves_nothing(tmp_path, monkeypatch):
    def full(arrays, file, metadata):
        file.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    with pytest.raises(CheckpointError, match=r"cannot be written \(I/O error: No space"):
        save_model(tmp_path / "m", PARAMS, META)
    assert not list((tmp_path / "m").iterdir())
