"""The splits that data.yaml names, as folders and as lists of images: all are read, or refused."""

import os

import numpy as np
import pytest

from data_pipelines import build, check
from data_pipelines.sources.single_dataset import has_split, open_single_dataset
from semsam_jax.core.errors import DataError
from tests.data_pipelines import custom_data
from tests.data_pipelines.custom_data import CAT, DOG, read
from tests.data_pipelines.test_layouts import yolo_line

NAMES = "names: [dog, cat]\n"


def write(root, described, *stems):
    """Images `images/STEM.jpg` with labels, and data.yaml."""
    for stem in stems:
        for folder, end, content in (
            ("images", "jpg", custom_data.image()),
            ("labels", "txt", f"{yolo_line(0, DOG)}\n{yolo_line(1, CAT)}\n".encode()),
        ):
            file = root / folder / f"{stem}.{end}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    (root / "data.yaml").write_text(described + NAMES)
    return root


def lists(root, **stems):
    for name, text in stems.items():
        (root / f"{name}.txt").write_text(text)


def flat(root, described="train: train.txt\nval: val.txt\n"):
    """Four images in one folder; the lists alone say which are for validation."""
    write(root, described, *"abcd")
    lists(root, train="./images/a.jpg\n\nimages/b.jpg\nimages/b.jpg\n", val="images/c.jpg\n")
    return root


def test_lists_divide_one_folder(tmp_path):
    flat(tmp_path)
    assert list(read(tmp_path).example_ids) == ["images/a", "images/b"]
    assert list(read(tmp_path, "val").example_ids) == ["images/c"]
    report = check.check(read(tmp_path))
    assert report.classes == {"dog": 2, "cat": 2}
    assert not report.broken
    assert not report.unused
    with pytest.raises(DataError, match=r"no annotations of split test; it has train, val"):
        read(tmp_path, "test")


@pytest.mark.parametrize(
    "template",
    [
        "images/{}.jpg",
        "./images/{}.jpg",
        "/home/ann/set/images/{}.jpg",
        r"C:\Users\ann\set\images\{}.jpg",
        "data/images/{}.jpg",  # CVAT
        "../set/images/{}.jpg",
    ],
)
def test_paths_in_lists(template, tmp_path):
    flat(tmp_path)
    lists(tmp_path, val="\n".join(template.format(stem) for stem in "cd"))
    source = read(tmp_path, "val")
    assert list(source.example_ids) == ["images/c", "images/d"]
    assert check.check(source).num_instances == 4


@pytest.mark.parametrize("path", ["set", "./set/", "/home/ann/set", "", "{root}/set"])
def test_the_path_of_data_yaml(path, tmp_path):
    """Names are relative to it where it is there, else to the file."""
    inner = tmp_path / "set" if "set" in path and "ann" not in path else tmp_path
    flat(inner)
    (inner / "data.yaml").rename(tmp_path / "data.yaml")
    (inner / "lists").mkdir()
    (inner / "val.txt").rename(inner / "lists/val.txt")
    stated = f"path: {path.format(root=tmp_path)}\n" if path else ""
    described = f"{stated}train: train.txt\nval: lists/val.txt\n"
    (tmp_path / "data.yaml").write_text(described + NAMES)
    assert check.check(read(tmp_path, "val")).num_instances == 2
    assert len(read(tmp_path)) == 2


def test_all_folders_and_lists_of_a_split_are_read(tmp_path):
    described = "train: [images/a, ./images/b/, more.txt]\nval: images/c\n"
    root = write(tmp_path / "set", described, "a/1", "a/2", "b/1", "c/1", "d/1")
    lists(root, more="images/d/1.jpg\nimages/a/1.jpg\n")
    (root / "labels/b/9.txt").write_text("")
    source = read(root)
    ids = ["images/a/1", "images/a/2", "images/b/1", "images/d/1"]
    assert list(source.example_ids) == ids
    report = check.check(source)
    assert report.classes == {"dog": 4, "cat": 4}
    assert "same name next to it: 9.txt" in report.unused[0]
    assert list(read(root, "val").example_ids) == ["1"]
    out = tmp_path / "out"
    assert build.main(["--dataset", "custom", "--root", str(root), "--out", str(out)]) == 0
    built = open_single_dataset("custom", out / "custom", "train", {})
    assert [built[at] for at in range(4)] == [source[at] for at in range(4)]


def test_absolute_folders_of_another_machine(tmp_path):
    write(tmp_path, "train: /home/ann/set/images/a\nval: C:/set/images/b\n", "a/1", "b/2")
    assert list(read(tmp_path).example_ids) == ["1"]
    assert list(read(tmp_path, "val").example_ids) == ["2"]


@pytest.mark.parametrize(
    ("val", "message"),
    [
        ("valid.txt", "val is 'valid.txt', which is neither a folder of images nor a list"),
        ("images/val", "val is 'images/val', which is neither"),
        ("../images/val", "neither"),
        ("/home/ann/set/val/images", "neither"),  # `images` alone are all of them
        ("[val.txt, gone.txt]", "val is 'gone.txt', which is neither"),
        ("7", "val is 7, which is neither"),
        ("x" * 5000, "neither"),
        ("empty.txt", "empty.txt: lists no image"),
        ("images/a.jpg", "cannot be read as a list of images"),
        ("far.txt", r"far.txt: the labels of its images are not in .*far"),
        ("images/none", "no JPEG or PNG in this folder"),
    ],
)
def test_a_split_that_is_named_and_not_there_is_refused(val, message, tmp_path, capsys):
    """Neither all images nor a usual folder take its place."""
    flat(tmp_path, f"train: train.txt\nval: {val}\n")
    lists(tmp_path, empty="\n \n", far="far/x.jpg\n")
    (tmp_path / "images/none").mkdir()
    (tmp_path / "labels/none").mkdir()
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path, "val")
    assert "\n" not in str(caught.value)
    assert len(read(tmp_path)) == 2
    if "neither" in message:  # a run asks this before it holds images out
        with pytest.raises(DataError, match=message):
            has_split(tmp_path, "val")
        assert check.main(["--dataset", "custom", "--root", str(tmp_path)]) == 1
        assert "semsam data check: " in capsys.readouterr().err


def test_labels_that_are_elsewhere(tmp_path):
    write(tmp_path, "train: images/a\nval: images/b\n", "a/1", "b/2")
    os.rename(tmp_path / "labels/b", tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"val is 'images/b', but its labels are not in .*labels/b"):
        read(tmp_path, "val")


def test_a_listed_image_that_is_missing_is_told(tmp_path):
    flat(tmp_path)
    lists(tmp_path, train="images/a.jpg\nimages/A2.jpg\nimages/B.jpg\n")
    report = check.check(read(tmp_path))
    assert report.num_examples == 1
    assert "'images/A2'" in report.broken[0]
    assert "cannot read the image" in report.broken[0]
    assert "the folder has b.jpg" in report.broken[1]


@pytest.mark.parametrize("described", ["val: val.txt\n", ""])
def test_all_images_are_no_training_split_where_some_are_of_another(described, tmp_path):
    flat(tmp_path, described)
    if not described:
        write(tmp_path, "", "val/e")
    with pytest.raises(DataError, match="no annotations of split train; it has val"):
        read(tmp_path)


@pytest.mark.parametrize("val", ["val: images/val\n", ""])
def test_a_training_folder_around_the_validation_images_is_refused(val, tmp_path):
    write(tmp_path, f"train: images\n{val}", "a", "val/b")
    with pytest.raises(DataError, match=r"the folder of val, .*images/val, lies in one of train"):
        read(tmp_path)
    assert list(read(tmp_path, "val").example_ids) == ["b"]
    write(tmp_path, "train: images\nval: images\n", "a")  # the same twice is a decision
    assert len(read(tmp_path)) == 2


def test_a_changed_list_is_another_dataset(tmp_path):
    flat(tmp_path)
    before = read(tmp_path).fingerprint
    assert before == read(tmp_path).fingerprint
    lists(tmp_path, train="images/a.jpg\nimages/d.jpg\n")
    assert before != read(tmp_path).fingerprint
    areas = [np.prod(np.subtract(i.box[2:], i.box[:2])) for i in read(tmp_path)[1].instances]
    assert areas == [1152, 160]
