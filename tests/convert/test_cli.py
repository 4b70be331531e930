"""The command end to end: a file of the original, our checkpoint, and the way back."""

import dataclasses
import functools
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from semsam_jax.__main__ import main
from semsam_jax.convert.names import unwrap
from semsam_jax.convert.torch_reader import read_state_dict
from semsam_jax.convert.torch_writer import write_state_dict
from semsam_jax.convert.tree import flatten
from semsam_jax.core import checkpoint_io, model_files
from semsam_jax.models import presets, semantic_sam
from semsam_jax.models.semantic_sam import SemanticSAM

DATA = Path(__file__).parent.parent / "golden" / "data"
REF = str(DATA / "tiny_ref.pth")


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    out = tmp_path_factory.mktemp("converted")
    config = str(DATA / "tiny_config.json")
    assert main(["convert", REF, "--out", str(out), "--model-config", config]) == 0
    return out


def test_checkpoint_and_meta(converted):
    params, meta = checkpoint_io.read_model(converted)
    config = presets.from_json(meta["model_config"])
    assert config.backbone == presets.PRESETS["tiny"].backbone
    assert not config.has_generic
    assert meta["level_order"] == [3, 2, 0, 4, 1, 5]
    assert meta["prompt_preset"] == "released_v1"
    assert meta["source"] == "tiny_ref.pth"
    assert meta["text"]["source"] == "encoder"
    assert meta["class_heads_trained"] is True
    # The restored parameters drive the model: the stem's output is the recorded one.
    with np.load(DATA / "tiny_inputs.npz") as inputs:
        image = inputs["image_a"]
    with np.load(DATA / "tiny_image_a.npz") as golden:
        wanted = golden["pixdec/mask_features"].transpose(0, 2, 3, 1)
    encode = jax.jit(functools.partial(SemanticSAM(config).apply, method="encode_image"))
    size_hw = jnp.asarray([image.shape[:2]], jnp.int32)
    pyramid = encode({"params": params}, jnp.asarray(image[None]), size_hw)
    np.testing.assert_allclose(pyramid.mask_features, wanted, atol=5e-5)


def test_the_table_is_printed(tmp_path, capsys):
    assert main(["convert", REF, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "preset tiny, a text tower, no generic branch" in printed
    assert "mapped       308 tensors to 236 parameters" in printed
    assert "criterion.empty_weight: belongs to the training loss" in printed
    assert "missing      0" in printed


def test_the_way_back_is_bit_equal(converted, tmp_path):
    out = tmp_path / "back.pth"
    assert main(["convert", str(converted), "--to-torch", "--out", str(out)]) == 0
    back, original = unwrap(read_state_dict(out)), unwrap(read_state_dict(REF))
    assert back.keys() == original.keys() - {"criterion.empty_weight"}
    assert all(back[key].tobytes() == original[key].tobytes() for key in back)


def test_the_way_back_replaces_no_file(converted, tmp_path, capsys):
    (tmp_path / "mine.pth").write_text("mine")
    command = ["convert", str(converted), "--to-torch", "--out", str(tmp_path / "mine.pth")]
    assert main(command) == 2
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "mine.pth").read_text() == "mine"


def test_the_way_back_says_what_the_file_cannot_hold(converted, tmp_path, capsys):
    params, meta = checkpoint_io.read_model(converted)
    own = meta | {"prompt_preset": "default", "level_order": [0, 1, 2, 3, 4, 5]}
    model_files.save_model(tmp_path / "own", params, own)
    for source, is_own in ((tmp_path / "own", True), (converted, False)):
        out = ["--out", str(tmp_path / f"{is_own}.pth")]
        assert main(["convert", str(source), "--to-torch", *out]) == 0
        told = "not in it: prompt_preset default, level_order [0, 1, 2, 3, 4, 5]"
        assert (told in capsys.readouterr().err) == is_own


def test_the_canvas_of_inference_can_be_set(converted, tmp_path):
    params, meta = checkpoint_io.read_model(converted)
    model_files.save_model(tmp_path / "own", params, meta | {"prompt_preset": "default"})
    wanted = ["--out", str(tmp_path / "out"), "--image-size", "384"]
    assert main(["convert", str(tmp_path / "own"), *wanted]) == 0
    assert checkpoint_io.read_meta(tmp_path / "out")["image_size"] == 384


def test_the_canvas_of_released_weights_cannot_be_set(converted, tmp_path, capsys):
    wanted = ["--out", str(tmp_path / "out"), "--image-size", "384"]
    for source in (REF, str(converted)):
        assert main(["convert", source, *wanted]) == 2
        assert "--image-size: no effect on weights of the original" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_bare_files_without_text_tower(tmp_path):
    state = unwrap(read_state_dict(REF))
    bare = {k: v for k, v in state.items() if "lang_encoder" not in k and "criterion" not in k}
    write_state_dict(tmp_path / "bare.pth", bare)
    assert main(["convert", str(tmp_path / "bare.pth"), "--out", str(tmp_path / "out")]) == 0
    params, meta = checkpoint_io.read_model(tmp_path / "out")
    assert presets.from_json(meta["model_config"]).text is None
    assert meta["text"] == {"source": "none", "table": None}
    assert meta["class_heads_trained"] is False
    assert params["decoder"]["logit_scale"] == 1
    # Later the tower comes from its own file.
    arguments = ["convert", str(tmp_path / "bare.pth"), "--text", REF]
    assert main([*arguments, "--out", str(tmp_path / "text")]) == 0
    params, meta = checkpoint_io.read_model(tmp_path / "text")
    assert meta["text"]["source"] == "encoder"
    assert meta["class_heads_trained"] is False
    np.testing.assert_allclose(params["decoder"]["logit_scale"], 1.7, rtol=1e-6)


def test_incomplete_models_exit_with_two(tmp_path, capsys):
    state = unwrap(read_state_dict(REF))
    del state["backbone.norm0.weight"]
    write_state_dict(tmp_path / "short.pth", state)
    arguments = ["convert", str(tmp_path / "short.pth"), "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert "missing      backbone.norm0.weight" in captured.out
    assert captured.err.count("\n") == 1
    assert "backbone.norm0.weight" in captured.err
    assert not (tmp_path / "out").exists()


def test_unexpected_tensors_need_consent(tmp_path, capsys):
    state = unwrap(read_state_dict(REF)) | {"extra": np.zeros(1, np.float32)}
    write_state_dict(tmp_path / "more.pth", state)
    arguments = ["convert", str(tmp_path / "more.pth"), "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert "--allow-unexpected" in capsys.readouterr().err
    assert main([*arguments, "--allow-unexpected"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.pth"], "cannot be read"),
        ([], "expected a .pth file"),
        (["--to-torch"], "got 0 checkpoint folders"),
        (["none", "--to-torch"], "no such folder"),
        ([REF, "--model-config", "none.json"], "cannot be read as JSON"),
        ([REF, "--image-size", "300"], "expected a multiple of 32"),
    ],
)
def test_errors_take_one_line(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["convert", *arguments, "--out", "out"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "flags"),
    [
        (["--backbone", REF, "--text", REF], "--backbone, --text: no effect for a model folder"),
        (["--preset", "tiny", "--entry", "ema"], "--preset, --entry: no effect for a model"),
        (["--model-config", "none.json"], "--model-config: no effect for a model folder"),
        (["--allow-unexpected"], "--allow-unexpected: no effect for a model folder"),
        (["--to-torch", "--dtype", "float16"], "--dtype: no effect with --to-torch"),
        (["--to-torch", "--image-size", "384"], "--image-size: no effect with --to-torch"),
        (["--to-torch", "--backbone", REF], "--backbone: no effect with --to-torch"),
    ],
)
def test_options_without_effect_are_refused(converted, tmp_path, capsys, arguments, flags):
    out = tmp_path / "out"
    assert main(["convert", str(converted), *arguments, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert f"convert: {flags}" in error
    assert "leave" in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_options_without_effect_on_a_file_or_a_start_are_refused(tmp_path, capsys):
    out = ["--out", str(tmp_path / "out")]
    assert main(["convert", REF, "--preset", "tiny", *out]) == 2
    assert "--preset: no effect for a file" in capsys.readouterr().err
    start = ["convert", "--preset", "tiny", "--backbone", REF]
    assert main([*start, "--entry", "ema", "--model-config", REF, *out]) == 2
    assert "--model-config, --entry: no effect without FILE" in capsys.readouterr().err


def test_a_reader_that_closes_the_pipe_gets_no_traceback(tmp_path):
    config = str(DATA / "tiny_config.json")
    command = [sys.executable, "-m", "semsam_jax", "convert", REF, "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        [*command, "--model-config", config],
        cwd=DATA.parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()
    assert process.wait() == 141


def test_a_start_for_training(tmp_path, monkeypatch):
    # Ones instead of random numbers: compiling every initialiser would take a minute.
    def ones(model, key):
        shapes = jax.eval_shape(lambda: semantic_sam_init(model, key))
        return jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), shapes)

    semantic_sam_init = semantic_sam.init_params
    monkeypatch.setattr(semantic_sam, "init_params", ones)
    out = tmp_path / "start"
    arguments = ["convert", "--preset", "tiny", "--backbone", REF, "--text", REF]
    assert main([*arguments, "--out", str(out)]) == 0
    params, meta = checkpoint_io.read_model(out)
    config = presets.from_json(meta["model_config"])
    assert dataclasses.replace(config, text=None).has_generic
    assert meta["prompt_preset"] == "default"
    assert json.loads(json.dumps(meta["level_order"])) == [0, 1, 2, 3, 4, 5]
    stem = unwrap(read_state_dict(REF))["backbone.patch_embed.norm.weight"]
    np.testing.assert_array_equal(params["backbone"]["patch_embed"]["norm"]["scale"], stem)
    assert "query_selector" in params


@pytest.fixture(scope="module")
def ref_state():
    return read_state_dict(REF)


def convert(out, *args):
    config = str(DATA / "tiny_config.json")
    return main(["convert", *map(str, args), "--out", str(out), "--model-config", config])


def assert_same_model(folder, converted):
    got, wanted = (flatten(checkpoint_io.read_model(where)[0]) for where in (folder, converted))
    assert got.keys() == wanted.keys()
    assert all(np.array_equal(got[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    ("rename", "wrapper"),
    [
        (lambda key: "module." + key, "model"),
        (lambda key: "_orig_mod.module." + key, "state_dict"),
        (lambda key: key.replace("backbone.", "backbone._orig_mod."), None),
        (lambda key: "model." + key, "state_dict"),
        (lambda key: "ema_model.module." + key, None),
        (lambda key: "student." + key.removeprefix("model."), "model_ema"),
    ],
)
def test_prefixes_of_training_tools_come_off(
    rename, wrapper, converted, ref_state, tmp_path, capsys
):
    state = {rename(key): value for key, value in ref_state.items()} | {"n_averaged": np.int64(9)}
    write_state_dict(tmp_path / "a.pth", state, wrapper=wrapper)
    assert convert(tmp_path / "out", tmp_path / "a.pth") == 0, capsys.readouterr().err
    assert_same_model(tmp_path / "out", converted)


def test_safetensors_are_read(converted, ref_state, tmp_path, capsys):
    state = {"module." + key: np.array(value, order="C") for key, value in ref_state.items()}
    save_file(state, tmp_path / "a.safetensors")
    assert convert(tmp_path / "out", tmp_path / "a.safetensors") == 0
    assert_same_model(tmp_path / "out", converted)
    whole = (tmp_path / "a.safetensors").read_bytes()
    for size in (9, 100, len(whole) - 1):
        (tmp_path / "cut.safetensors").write_bytes(whole[:size])
        assert convert(tmp_path / "cut", tmp_path / "cut.safetensors") == 2
        assert "cut.safetensors" in capsys.readouterr().err
    assert not (tmp_path / "cut").exists()


def test_one_of_several_models_is_chosen(converted, ref_state, tmp_path, capsys):
    other = {
        key: value + 1 if value.dtype.kind == "f" else value for key, value in ref_state.items()
    }
    both = {f"online_model.{k}": v for k, v in other.items()}
    both |= {f"ema_model.{k}": v for k, v in ref_state.items()}
    write_state_dict(tmp_path / "a.pth", both)
    assert convert(tmp_path / "out", tmp_path / "a.pth") == 2
    assert "several models: ema_model.model, online_model.model" in capsys.readouterr().err
    assert convert(tmp_path / "out", tmp_path / "a.pth", "--entry", "ema_model") == 0
    assert_same_model(tmp_path / "out", converted)
    assert convert(tmp_path / "none", tmp_path / "a.pth", "--entry", "teacher") == 2
    assert "'teacher'" in capsys.readouterr().err


def test_nan_is_named_and_refused_unless_allowed(ref_state, tmp_path, capsys):
    name = "model.backbone.patch_embed.proj.weight"
    damaged = ref_state[name].copy()
    damaged.flat[7], damaged.flat[9] = np.nan, np.inf
    write_state_dict(tmp_path / "a.pth", ref_state | {name: damaged}, wrapper="model")
    assert convert(tmp_path / "out", tmp_path / "a.pth") == 2
    error = capsys.readouterr().err
    assert f"{name.removeprefix('model.')} (2)" in error
    assert not (tmp_path / "out").exists()
    assert convert(tmp_path / "out", tmp_path / "a.pth", "--allow-nonfinite") == 0
    capsys.readouterr()
    image = DATA.parents[1] / "data" / "coffee.jpg"
    args = ["segment", str(image), "--point", "50,50", "--out", str(tmp_path / "masks")]
    assert main([*args, "--checkpoint", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "NaN or infinity in backbone/" in error
    assert error.count("\n") == 1
