"""The command line on the embedded sample with an untrained tiny model."""

import json

import jax
import numpy as np
import pytest

from semsam_jax.__main__ import main
from semsam_jax.core import checkpoint_io
from semsam_jax.core.errors import ConfigError, DataError
from semsam_jax.evals.cli import SUITE_NAMES, parse_suites
from semsam_jax.evals.dataset_samples import Frame, open_dataset
from semsam_jax.evals.suites import SUITES
from semsam_jax.models import presets
from semsam_jax.models.semantic_sam import SemanticSAM, init_params


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    config = presets.PRESETS["tiny"]
    model = SemanticSAM(config)
    shapes = jax.eval_shape(lambda key: init_params(model, key), jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: 0.1 * rng.normal(size=x.shape).astype(np.float32), shapes)
    meta = {
        "preset": "tiny",
        "model_config": json.loads(presets.to_json(config)),
        "level_order": list(range(6)),
        "prompt_preset": "own",
        "image_size": 64,
        "class_heads_trained": True,
        "text": {"source": "encoder"},
    }
    folder = tmp_path_factory.mktemp("checkpoint")
    checkpoint_io.write_model(folder, dict(params), meta)
    return folder


def test_prompt_suites_write_tables_and_pictures(checkpoint, tmp_path, capsys):
    arguments = ["evaluate", "--checkpoint", str(checkpoint), "--out", str(tmp_path)]
    arguments += ["--suite", "one_click,baselines", "--data.limit", "2", "--prompts-per-call", "4"]
    assert main(arguments) == 0
    assert "1-click IoU, Max" in capsys.readouterr().out
    scores = json.loads((tmp_path / "one_click.json").read_text())["scores"]
    assert 0 <= scores["one_click/iou_max"] <= scores["one_click/iou_oracle"] <= 100
    names = {path.name for path in tmp_path.iterdir()}
    assert {"one_click.csv", "gallery.png", "levels.png", "baselines.md"} <= names
    # The published figures belong to the real data set, not to the sample.
    assert "54.5" not in (tmp_path / "one_click.md").read_text()


def test_generic_suite_names_its_classes(checkpoint, tmp_path, capsys):
    arguments = ["evaluate", "--checkpoint", str(checkpoint), "--out", str(tmp_path)]
    assert main([*arguments, "--suite", "generic", "--data.dataset", "pascal_part"]) == 0
    assert "20 of 20 objects" in capsys.readouterr().out
    assert (tmp_path / "precision_recall.png").exists()


def test_mistakes_are_told_in_one_line(checkpoint, tmp_path, capsys):
    arguments = ["evaluate", "--checkpoint", str(checkpoint), "--out", str(tmp_path)]
    for extra, message in (
        (["--suite", "nonsense"], "got nonsense"),
        (["--data.root", str(tmp_path)], "no folder coco"),
        (["--data.dataset", "mine"], "not in the embedded sample"),
        (["--data.image-size", "100"], "such as 128"),
        (["--data.limit", "0"], "at least 1"),
    ):
        assert main([*arguments, *extra]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_suite_names_are_those_of_the_suites():
    assert tuple(SUITES) == SUITE_NAMES
    assert parse_suites("box, box,one_click") == ["box", "one_click"]
    with pytest.raises(ConfigError):
        parse_suites(" , ")


def test_samples_of_both_frames_agree():
    dataset = open_dataset("coco", None, "val", Frame(128), 2)
    for canvas, photo in zip(dataset.samples(), dataset.photo_samples(), strict=True):
        assert canvas.image_id == photo.image_id
        np.testing.assert_array_equal(canvas.image, photo.image)
        assert set(canvas.ids()) <= set(photo.ids())
        slot = {number: index for index, number in enumerate(photo.ids())}
        for index, number in enumerate(canvas.ids()):
            small, large = canvas.mask(index), photo.truth_mask(slot[number])
            if small.sum() > 100:
                assert small.mean() == pytest.approx(large.mean(), rel=0.15)


def test_tight_canvas_is_a_multiple_of_32():
    dataset = open_dataset("coco", None, "val", Frame(256, 160, is_tight=True), 2)
    for sample in dataset.samples():
        height, width = sample.image.shape[:2]
        h, w = sample.size_hw
        assert height % 32 == width % 32 == 0
        assert height - h < 32
        assert width - w < 32
        assert min(h, w) == 160 or max(h, w) == 256


def test_own_folder_reads_its_names(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(DataError, match="no annotation file"):
        open_dataset("mine", str(tmp_path), "val", Frame(64), None)


def test_sa1b_has_no_classes():
    with pytest.raises(DataError, match="names no classes"):
        open_dataset("sa1b", None, "val", Frame(64), 1).class_list()


def test_part_classes_are_the_pairs_that_occur():
    classes, objects, parts = open_dataset("pascal_part", None, "val", Frame(64), 1).class_list()
    assert (len(objects), len(parts)) == (20, 30)
    assert classes.is_thing.all()
    assert len(classes.pairs.objects) == len(classes.pairs.parts)
