"""Scores over a folder of sources: arithmetic on hand-made tables, and one run of the command."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from semsam_jax.__main__ import main
from semsam_jax.core.errors import ConfigError
from semsam_jax.evals.dataset_samples import EvalFrame, open_folder
from semsam_jax.evals.options import EvalOptions
from semsam_jax.evals.sources import MaskScores, source_folders, summarize


def table(click_iou, predicted_iou, images=None, fill=0.5) -> MaskScores:
    """Scores whose boxes are answered like the clicks, and whose levels halve in area."""
    click_iou, predicted_iou = np.asarray(click_iou, float), np.asarray(predicted_iou, float)
    count, levels = click_iou.shape
    area = np.tile(0.5 ** np.arange(levels), (count, 1))
    images = np.arange(count) if images is None else np.asarray(images)
    ones = np.ones(count)
    return MaskScores(
        images, click_iou, predicted_iou, area, click_iou, predicted_iou, fill * ones, 0.2 * ones
    )


def test_every_source_weighs_the_same():
    scores = {
        "one": table([[0.2, 0.8]], [[0.9, 0.1]]),
        "three": table([[0.4, 0.6]] * 3, [[0.1, 0.9]] * 3, fill=0.7),
    }
    total = summarize(scores)
    assert total["chosen"] == pytest.approx((0.2 + 0.6) / 2)  # not (0.2 + 3 * 0.6) / 4
    assert total["oracle"] == total["fixed"] == pytest.approx((0.8 + 0.6) / 2)
    assert total["fixed_level"] == 2
    assert total["fill"] == pytest.approx(0.6)
    assert total["kendall_tau"] == 1.0
    assert np.isnan(total["chosen_error"])  # one image has no spread


def test_the_error_counts_images_and_not_masks():
    iou = np.repeat([[0.0, 0.0], [1.0, 0.5]], 50, axis=0)
    total = summarize({"a": table(iou, iou, images=np.repeat([0, 1], 50))})
    # The mean of two images drawn from {0, 1} has the standard deviation sqrt(1/8).
    assert total["chosen_error"] == pytest.approx(8**-0.5, abs=0.02)
    assert total["correlation"] == pytest.approx(1.0)


def write_source(folder, file_name, side=64):
    """An image with a square of a fifth of its side, and a speck that is too small to click."""
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    Image.new("RGB", (side, side)).save(folder / "images" / file_name)
    squares = [[8, 8, 16, 16], [40, 40, 4, 4]]
    annotations = [
        {
            "id": number + 1,
            "image_id": 1,
            "category_id": 1,
            "bbox": [x, y, w, h],
            "area": w * h,
            "iscrowd": 0,
            "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
        }
        for number, (x, y, w, h) in enumerate(squares)
    ]
    image = {"id": 1, "file_name": file_name, "height": side, "width": side}
    content = {"images": [image], "annotations": annotations}
    content["categories"] = [{"id": 1, "name": "square"}]
    (folder / "annotations/val.json").write_text(json.dumps(content))


def test_a_folder_that_is_a_dataset_is_its_only_source(tmp_path):
    write_source(tmp_path / "coco", "a.png")
    assert source_folders(tmp_path / "coco", "val") == [tmp_path / "coco"]
    dataset = open_folder(tmp_path / "coco", "val", EvalFrame(64), None)
    assert (dataset.name, dataset.class_names().objects) == ("custom", {0: "square"})
    shape = {"label": "square", "points": [[8, 8], [24, 8], [24, 24]], "shape_type": "polygon"}
    about = {"shapes": [shape], "imagePath": "a.png", "imageHeight": 64, "imageWidth": 64}
    for split in ("train", "val"):  # of LabelMe, each of which could be a dataset, too
        folder = tmp_path / "mine" / split
        folder.mkdir(parents=True)
        Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(folder / "a.png")
        (folder / "a.json").write_text(json.dumps(about))
    assert source_folders(tmp_path / "mine", "val") == [tmp_path / "mine"]
    assert source_folders(tmp_path, "val") == [tmp_path / "coco", tmp_path / "mine"]


def test_the_command_writes_a_row_per_source_and_mask(checkpoint, tmp_path, capsys):
    for name in ("first", "second"):
        write_source(tmp_path / "val" / name, "a.png")
    (tmp_path / "val/notes").mkdir()  # no dataset, no source
    (tmp_path / "val/.cache").mkdir()
    out = tmp_path / "out"
    command = ["evaluate", str(tmp_path / "val"), "--checkpoint", str(checkpoint)]
    assert main([*command, "--out", str(out), "--data.image-size", "96"]) == 0
    shown = capsys.readouterr().out
    assert "- frame: images are resized to 96 px\n" in shown
    assert "mean of 2 sources" in shown
    assert "- first: masks of fewer than 64 pixels, which are not scored: 1\n" in shown
    assert "- notes: no dataset with the split 'val', not scored\n" in shown
    assert ".cache" not in shown
    content = json.loads((out / "sources.json").read_text())
    assert set(content["sources"]) == {"first", "second"}
    assert content["mean"]["fill"] == 1.0  # a square fills its box
    assert content["sources"]["first"] == content["sources"]["second"]
    with (out / "sources.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["source"] for row in rows] == ["first", "second"]
    assert float(rows[0]["area"]) == pytest.approx(16**2 / 64**2)


@pytest.mark.parametrize(
    "given",
    [
        "--suite box", "--protocol square", "--data.root .", "--data.dataset coco",
        "--data.view any", "--data.short-side 64", "--data.canvas tight", "--prompts-per-call 16",
        "--images-per-device 1", "--points-per-side 32", "--data.view part --points-per-side 8",
    ],
)  # fmt: skip
def test_options_that_a_folder_does_not_use_are_refused(given, tmp_path, capsys):
    assert main(["evaluate", str(tmp_path), *given.split()]) == 2
    error = capsys.readouterr().err
    assert f"{', '.join(given.split()[::2])}: no effect on a folder of sources" in error
    assert error.count("\n") == 1


def test_a_config_that_a_folder_does_not_use_is_refused():
    with pytest.raises(ConfigError, match="view, write_levels: no effect on a folder of sources"):
        EvalOptions(folder="val", split="test", view="part", write_levels=True)


def test_machine_made_masks_are_counted_and_not_scored(checkpoint, tmp_path, capsys):
    write_source(tmp_path / "a", "a.png")
    file = tmp_path / "a/annotations/val.json"
    content = json.loads(file.read_text())
    command = ["evaluate", str(tmp_path / "a"), "--checkpoint", str(checkpoint)]
    command += ["--out", str(tmp_path / "out")]
    content["annotations"][1]["is_pseudo"] = 1
    file.write_text(json.dumps(content))
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "machine-made masks, which are not scored: 1\n" in shown
    assert "no dataset with the split" not in shown  # the folder is the source
    for annotation in content["annotations"]:
        annotation["is_pseudo"] = 1
    file.write_text(json.dumps(content))
    assert main(command) == 2
    count = len(content["annotations"])
    assert f"all {count} masks in 'val' are machine-made, which are" in capsys.readouterr().err


def test_mistakes_are_told_in_one_line(checkpoint, tmp_path, capsys):
    (tmp_path / "val").mkdir()
    for folder, extra, message in (
        ("nowhere", [], "no such folder"),
        ("val", [], "none of its folders holds a dataset"),
        ("val", ["--suite", "box"], "no effect on a folder"),
    ):
        command = ["evaluate", str(tmp_path / folder), "--checkpoint", str(checkpoint)]
        assert main([*command, *extra]) == 2
        assert message in capsys.readouterr().err
