"""Folders as tools, disks and people leave them: read without guessing, or refused in words."""

import os
import unicodedata

import pytest

from data_pipelines import check
from data_pipelines.vocabulary import build_vocabulary
from semsam_jax.core.errors import DataError
from tests.data_pipelines.custom_data import CAT, DOG, read, write
from tests.data_pipelines.test_layouts import labelme, named, yolo, yolo_line

ALL = {"dog": 2, "cat": 2}
COMPOSED, TAKEN_APART = (unicodedata.normalize(form, "häl") for form in ("NFC", "NFD"))


def rename(root, template):
    for number in (1, 2):
        (root / f"images/p{number}.jpg").rename(root / "images" / template.format(number))


@pytest.mark.parametrize(
    ("stated", "on_disk"),
    [
        ("/data/local-files/?d=p{}.jpg", "p{}.jpg"),
        ("/data/local-files/?d=set%20a/p{}.jpg", "p{}.jpg"),
        ("https://bucket.example/set/p{}.jpg?X-Amz-Date=1#top", "p{}.jpg"),
        ("images/my%20p{}.jpg", "my p{}.jpg"),
        ("50%_p{}?#.jpg", "50%_p{}?#.jpg"),
        ("http://[p{}.jpg", "http:/[p{}.jpg"),
        (COMPOSED + "{}.jpg", TAKEN_APART + "{}.jpg"),
        (TAKEN_APART + "{}.jpg", COMPOSED + "{}.jpg"),
    ],
)
def test_names_of_urls_and_of_other_systems_lead_to_the_images(stated, on_disk, tmp_path):
    write(tmp_path, named(stated), place="result.json")
    (tmp_path / "images/http:").mkdir()
    rename(tmp_path, on_disk)
    assert check.check(read(tmp_path)).classes == ALL


def test_two_spellings_never_become_one_file(tmp_path):
    def change(content):
        content["images"][0]["file_name"] = "a%20b.jpg"
        content["images"][1]["file_name"] = "a b.jpg"

    write(tmp_path, change)
    (tmp_path / "images/p1.jpg").rename(tmp_path / "images/a b.jpg")
    report = check.check(read(tmp_path))
    assert report.num_examples == 1
    assert "a%20b.jpg" in report.broken[0]


def test_text_of_powershell_is_read_and_other_encodings_are_named(tmp_path):
    write(tmp_path)
    file = tmp_path / "annotations/train.json"
    text = file.read_text()
    file.write_text(text, encoding="utf-16")
    assert check.check(read(tmp_path)).classes == ALL
    file.write_bytes(text.replace('"dog"', '"chien é"').encode("latin-1"))
    with pytest.raises(DataError, match=r"train\.json is not complete JSON in UTF-8"):
        read(tmp_path)


HIDDEN = b"\0\5\26\7\0\2\0\0Mac OS X"


@pytest.mark.parametrize("make", [yolo, labelme], ids=lambda make: make.__name__)
def test_hidden_files_are_no_data(make, tmp_path):
    make(tmp_path)
    for file in [*tmp_path.rglob("p*.*")]:
        file.with_name(f"._{file.name}").write_bytes(HIDDEN)
    report = check.check(read(tmp_path))
    assert (report.classes, report.broken, report.unused) == (ALL, [], [])


def test_folders_behind_links_are_part_of_the_set(tmp_path):
    yolo(tmp_path)
    for kind in ("images", "labels"):
        (tmp_path / kind / "train/more").symlink_to(tmp_path / kind / "val")
        (tmp_path / kind / "train/loop").symlink_to(tmp_path)
    assert check.check(read(tmp_path)).classes == {"dog": 4, "cat": 4}


def test_names_that_are_no_text_are_names(tmp_path):
    yolo(tmp_path)
    for kind, suffix in (("images", b".jpg"), ("labels", b".txt")):
        file = tmp_path / kind / "train" / f"p1{suffix.decode()}"
        file.rename(file.with_name(os.fsdecode(b"caf\xe9" + suffix)))
    report = check.check(read(tmp_path))
    assert report.classes == ALL
    "".join(read(tmp_path).example_ids).encode("utf-8", "surrogateescape")


def test_yolo_text_with_a_byte_order_mark(tmp_path):
    yolo(tmp_path)
    lines = f"{yolo_line(0, DOG)}\r\n{yolo_line(1, CAT)}\r\n"
    (tmp_path / "labels/train/p1.txt").write_text(lines, encoding="utf-8-sig")
    assert check.check(read(tmp_path)).classes == ALL


def test_poses_are_no_outlines(tmp_path):
    """Box and two keypoints are as many numbers as an outline of five points."""
    yolo(tmp_path, described="names: [dog, cat]\nkpt_shape: [2, 3]\n")
    with pytest.raises(DataError, match=r"data\.yaml: describes poses \(kpt_shape\)"):
        read(tmp_path)


def test_records_of_one_file_are_told(tmp_path):
    write(tmp_path, lambda content: content["images"][1].update(file_name="p1.jpg"))
    (line,) = check.check(read(tmp_path)).unused
    assert line.startswith("2 image records used all the same, several for one file")
    assert "'p1.jpg', 2 records" in line


def test_images_that_are_no_files_are_told_once(tmp_path):
    write(tmp_path, lambda content: content["images"][1].update(file_name=None))
    image = tmp_path / "images/p1.jpg"
    image.unlink()
    os.mkfifo(image)
    for line in check.check(read(tmp_path)).broken:
        assert line.count("cannot read the image: this is not a file; repair") == 1
    image.unlink()
    image.symlink_to(tmp_path / "nowhere.jpg")
    assert "this is a link that leads nowhere" in check.check(read(tmp_path)).broken[0]
    image.unlink()
    image.write_bytes(b"")
    assert "(the file is empty)" in check.check(read(tmp_path)).broken[0]
    image.write_bytes(b"RIFF\0\0\0\0WEBPVP8 ")
    assert "it begins with b'RIFF" in check.check(read(tmp_path)).broken[0]


@pytest.mark.parametrize("names", [("screw (new)", "screw (worn)"), ("dog, big", "dog, small")])
def test_classes_that_differ_stay_different(names, tmp_path):
    """A bracket or a list of synonyms is left out of a name only where nothing depends on it."""

    def change(content):
        for category, name in zip(content["categories"], names, strict=True):
            category["name"] = name

    write(tmp_path, change)
    assert len(check.check(read(tmp_path)).classes) == 2
    vocabulary = build_vocabulary([], extra={"own": (names, ())})
    assert len(set(vocabulary.object_names)) == 2
    (alone,) = build_vocabulary([], extra={"own": (names[:1], ())}).object_names
    assert alone == names[0].split()[0].strip(",")


def test_equal_names_of_two_ids_are_one_class(tmp_path):
    def change(content):
        content["categories"].append({"id": 3, "name": "dog"})
        content["annotations"][0]["category_id"] = 3

    assert check.check(read(write(tmp_path, change))).classes == ALL
