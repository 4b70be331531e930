import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from semsam_jax.__main__ import main
from semsam_jax.core.model_files import save_model
from semsam_jax.inference import auto
from tests.inference.conftest import DATA, tiny_meta


@pytest.fixture
def image(tmp_path, image_a):
    path = tmp_path / "dog.png"
    Image.fromarray(image_a).resize((133, 170)).save(path)
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SEMSAM_JAX_CACHE", str(tmp_path / "cache"))


def run(*args):
    return main([str(arg) for arg in args])


def test_click_writes_masks_and_picture_beside_the_image(image, tiny_checkpoint):
    code = run("segment", image, "--checkpoint", tiny_checkpoint, "--point", "60,80", "--size", 96)
    assert code == 0
    out = image.with_name("dog_segments")
    names = ["masks.json", "overlay.png", "source.json"]
    assert sorted(p.name for p in out.iterdir()) == names
    records = json.loads((out / "masks.json").read_text())
    assert [r["level"] for r in records] == [1, 2, 3, 4, 5, 6]
    assert [r["token"] for r in records] == [3, 2, 0, 4, 1, 5]
    for record in records:
        assert isinstance(record["segmentation"]["counts"], str)
        rle = record["segmentation"]
        mask = coco_mask.decode(rle)
        assert mask.shape == (170, 133)
        assert mask.sum() == record["area"]
        np.testing.assert_array_equal(coco_mask.toBbox(rle), record["bbox"])


def test_masks_json_is_a_result_list_for_pycocotools(image, tiny_checkpoint, tmp_path):
    args = ["--checkpoint", tiny_checkpoint, "--point", "60,80", "--size", 96, "--out", tmp_path]
    assert run("segment", image, *args) == 0
    truth = COCO()
    truth.dataset = {
        "images": [{"id": 1, "height": 170, "width": 133}],
        "annotations": [],
        "categories": [],
    }
    truth.createIndex()
    results = truth.loadRes(str(tmp_path / "masks.json"))
    assert sorted(a["category_id"] for a in results.anns.values()) == [1, 2, 3, 4, 5, 6]
    areas = {r["level"]: r["area"] for r in json.loads((tmp_path / "masks.json").read_text())}
    for annotation in results.anns.values():
        assert results.annToMask(annotation).sum() == areas[annotation["category_id"]]


def test_several_prompts_levels_and_negative_clicks(image, tiny_checkpoint, tmp_path):
    base = ["segment", image, "--checkpoint", tiny_checkpoint, "--size", 96, "--level", 3]
    out = tmp_path / "each"
    args = ["--point", "60,80", "--point", "20,20", "--box", "10,10,90,120", "--out", out]
    assert run(*base, *args) == 0
    assert [r["prompt"] for r in json.loads((out / "masks.json").read_text())] == [0, 1, 2]
    out = tmp_path / "one"
    assert run(*base, "--point", "60,80", "--negative", "20,20", "--out", out) == 0
    (record,) = json.loads((out / "masks.json").read_text())
    assert record["point_labels"] == [1, 0]
    same = tmp_path / "same"
    assert run(*base, "--point", "60,80", "--point", "20,20,0", "--out", same) == 0
    assert json.loads((same / "masks.json").read_text()) == [record]


def test_released_click_through_the_command_line_equals_reference(tmp_path, image_a, golden):
    """The released file as it is, converted; the image at its own size; the recorded demo."""
    Image.fromarray(image_a).save(tmp_path / "a.png")
    config = DATA / "tiny_config.json"
    model, out = tmp_path / "model", tmp_path / "out"
    assert run("convert", DATA / "tiny_ref.pth", "--model-config", config, "--out", model) == 0
    want = golden["tiny_image_a"]
    positive = np.unpackbits(want["demo_one/masks_positive"], axis=-1, count=160).astype(bool)
    x, y = want["demo_one/prompt_cxcywh"][0, :2].astype(np.float64) * [160, 128]
    args = ["--checkpoint", model, "--prompt-preset", "released_v1", "--size", "native"]
    assert run("segment", tmp_path / "a.png", *args, "--point", f"{x},{y}", "--out", out) == 0
    records = json.loads((out / "masks.json").read_text())
    assert [r["token"] for r in records] == [3, 2, 0, 4, 1, 5]
    for record in records:
        token = record["token"]
        assert abs(record["predicted_iou"] - want["demo_one/ious"][0, 0, token]) < 5e-5
        mask = coco_mask.decode(record["segmentation"]).astype(bool)
        assert (mask != positive[token]).sum() <= 3


def test_level_by_area(image, tiny_checkpoint, tmp_path, capsys):
    base = ["segment", image, "--checkpoint", tiny_checkpoint, "--size", 96, "--point", "60,80"]
    assert run(*base, "--out", tmp_path / "all") == 0
    every = json.loads((tmp_path / "all" / "masks.json").read_text())
    assert run(*base, "--area", 0.3, "--out", tmp_path / "one") == 0
    (record,) = json.loads((tmp_path / "one" / "masks.json").read_text())
    assert record["level"] in {r["level"] for r in every}
    distance = [abs(np.log(r["area"] / (170 * 133) / 0.3)) for r in every]
    assert distance[record["level"] - 1] < min(distance) + 0.1  # areas are judged at stride 4
    for area in ("0", "nan", "1.5", "-1"):
        assert run(*base, f"--area={area}") == 2
        assert "area" in capsys.readouterr().err
    assert run(*base, "--area=0.3", "--level=2") == 2
    assert "area: got it together with level 2" in capsys.readouterr().err


def test_granularities_on_the_command_line(image, tiny_checkpoint, tmp_path, capsys):
    base = ["segment", image, "--checkpoint", tiny_checkpoint, "--size", 96, "--point", "60,80"]
    assert run(*base, "--granularity", "0.3,1", "--out", tmp_path / "two") == 0
    records = json.loads((tmp_path / "two" / "masks.json").read_text())
    assert [record["granularity"] for record in records] == [0.3, 1.0]
    assert records[1]["level"] == 1
    for wrong in ("nan", "1.5", "-0.1", "coarse", "0.5,"):
        assert run(*base, f"--granularity={wrong}") == 2
        assert "granularity" in capsys.readouterr().err
    assert run(*base, "--granularity=0.5", "--level=2") == 2
    assert "together with level" in capsys.readouterr().err
    whole = ["segment", image, "--task=panoptic", "--labels=dog", "--granularity=0.5"]
    assert run(*whole) == 2
    assert "no levels" in capsys.readouterr().err


def test_wrong_command_lines_print_one_line_and_write_nothing(image, tiny_checkpoint, capsys):
    model = ["--checkpoint", tiny_checkpoint]
    for args, message in (
        (["--point", "999,1", *model], "133x170"),
        (["--point", "nan,1", *model], "finite"),
        (["--point", "1", *model], "2 numbers"),
        (["--point", "5,5", "--level", "7", *model], "level"),
        (["--point", "5,5", "--size", "big", *model], "native"),
        (["--point", "5,5", "--labels", "dog", *model], "never trained"),
        (["--task", "panoptic", *model], "--labels"),
        (model, "none given"),
        (["--point", "5,5", "--checkpoint", "/no/such/folder"], "no such folder"),
    ):
        assert run("segment", image, *args) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert message in error
    assert [p.name for p in image.parent.iterdir() if p.is_dir()] in ([], ["cache"])
    with pytest.raises(SystemExit) as stop:
        run("segment", image, "--bogus")
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--point=60,80"], "--point: not with --task"),
        (["--negative=60,80"], "--negative: not with --task"),
        (["--box=10,10,90,120"], "--box: not with --task"),
        (["--one-object"], "--one-object: not with --task"),
        (["--level=3"], "no levels"),
        (["--area=0"], "no levels"),
    ],
)
def test_a_task_of_the_whole_image_rejects_prompts(image, capsys, task, args, message):
    assert run("segment", image, "--task", task, "--labels=dog", *args) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_traceback_shows_the_rest(image):
    from semsam_jax.core.errors import PromptError

    with pytest.raises(PromptError):
        run("segment", image, "--traceback")


def test_auto_resumes_a_folder_and_reports_broken_files(tmp_path, image_a, tiny_checkpoint, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(image_a).save(folder / "a.png")
    Image.fromarray(image_a[:, ::-1]).save(folder / "a.jpg")
    Image.fromarray(image_a[:96]).save(folder / "b.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    args = ["auto", folder, "--checkpoint", tiny_checkpoint, "--size", 96, "--points-per-side", 3]
    args += ["--pred-iou-thresh", 0, "--stability-score-thresh", 0.1]
    assert run(*args) == 0
    shown = capsys.readouterr()
    assert "broken.jpg" in shown.err
    assert "3 images" in shown.out
    out = tmp_path / "images_segments"
    stems = ("a.png", "a.jpg", "b")
    files = {f"{stem}.{kind}" for stem in stems for kind in ("json", "jpg")}
    assert {p.name for p in out.iterdir()} == files | {"overlays"}
    assert {p.name for p in (out / "overlays").iterdir()} == {f"{stem}.jpg" for stem in stems}
    content = json.loads((out / "b.json").read_text())
    assert content["image"]["width"] == 160
    assert content["annotations"]
    first = content["annotations"][0]
    wanted = {"id", "bbox", "area", "segmentation", "predicted_iou", "stability_score"}
    assert wanted | {"crop_box", "point_coords", "level"} <= set(first)
    assert coco_mask.decode(first["segmentation"]).sum() == first["area"]
    # A second run does only what is missing, and everything again with other settings.
    (out / "b.json").unlink()
    before = (out / "a.png.json").stat().st_mtime_ns
    assert run(*args) == 0
    assert ", 2 already finished" in capsys.readouterr().out
    assert (out / "a.png.json").stat().st_mtime_ns == before
    assert (out / "b.json").exists()
    assert run(*args, "--level", 3) == 0
    assert (out / "a.png.json").stat().st_mtime_ns != before


AUTO = ["--size", 96, "--points-per-side", 2, "--stability-score-thresh", 0]
AUTO += ["--pred-iou-thresh", -9]


def test_auto_tells_images_of_one_name_apart(tmp_path, image_a, tiny_checkpoint, capsys):
    """The same name in two folders, then the first image edited in place, as `cp` does."""
    out = tmp_path / "out"
    sizes = {"day1": (90, 60), "day2": (70, 80)}
    for day, size in sizes.items():
        (tmp_path / day).mkdir()
        Image.fromarray(image_a).resize(size).save(tmp_path / day / "p1.jpg")
        args = ["auto", tmp_path / day, "--checkpoint", tiny_checkpoint, *AUTO, "--out", out]
        for again in (False, True):
            assert run(*args) == 0
            shown = capsys.readouterr()
            assert (", 1 already finished" in shown.out) == again
            assert ("results of another image" in shown.err) == (day == "day2" and not again)
    first = tmp_path / "day1" / "p1.jpg"
    edited = tmp_path / "edited.jpg"
    Image.fromarray(image_a[:, ::-1]).resize((50, 50)).save(edited)
    first.write_bytes(edited.read_bytes())
    assert run("auto", tmp_path / "day1", "--checkpoint", tiny_checkpoint, *AUTO, "--out", out) == 0
    found = set()
    for file in out.glob("*.json"):
        content = json.loads(file.read_text())["image"]
        with Image.open(out / content["file_name"]) as copy:
            assert copy.size == (content["width"], content["height"])
        found.add(copy.size)
    assert found == {*sizes.values(), (50, 50)}


def test_auto_leaves_foreign_files_alone_and_names_what_it_does_not_read(
    tmp_path, image_a, tiny_checkpoint, capsys
):
    images, out = tmp_path / "images", tmp_path / "out"
    (images / "older").mkdir(parents=True)
    out.mkdir()
    Image.fromarray(image_a).save(images / "a.jpg")
    (images / "b.jfif").write_bytes((images / "a.jpg").read_bytes())
    for name in ("d.heic", "notes.txt"):
        (images / name).write_text("no image")
    (out / "a.json").write_text("[1]")
    (out / "b.jpg").write_bytes(b"mine")
    assert run("auto", images, "--checkpoint", tiny_checkpoint, *AUTO, "--out", out) == 0
    shown = capsys.readouterr()
    assert "2 images in" in shown.out
    assert "d.heic, notes.txt, older/" in shown.err
    assert (out / "a.json").read_text() == "[1]"
    assert (out / "b.jpg").read_bytes() == b"mine"
    assert len(list(out.glob("*.json"))) == 3


def test_names_of_results_are_all_different():
    images = [Path(name) for name in ("a.jpg.png", "a.jpg", "a.png", "A.PNG", "b.jpg", "c.jpg")]
    names = auto.result_names(images)
    assert len({name.casefold() for name in names.values()}) == len(images)
    assert (names[Path("b.jpg")], names[Path("c.jpg")]) == ("b", "c")


def test_auto_of_an_image_one_pixel_high_has_no_mask_twice(tmp_path, image_a, tiny_checkpoint):
    Image.fromarray(image_a[40:41]).save(tmp_path / "row.png")
    args = ["--checkpoint", tiny_checkpoint, *AUTO[2:], "--box-nms-thresh", 1]
    assert run("auto", tmp_path / "row.png", *args, "--points-per-side", 4) == 0
    content = json.loads((tmp_path / "row_segments" / "row.json").read_text())
    masks = [json.dumps(record["segmentation"]) for record in content["annotations"]]
    assert masks
    assert len(masks) == len(set(masks))
    assert all(record["area"] > 0 for record in content["annotations"])


def test_auto_notices_another_checkpoint(tmp_path, image_a, tiny_params, tiny_checkpoint, capsys):
    config, params = tiny_params
    other = tmp_path / "other"
    save_model(other, params, tiny_meta(config, source="elsewhere"))
    Image.fromarray(image_a).save(tmp_path / "a.png")
    args = ["auto", tmp_path / "a.png", "--size", 96, "--points-per-side", 2]
    assert run(*args, "--checkpoint", tiny_checkpoint) == 0
    assert run(*args, "--checkpoint", tiny_checkpoint) == 0
    assert ", 1 already finished" in capsys.readouterr().out
    assert run(*args, "--checkpoint", other) == 0
    assert "already finished" not in capsys.readouterr().out


def test_auto_notices_another_dtype(tmp_path, image_a, tiny_checkpoint, capsys):
    Image.fromarray(image_a).save(tmp_path / "a.png")
    args = ["auto", tmp_path / "a.png", "--checkpoint", tiny_checkpoint, *AUTO]
    assert run(*args) == 0
    result = tmp_path / "a_segments" / "a.json"
    content = json.loads(result.read_text())
    assert content["settings"].pop("dtype") == "float32"
    result.write_text(json.dumps(content))  # as earlier versions wrote it
    assert run(*args) == 0
    assert ", 1 already finished" in capsys.readouterr().out
    assert run(*args, "--dtype", "bfloat16") == 0
    assert "already finished" not in capsys.readouterr().out
    assert json.loads(result.read_text())["settings"]["dtype"] == "bfloat16"


@pytest.mark.parametrize("flag", ["pred-iou-thresh", "stability-score-thresh", "box-nms-thresh"])
def test_auto_rejects_thresholds_that_are_no_fractions(image, capsys, flag):
    for wrong in ("2", "nan", "inf", *([] if flag.startswith("pred") else ["-0.1"])):
        assert run("auto", image, f"--{flag}={wrong}") == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert f"--{flag} {wrong}: expected" in error
    assert not image.with_name("dog_segments").exists()


def test_auto_rejects_an_overlap_of_tiles_without_tiles(image, capsys):
    assert run("auto", image, "--tile-overlap", 64) == 2
    assert "an overlap of 64 has no effect without tile" in capsys.readouterr().err


def test_auto_says_why_there_is_no_mask(tmp_path, image_a, tiny_checkpoint, capsys):
    Image.fromarray(image_a).save(tmp_path / "a.png")
    args = ["auto", tmp_path / "a.png", "--checkpoint", tiny_checkpoint, "--size", 96]
    args += ["--points-per-side", 2, "--stability-score-thresh", 0]
    assert run(*args, "--pred-iou-thresh", 1, "--stability-score-thresh", 1) == 0
    assert "No mask reached --pred-iou-thresh 1.0" in capsys.readouterr().err
    assert run(*args, "--pred-iou-thresh", -1) == 0
    shown = capsys.readouterr()
    assert "0 masks of" not in shown.out
    assert "No mask reached" not in shown.err


def test_auto_fails_where_nothing_can_be_read(tmp_path, tiny_checkpoint, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert run("auto", empty, "--checkpoint", tiny_checkpoint) == 2
    (empty / "x.png").write_text("no")
    assert run("auto", empty, "--checkpoint", tiny_checkpoint) == 2
    assert run("auto", tmp_path / "none", "--checkpoint", tiny_checkpoint) == 2
