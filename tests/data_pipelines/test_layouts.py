"""Folders as annotation tools export them: read as they are."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from data_pipelines import build, check
from data_pipelines.sources.single_dataset import has_split, open_single_dataset
from semsam_jax.core.errors import DataError
from tests.data_pipelines import custom_data
from tests.data_pipelines.custom_data import CAT, DOG, read, write


def named(template):
    def change(content):
        for row in content["images"]:
            row["file_name"] = template.format(row["id"])

    return change


def roboflow(root):
    def change(content):  # its first category is the project's name, which nothing has
        content["categories"].insert(0, {"id": 0, "name": "animals", "supercategory": "none"})

    for split in ("train", "valid"):
        write(root, change, place=f"{split}/_annotations.coco.json", images=split)
    return "train", "val"


def roboflow_without_splits(root):
    write(root, place="_annotations.coco.json", images=".")
    return ("train",)


def cvat(root):
    write(root, place="annotations/instances_default.json", images="images/default")
    return ("train",)


def cvat_with_subsets(root):
    for split in ("Train", "Validation"):
        write(root, place=f"annotations/instances_{split}.json", images=f"images/{split}")
    return "train", "val"


def label_studio(root):
    write(root, named(r"images\p{}.jpg"), place="result.json")
    return ("train",)


def label_studio_elsewhere(root):
    write(root, named("../../label-studio/data/media/upload/3/p{}.jpg"), place="result.json")
    return ("train",)


def fiftyone(root):
    write(root, place="labels.json", images="data")
    return ("train",)


def fiftyone_with_splits(root):
    for split in ("train", "validation"):
        write(root, place=f"{split}/labels.json", images=f"{split}/data")
    return "train", "val"


def coco_of_2017(root):
    for split in ("train", "val"):
        write(root, place=f"annotations/instances_{split}2017.json", images=f"{split}2017")
    return "train", "val"


def yolo_line(category, outline):
    fractions = [value / (96, 64)[at % 2] for at, value in enumerate(outline)]
    return f"{category} " + " ".join(f"{value:.6f}" for value in fractions)


def yolo(root, images="images/{}", labels="labels/{}", described="", splits=("train", "val")):
    for split in splits:
        for number in (1, 2):
            image = root / images.format(split) / f"p{number}.jpg"
            image.parent.mkdir(parents=True, exist_ok=True)
            image.write_bytes(custom_data.image())
            label = root / labels.format(split) / f"p{number}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text(f"{yolo_line(0, DOG)}\n\n{yolo_line(1, CAT)}\n")
    (root / "data.yaml").write_text(described or "names: [dog, cat]\n")
    return "train", "val"


def yolo_of_roboflow(root):
    text = "train: ../train/images\nval: ../valid/images\nnc: 2\nnames:\n  0: dog\n  1: cat\n"
    yolo(root, "{}/images", "{}/labels", text, ("train", "valid"))
    return "train", "val"


def yolo_with_paths(root):
    text = "path: /home/ann/set\ntrain: pictures/images/a\nval: pictures/images/b\n"
    names = "names: {0: dog, 1: cat}\n"
    yolo(root, "pictures/images/{}", "pictures/labels/{}", text + names, ("a", "b"))
    return "train", "val"


def yolo_without_splits(root):
    yolo(root, "images/.", "labels/.", splits=("",))
    return ("train",)


def labelme(root, splits=("train", "val")):
    for split in splits:
        for number in (1, 2):
            image = root / split / f"p{number}.jpg"
            image.parent.mkdir(parents=True, exist_ok=True)
            image.write_bytes(custom_data.image())
            shapes = [
                {"label": label, "points": np.reshape(outline, (-1, 2)).tolist(), "group_id": None}
                | {"shape_type": "polygon"}
                for label, outline in (("dog", DOG), ("cat", CAT))
            ]
            content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imageData": None}
            content |= {"imagePath": f"p{number}.jpg", "imageHeight": 64, "imageWidth": 96}
            image.with_suffix(".json").write_text(json.dumps(content))
    return splits


def labelme_without_splits(root):
    labelme(root, ("",))
    return ("train",)


LAYOUTS = (
    roboflow, roboflow_without_splits, cvat, cvat_with_subsets, label_studio,
    label_studio_elsewhere, fiftyone, fiftyone_with_splits, coco_of_2017, yolo, yolo_of_roboflow,
    yolo_with_paths, yolo_without_splits, labelme, labelme_without_splits,
)  # fmt: skip


@pytest.mark.parametrize("make", LAYOUTS, ids=lambda make: make.__name__)
def test_what_tools_export_is_read_as_it_is(make, tmp_path):
    splits = make(tmp_path)
    for split in splits:
        source = read(tmp_path, split)
        report = check.check(source)
        assert report.classes == {"dog": 2, "cat": 2}
        assert not report.broken
        assert not report.unused
        assert [int(coco_mask.area(i.rle)) for i in source[0].instances] == [1152, 160]
    assert has_split(tmp_path, "val") == ("val" in splits)
    if "val" not in splits:
        with pytest.raises(DataError, match=r"no annotations of split val; it has train"):
            read(tmp_path, "val")


def test_labelme_folders_in_folders_are_read(tmp_path):
    labelme(tmp_path, ("train", "train/a", "train/b/c", "val/a"))
    source = read(tmp_path)
    assert list(source.example_ids) == ["a/p1", "a/p2", "b/c/p1", "b/c/p2", "p1", "p2"]
    assert check.check(source).classes == {"dog": 6, "cat": 6}
    assert list(read(tmp_path, "val").example_ids) == ["a/p1", "a/p2"]
    (tmp_path / "train/b/c/p1.jpg").unlink()
    assert check.check(read(tmp_path)).unused[0].endswith("next to it: b/c/p1.json")


def test_labelme_in_folders_without_splits(tmp_path):
    labelme(tmp_path, ("day1", "day2"))
    file = tmp_path / "day2/p1.json"
    content = json.loads(file.read_text())
    content["shapes"][0]["label"] = "bird"  # a class that only the second folder has
    file.write_text(json.dumps(content))
    assert check.check(read(tmp_path)).classes == {"dog": 3, "cat": 4, "bird": 1}


@pytest.mark.parametrize("val", ["val", "images/val", "Valid"])
def test_labelme_of_another_split_is_not_trained_on(val, tmp_path):
    labelme(tmp_path, ("", "day1", val, "test"))
    assert list(read(tmp_path).example_ids) == ["day1/p1", "day1/p2", "p1", "p2"]
    assert list(read(tmp_path, "val").example_ids) == ["p1", "p2"]
    labelme(tmp_path, ("day1/val",))
    with pytest.raises(DataError, match=r"day1/val: LabelMe files .* expected train/ and val/"):
        read(tmp_path)


def test_check_names_the_split_that_it_does_not_look_at(tmp_path, capsys):
    roboflow(tmp_path / "custom")
    for place in (["--root", str(tmp_path / "custom")], ["--data.root", str(tmp_path)]):
        assert check.main(["--dataset", "custom", *place]) == 0
        assert "not checked: split val (use --split val)" in capsys.readouterr().out


@pytest.mark.parametrize("make", [yolo, labelme], ids=lambda make: make.__name__)
def test_records_of_label_files_are_what_the_reader_gives(make, tmp_path):
    make(tmp_path / "set")
    out = tmp_path / "records"
    command = ["--dataset", "custom", "--root", str(tmp_path / "set"), "--out", str(out)]
    assert build.main(command) == 0
    built = open_single_dataset("custom", out / "custom", "train", {})
    source = read(tmp_path / "set")
    assert [built[at] for at in range(2)] == [source[at] for at in range(2)]


def test_a_folder_of_no_layout_is_told_with_all_of_them(tmp_path):
    (tmp_path / "pictures").mkdir()
    with pytest.raises(DataError, match=r"Roboflow.*CVAT.*found \['pictures'\]; rename"):
        read(tmp_path)


def yolo_text(root, text):
    yolo(root)
    (root / "labels/train/p1.txt").write_text(text)
    return check.check(read(root))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("7 0 0 1 0 1 1", "line 1 of p1.txt: class '7' is none of data.yaml's"),
        ("dog 0 0 1 0 1 1", "class 'dog' is none"),
        ("0 0 0 1 nan 1 1", "'nan' is not a finite number"),
        ("0 0 0 1e999 0 1 1", "'1e999' is not a finite number"),
        ("0 0 0 1 0 1", "5 numbers behind the class"),
        ("0 0.1", "1 numbers behind the class"),
    ],
)
def test_damaged_yolo_lines_break_their_image_only(text, message, tmp_path):
    report = yolo_text(tmp_path, text)
    assert message in report.broken[0]
    assert report.num_examples == 1


def test_yolo_boxes_and_labels_without_images_are_told(tmp_path):
    (tmp_path / "labels/train").mkdir(parents=True)
    (tmp_path / "labels/train/p9.txt").write_text("0 0 0 1 0 1 1")
    report = yolo_text(tmp_path, "0 0.4375 0.5 0.375 0.5\n" + yolo_line(1, CAT))
    text = "\n".join(report.unused)
    assert "1 annotation not used, no usable outline" in text
    assert "line 1 of p1.txt (dog)" in text
    assert "1 annotation file not used, no JPEG or PNG of the same name next to it: p9.txt" in text
    boxes = read(tmp_path, boxes_only=True)[0].instances
    np.testing.assert_allclose(
        [i.box for i in boxes], [(24, 16, 60, 48), (2, 2, 18, 12)], atol=1e-3
    )


def test_yolo_lines_in_pixels_and_labelme_shapes_in_fractions_are_told(tmp_path):
    report = yolo_text(tmp_path / "yolo", f"0 {' '.join(map(str, DOG))}\n" + yolo_line(1, CAT))
    assert report.num_instances == 3
    assert "coordinates beyond the image (pixels; expected fractions" in report.unused[0]
    assert "line 1 of p1.txt (dog)" in report.unused[0]
    points = [[0.25, 0.25], [0.6, 0.25], [0.6, 0.75]]
    report = check.check(labelme_shapes(tmp_path / "l", [{"label": "dog", "points": points}]))
    assert "coordinates between 0 and 1 (fractions of the image" in report.unused[0]


@pytest.mark.parametrize("text", ["names: 5", "[1, 2]", "a: [", "nc: 2", "names: {dog: 0}"])
def test_a_data_yaml_without_names(text, tmp_path):
    yolo(tmp_path, described=text)
    with pytest.raises(DataError, match=r"data\.yaml"):
        read(tmp_path)
    (tmp_path / "data.yaml").unlink()
    with pytest.raises(DataError, match=r"without data\.yaml"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("names", "shown"),
    [("[on, off]", "0 is True"), ("{0: lamp, 1: no}", "1 is False"), ("[lamp, ~]", "1 is None")],
)
def test_names_that_yaml_reads_as_values_are_refused(names, shown, tmp_path):
    yolo(tmp_path, described=f"names: {names}")
    with pytest.raises(DataError, match=f"the name of class {shown}; expected a text: put"):
        read(tmp_path)


def labelme_shapes(root, shapes, **more):
    labelme(root, ("",))
    file = root / "p1.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"shapes": shapes} | more))
    return read(root)


def png(mask):
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_shapes_of_labelme(tmp_path):
    small = np.zeros((3, 4), np.uint8)
    small[1:, 1:] = 255
    shapes = [
        {"label": "dog:head", "points": [[30, 20], [40, 30]], "shape_type": "rectangle"}
        | {"group_id": 7},
        {"label": "dog", "points": [[24, 16], [60, 48]], "shape_type": "rectangle", "group_id": 7},
        {"label": "ball", "points": [[80, 50], [80, 60]], "shape_type": "circle"},
        {"label": "mark", "points": [[10, 30], [13, 32]], "shape_type": "mask", "mask": png(small)},
        {"label": "line", "points": [[1, 1], [5, 5]], "shape_type": "line"},
        {"label": "spot", "points": [[1, 1]], "shape_type": "point"},
    ]
    source = labelme_shapes(tmp_path, shapes)
    example = source[0]
    areas = [int(coco_mask.area(i.rle)) for i in example.instances]
    assert areas[:1] + areas[2:] == [1152, 6, 100]
    assert abs(areas[1] - np.pi * 100) < 15
    assert [i.parent for i in example.instances] == [-1, -1, -1, 0]
    assert example.instances[2].box == (11.0, 31.0, 14.0, 33.0)
    (line,) = check.check(source).unused
    assert "2 annotations not used, shape without area" in line
    assert "(line), a 'line'" in line


def test_turned_rectangles_of_x_anylabeling_are_outlines(tmp_path):
    points = [[30, 10], [40, 20], [30, 30], [20, 20]]
    shape = {"label": "dog", "points": points, "shape_type": "rotation", "direction": 0.785}
    example = labelme_shapes(tmp_path, [shape])[0]
    (instance,) = example.instances
    assert abs(int(coco_mask.area(instance.rle)) - 200) < 20
    assert not example.unused


def test_shapes_of_one_group_and_label_are_one_instance(tmp_path):
    def box(label, group, x, y, kind="rectangle"):
        corners = [[x, y], [x + 10, y], [x + 10, y + 10], [x, y + 10]]
        points = corners if kind == "polygon" else corners[::2]
        return {"label": label, "points": points, "group_id": group, "shape_type": kind}

    shapes = [
        box("dog:leg", 0, 0, 10), box("dog", 0, 0, 0), box("dog:leg", 0, 20, 10),
        box("dog", 0, 20, 0, "polygon"), box("dog", 0, 25, 0), box("cat", 0, 40, 0),
        box("dog", 1, 60, 0), box("dog", None, 0, 30), box("dog", None, 20, 30),
        box("dog:tail", 2, 60, 30), box("dog:tail", 2, 80, 30), box("dog", 0, 200, 0),
    ]  # fmt: skip
    source = labelme_shapes(tmp_path, shapes)
    found = source[0].instances
    assert [int(coco_mask.area(i.rle)) for i in found] == [250, *[100] * 6, 200]
    assert [i.parent for i in found] == [-1, -1, -1, -1, -1, 0, 0, -1]
    assert found[0].box == (0.0, 0.0, 35.0, 10.0)
    (line,) = check.check(source).unused
    assert "shape 11 of p1.json (dog)" in line
    boxes = read(tmp_path, boxes_only=True)[0].instances
    assert [i.box for i in boxes] == [i.box for i in found]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"points": [[1, 2], [3, None], [4, 5]]}, "is not a finite number"),
        ({"points": [[0, 0], [4, 5]], "shape_type": "mask", "mask": "%%"}, "no PNG in base64"),
        (
            {"points": [[95, 0]], "shape_type": "mask", "mask": png(np.ones((2, 2), np.uint8))},
            "does not lie inside the image",
        ),
        ({"points": None}, "shape 0 of p1.json (dog): points is None, expected a list of [x, y]"),
        (5, "p1.json: shapes[0] is 5, expected an object"),
    ],
)
def test_damaged_shapes_break_their_image_only(shape, message, tmp_path):
    shapes = [{"label": "dog"} | shape] if isinstance(shape, dict) else [shape]
    report = check.check(labelme_shapes(tmp_path, shapes))
    assert message in report.broken[0]
    assert report.num_examples == 1


def test_labelme_whose_image_path_names_another_image(tmp_path):
    report = check.check(labelme_shapes(tmp_path, [], imagePath=r"..\\x\\p2.jpg"))
    (broken,) = report.broken
    assert "imagePath is p2.jpg, but p1.jpg has this file's name" in broken
    # The file was renamed with its image; the old name means nothing any more.
    assert not check.check(labelme_shapes(tmp_path, [], imagePath="old.jpg")).broken


def test_labelme_of_another_size_and_files_without_images(tmp_path):
    report = check.check(labelme_shapes(tmp_path, [], imageWidth=90))
    assert "says 90x64 pixels" in report.broken[0]
    (tmp_path / "p9.json").write_text('{"shapes": [], "imagePath": "p9.jpg"}')
    assert (
        "no JPEG or PNG of the same name next to it: p9.json"
        in check.check(read(tmp_path)).unused[0]
    )
    # The annotation's own image may have another name.
    (tmp_path / "p9.json").write_text(json.dumps({"shapes": [], "imagePath": r"..\x\p2.jpg"}))
    assert not check.check(read(tmp_path)).unused
