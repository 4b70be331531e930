"""The command line on the embedded sample with an untrained tiny model."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import eval_only
from data_pipelines.transforms import geometry
from semsam_jax import config
from semsam_jax.__main__ import main
from semsam_jax.core import checkpoint_io
from semsam_jax.core.errors import ConfigError, DataError
from semsam_jax.core.model_files import save_model
from semsam_jax.evals import run
from semsam_jax.evals.dataset_samples import EvalFrame, open_dataset
from semsam_jax.evals.options import SUITE_NAMES, EvalOptions, parse_suites
from semsam_jax.evals.run import choose_frame
from semsam_jax.evals.suite_context import SuiteResult
from semsam_jax.evals.suites import SUITES


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
    for name in ("generic.md", "results.md"):
        assert "| class | AP | AP50 |\n|---|---:|---:|\n| " in (tmp_path / name).read_text()
    assert json.loads((tmp_path / "generic.json").read_text())["classes"]


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


@pytest.mark.parametrize(
    ("given", "suites", "others"),
    [
        ("--data.view part", "generic,part", "one_click, levels, box"),
        ("--points-per-side 8", "one_click", "everything, proposals, otq"),
        ("--data.image-size 64", "otq", "one_click, levels, box"),
        ("--data.short-side 64", "otq", "one_click, levels, box"),
        ("--data.canvas tight", "otq", "one_click, levels, box"),
        ("--protocol square", "otq", "one_click, levels, box"),
    ],
)
def test_options_that_no_chosen_suite_uses_are_refused(given, suites, others, capsys):
    assert main(["evaluate", "--suite", suites, *given.split()]) == 2
    error = capsys.readouterr().err
    assert f"{given}: no effect on --suite {suites}; leave it out, or" in error
    assert f"measure one of {others}" in error


def test_a_report_says_what_its_suite_used(checkpoint, tmp_path, capsys):
    arguments = ["evaluate", "--checkpoint", str(checkpoint), "--out", str(tmp_path)]
    arguments += ["--suite", "one_click,everything", "--data.limit", "1", "--data.view", "object"]
    assert main([*arguments, "--points-per-side", "2"]) == 0
    capsys.readouterr()
    texts = [(tmp_path / f"{name}.md").read_text() for name in ("one_click", "everything")]
    assert ["2 x 2 clicks" in text for text in texts] == [False, True]
    assert all("- prompted masks: object\n" in text for text in texts)
    assert not any("object masks (" in text for text in texts)


def test_suite_names_are_those_of_the_suites():
    assert tuple(SUITES) == SUITE_NAMES
    assert parse_suites("box, box,one_click") == ("box", "one_click")
    with pytest.raises(ConfigError, match="got nothing"):
        EvalOptions(suites=parse_suites(" , "))


def test_calibration_writes_the_order_it_measured(checkpoint, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    arguments = ["calibrate", "--checkpoint", str(copy), "--data.limit", "2"]
    arguments += ["--prompts-per-call", "4"]
    assert main([*arguments, "--dry-run"]) == 0
    assert checkpoint_io.read_meta(copy)["level_order"] == list(range(6))
    assert "wrote" not in capsys.readouterr().out
    assert main([*arguments, "--levels"]) == 0
    meta = checkpoint_io.read_meta(copy)
    assert sorted(meta["level_sizes"], reverse=True) == meta["level_sizes"]
    assert "mask_thresholds" not in meta
    assert main(arguments) == 0
    order = checkpoint_io.read_meta(copy)["level_order"]
    folder = copy / "evaluation" / "coco"
    scores = json.loads((folder / "levels.json").read_text())["scores"]
    areas = [scores[f"levels/area/{level}"] for level in range(1, 7)]
    assert areas == sorted(areas, reverse=True)
    sizes = checkpoint_io.read_meta(copy)["level_sizes"]
    assert len(sizes) == 6
    assert all(0 <= size <= 1 for size in sizes)
    assert f"wrote the order of levels {order}" in capsys.readouterr().out
    suited = checkpoint_io.read_meta(copy)["mask_thresholds"]
    assert 0 < suited["pred_iou"] <= 0.88
    assert 0 < suited["stability"] <= 0.92
    assert -1 <= scores["levels/kendall_tau"] <= 1
    assert (folder / "levels.png").exists()
    assert "| level 1, mean mask area" in (folder / "results.md").read_text()
    checkpoint_io.read_model(copy)  # still whole


def test_a_calibration_that_is_cut_short_changes_nothing(checkpoint, tmp_path, monkeypatch, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    arguments = ["calibrate", "--checkpoint", str(copy), "--data.limit", "2"]
    arguments += ["--prompts-per-call", "4", "--out", str(tmp_path / "out")]

    def stops(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "mask_thresholds", stops)
    assert main(arguments) == 130
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
    assert "wrote" not in capsys.readouterr().out
    assert main(["calibrate", "--levels"]) == 2
    assert "model of the package" in capsys.readouterr().err


def test_calibration_chooses_what_labels_images(checkpoint, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    before = checkpoint_io.read_meta(copy)
    arguments = ["calibrate", "--panoptic", "--checkpoint", str(copy), "--data.limit", "1"]
    assert main(arguments) == 0
    folder = copy / "evaluation" / "coco"
    scores = {}
    for suite in ("generic", "everything"):
        scores |= json.loads((folder / f"{suite}.json").read_text())["scores"]
    chosen = "masks" if scores["everything/pq"] > scores["generic/panoptic/pq"] else "generic"
    assert f"wrote panoptic_source {chosen}" in capsys.readouterr().out
    assert checkpoint_io.read_meta(copy) == before | {"panoptic_source": chosen}


def test_images_are_labelled_by_what_has_the_higher_pq():
    def chosen(generic, masks):
        return run._better_source(
            {
                "generic": SuiteResult(rows=[], scalars={"generic/panoptic/pq": generic}),
                "everything": SuiteResult(rows=[], scalars={"everything/pq": masks}),
            }
        )

    assert chosen(2.9, 13.7) == "masks"
    assert chosen(40.0, 13.7) == "generic"
    assert chosen(0.0, 0.0) == "generic"
    with pytest.raises(ConfigError, match="PQ is nan of the generic branch"):
        chosen(float("nan"), 1.0)
    with pytest.raises(ConfigError, match="compares the suites generic and everything"):
        EvalOptions(suites=("generic",), write_panoptic=True)


def test_an_evaluation_is_resumed_with_the_same_weights_only(checkpoint):
    params, meta = checkpoint_io.read_model(checkpoint)
    dataset = open_dataset("coco", None, "val", EvalFrame(64), 1)
    options = EvalOptions()

    def settings(options, params, meta):
        return run._about(options, checkpoint, params, meta, dataset) | run._identity(
            options, meta, dataset
        )

    found = [
        settings(options, params, meta),
        settings(EvalOptions(suites=("otq",), points_per_side=8), params, meta),
        settings(options, params, meta | {"level_order": [1, 0, 2, 3, 4, 5]}),
        settings(options, jax.tree.map(lambda x: x + (x == x.max()), params), meta),
    ]
    assert len({json.dumps(one, sort_keys=True) for one in found}) == len(found)
    assert found[0] == settings(options, *checkpoint_io.read_model(checkpoint))


def test_results_of_other_weights_are_not_combined(checkpoint, tmp_path, capsys):
    """A model that was trained anew in the same folder, for as many steps."""
    copy, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(checkpoint, copy)
    arguments = ["evaluate", "--checkpoint", str(copy), "--out", str(out), "--data.limit", "1"]
    assert main([*arguments, "--suite", "one_click"]) == 0
    assert main([*arguments, "--suite", "box"]) == 0
    results = out / "results.md"
    assert all(text in results.read_text() for text in ("1-click IoU, Max", "box prompt IoU, Max"))
    params, meta = checkpoint_io.read_model(copy)
    save_model(copy, jax.tree.map(lambda x: 0.5 * x, params), meta, overwrite=True)
    assert main([*arguments, "--suite", "box"]) == 0
    assert "box prompt IoU, Max" in results.read_text()
    assert "1-click IoU, Max" not in results.read_text()
    capsys.readouterr()


def test_eval_only_config_is_the_same_evaluation(checkpoint, tmp_path):
    command = [sys.executable, "-m", "semsam_jax.main", "--config=configs/eval_only.py:baselines"]
    command += [f"--workdir={tmp_path}", f"--config.evaluate.checkpoint={checkpoint}"]
    command += ["--config.evaluate.limit=1", "--config.evaluate.protocol=original_size"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    content = json.loads((tmp_path / "baselines.json").read_text())
    assert "scored in the image's pixels" in content["meta"]["frame"]
    assert content["scores"]["baseline_blob/num_instances"] > 0
    assert not list((tmp_path / "progress").iterdir())


def test_every_option_is_in_the_eval_only_config():
    group = eval_only.get_config("box,generic").evaluate.to_dict()
    fields = EvalOptions.__dataclass_fields__
    assert set(group) | {"out"} == set(fields)
    options = config.build_evaluation(eval_only.get_config("box,generic"), "x")
    assert options == EvalOptions(suites=("box", "generic"), out="x")
    with pytest.raises(ConfigError, match="only the group evaluate"):
        config.build_evaluation({"evaluate": {}, "steps": 3}, "x")
    with pytest.raises(ConfigError, match="--protocol 'mine'"):
        config.build_evaluation({"evaluate": {"protocol": "mine"}}, "x")


def test_frames_of_the_protocols():
    own, released = (
        {"image_size": 256, "prompt_preset": "default"},
        {"prompt_preset": "released_v1"},
    )
    published = EvalFrame(1344, 800, 1333, is_tight=True)
    assert choose_frame(EvalOptions(), own) == EvalFrame(256)
    assert choose_frame(EvalOptions(), released) == published
    assert choose_frame(EvalOptions(protocol="released_v1"), own) == published
    in_image = choose_frame(EvalOptions(protocol="original_size"), own)
    assert in_image == EvalFrame(256, in_image_frame=True)
    assert choose_frame(EvalOptions(protocol="square"), released) == EvalFrame(1344)
    small = choose_frame(EvalOptions(image_size=512, canvas="square"), released)
    assert small == EvalFrame(512)


def test_published_frame_is_the_original_resize():
    # detectron2's ResizeShortestEdge(800, 1333): 480 x 640 and a panorama.
    for image, want in (((480, 640), (800, 1067)), ((300, 1000), (400, 1333))):
        placement = geometry.fit_placement(*image, 1344, 800, 1333)
        assert placement.size_hw == want


def test_samples_of_both_frames_agree():
    dataset = open_dataset("coco", None, "val", EvalFrame(128), 2)
    for canvas, image in zip(dataset.samples(), dataset.image_samples(), strict=True):
        assert canvas.image_id == image.image_id
        np.testing.assert_array_equal(canvas.image, image.image)
        assert set(canvas.ids()) <= set(image.ids())
        slot = {number: index for index, number in enumerate(image.ids())}
        for index, number in enumerate(canvas.ids()):
            small, large = canvas.mask(index), image.truth_mask(slot[number])
            if small.sum() > 100:
                assert small.mean() == pytest.approx(large.mean(), rel=0.15)


def test_tight_canvas_is_a_multiple_of_32():
    dataset = open_dataset("coco", None, "val", EvalFrame(256, 160, is_tight=True), 2)
    for sample in dataset.samples():
        height, width = sample.image.shape[:2]
        h, w = sample.size_hw
        assert height % 32 == width % 32 == 0
        assert height - h < 32
        assert width - w < 32
        assert min(h, w) == 160 or max(h, w) == 256


def test_custom_folder_reads_its_names(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(DataError, match="no annotations of split"):
        open_dataset("mine", str(tmp_path), "val", EvalFrame(64), None)


def test_sa1b_has_no_classes():
    with pytest.raises(DataError, match="has no classes"):
        open_dataset("sa1b", None, "val", EvalFrame(64), 1).class_list()


def test_part_classes_are_the_pairs_that_occur():
    classes, objects, parts = open_dataset(
        "pascal_part", None, "val", EvalFrame(64), 1
    ).class_list()
    assert (len(objects), len(parts)) == (20, 30)
    assert classes.is_thing.all()
    assert len(classes.pairs.objects) == len(classes.pairs.parts)
