"""OpenSeeD's published models: names of the whole model, what is drawn, and what is refused."""

import numpy as np
import pytest

from semsam_jax.__main__ import main
from semsam_jax.convert import openseed
from semsam_jax.convert.detect import detect_config
from semsam_jax.convert.from_torch import examine
from semsam_jax.convert.names import unwrap
from semsam_jax.convert.released import read_released
from semsam_jax.convert.torch_reader import read_state_dict
from semsam_jax.convert.torch_writer import write_state_dict
from semsam_jax.core.checkpoint_io import read_model
from semsam_jax.core.errors import CheckpointError, ConversionError
from semsam_jax.inference.labels import label_set
from semsam_jax.inference.loading import model_from_params
from semsam_jax.inference.predictor import Predictor
from semsam_jax.models.presets import PRESETS
from tests.convert.test_from_torch import DATA, hollow_state, key_list

PREDICTOR = "sem_seg_head.predictor."
DRAWN = ("mask_tokens", "pb_embedding", "label_enc", "iou_prediction_head", "class_embed_part")


def openseed_keys(backbone="swint"):
    """Names and shapes of `openseed_swint_lang.yaml`, read off its code.

    Those of Semantic-SAM with a text tower, without what was added for prompts and parts, and with
    the selection of queries, which Semantic-SAM's published files lack.
    """
    keys = key_list(backbone) | key_list("text")
    keys = {k: v for k, v in keys.items() if not k.startswith(tuple(PREDICTOR + d for d in DRAWN))}
    shapes = {"enc_output.weight": (256, 256)}
    shapes |= dict.fromkeys(
        ("enc_output.bias", "enc_output_norm.weight", "enc_output_norm.bias"), (256,)
    )
    return keys | {PREDICTOR + name: (shape, "float32", []) for name, shape in shapes.items()}


def test_the_published_swin_t_maps_completely():
    state = hollow_state(openseed_keys(), 7)
    state["criterion.empty_weight"] = np.zeros(134, np.float32)
    assert openseed.is_openseed(state)
    preset, config = detect_config(state)
    assert preset == "swin_t"
    assert config.has_generic
    assert config.text == PRESETS["swin_t"].text
    report = examine(state, config)
    assert not report.unexpected
    assert not report.misshaped
    assert sorted(report.missing) == sorted(openseed.complete(state, config)[1])
    full, drawn = openseed.complete(state, config)
    assert {name.split(".")[2] for name in drawn} == set(DRAWN)
    report = examine(full, config)
    report.check("list")
    assert report.is_complete
    openseed.check(state, "list")
    assert not openseed.is_openseed(full)


@pytest.mark.parametrize(
    ("backbone", "preset", "window"), [("swint", "swin_t", 7), ("swinl", "swin_l", 12)]
)
def test_learned_queries_are_refused_and_are_all_that_is_missing(backbone, preset, window):
    """`openseed_swin*_lang_decouple.yaml`: 100 learned queries for stuff, everything else maps."""
    state = hollow_state(openseed_keys(backbone), window)
    rest, config = detect_config(state)
    assert (rest, config.has_generic) == (preset, True)
    assert examine(openseed.complete(state, config)[0], config).is_complete
    queries = {f"{PREDICTOR}query_{kind}.weight": n for kind, n in (("feat", 256), ("embed", 4))}
    state |= {name: np.zeros((100, width), np.float32) for name, width in queries.items()}
    assert detect_config(state) == (rest, config)
    assert examine(state, config).unexpected == list(queries)
    told = r"x.pt: a model of OpenSeeD with the decoupled decoder.*100 learned.*--backbone FILE"
    with pytest.raises(ConversionError, match=told):
        openseed.check(state, "checkpoint x.pt")
    report = examine(state, config, parts=("backbone",))
    assert not report.missing
    assert not report.misshaped


@pytest.mark.nightly  # draws what the file lacks, which compiles
def test_the_backbone_of_a_file_with_learned_queries_converts(tmp_path, capsys):
    """As the message says; of the small recorded model."""
    state = {}
    for name in ("tiny_ref", "tiny_generic_ref"):
        state |= unwrap(read_state_dict(DATA / f"{name}.pth"))
    kept = {k: v for k, v in state.items() if not k.startswith(tuple(PREDICTOR + d for d in DRAWN))}
    kept[f"{PREDICTOR}query_feat.weight"] = np.zeros((100, 64), np.float32)
    file = tmp_path / "decoupled.pt"
    write_state_dict(file, {f"model.{key}": value for key, value in kept.items()})
    assert main(["convert", str(file), "--out", str(tmp_path / "a")]) == 2
    said = capsys.readouterr().err
    assert "query_feat.weight" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "a").exists()
    command = ["convert", "--preset", "tiny", "--backbone", str(file)]
    assert main([*command, "--out", str(tmp_path / "b")]) == 0
    params, _ = read_model(tmp_path / "b")
    stem = params["backbone"]["patch_embed"]["norm"]["scale"]
    np.testing.assert_array_equal(stem, state["backbone.patch_embed.norm.weight"])


def test_a_file_without_prompts_says_so(tmp_path):
    """Of the small recorded model; it names the whole image, and answers no click."""
    state = {}
    for name in ("tiny_ref", "tiny_generic_ref"):
        state |= unwrap(read_state_dict(DATA / f"{name}.pth"))
    kept = {k: v for k, v in state.items() if not k.startswith(tuple(PREDICTOR + d for d in DRAWN))}
    write_state_dict(tmp_path / "openseed.pt", kept)
    told = []
    found = read_released([tmp_path / "openseed.pt"], tell=told.append)
    assert "trained without prompts and parts; at random: " in told[0]
    assert found.meta["prompts_trained"] is False
    assert found.meta["class_heads_trained"] is True
    np.testing.assert_array_equal(
        found.params["decoder"]["object_embed"], state[f"{PREDICTOR}class_embed"]
    )
    again = read_released([tmp_path / "openseed.pt"])
    np.testing.assert_array_equal(
        again.params["decoder"]["part_embed"], found.params["decoder"]["part_embed"]
    )
    model = model_from_params(found.params, found.meta)
    predictor = Predictor(model)
    predictor.set_image(np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(CheckpointError, match="trained without clicks and boxes"):
        predictor.predict(point_coords=[[5, 5]])
    with pytest.raises(CheckpointError, match="'head' is the name of a part"):
        label_set(model, "dog;head")
