"""Ids, classes and crowd flags of real users' files: matched, or told."""

import pytest

from data_pipelines import check, findings
from data_pipelines.index import open_index
from semsam_jax.core.errors import DataError
from tests.data_pipelines.custom_data import each, first, read, write


def both(content, key, make):
    for row in content["annotations"]:
        row["category_id"] = make(row["category_id"])
    for row in content["categories"]:
        row["id"] = make(row["id"])


@pytest.mark.parametrize("make", [str, float, lambda v: f"a{v}", lambda v: v + 2**70])
def test_ids_of_any_one_kind_are_matched(make, tmp_path):
    def change(content):
        for row in content["images"]:
            row["id"] = make(row["id"])
        each("image_id", make)(content)
        each("id", make)(content)
        both(content, "category_id", make)

    report = check.check(read(write(tmp_path, change)))
    assert report.classes == {"dog": 2, "cat": 2}
    assert not report.broken
    assert not report.unused


def test_numbers_as_text_match_numbers(tmp_path):
    def change(content):
        each("image_id", str)(content)
        each("category_id", float)(content)

    assert check.check(read(write(tmp_path, change))).num_instances == 4


def test_annotations_of_no_image_are_told(tmp_path):
    def change(content):
        content["annotations"][0]["image_id"] = 77
        content["annotations"][1]["image_id"] = None
        content["images"].append({"file_name": "p1.jpg"})

    source = read(write(tmp_path, change))
    report = check.check(source)
    assert report.num_instances == 2
    text = "\n".join(report.unused)
    assert "2 annotations not used, image_id of no image in the file" in text
    assert "annotation 1 of 4 has image_id 77" in text
    assert "1 image record not used, no id: 'p1.jpg'" in text
    assert open_index(source, "custom").report.unused[findings.UNKNOWN_IMAGE] == 2


@pytest.mark.parametrize(
    ("value", "crowds"),
    [("0", 0), (None, 0), (False, 0), (0.0, 0), ("1", 4), (True, 4), ("false", 0)],
)
def test_crowd_flags(value, crowds, tmp_path):
    report = check.check(read(write(tmp_path, each("iscrowd", lambda _: value))))
    assert (report.num_crowds, report.num_instances) == (crowds, 4 - crowds)


@pytest.mark.parametrize("value", ["maybe", 2, [1], float("nan")])
def test_a_crowd_flag_that_is_none_is_refused_by_name(value, tmp_path):
    (broken,) = check.check(read(write(tmp_path, first(iscrowd=value)))).broken
    assert "annotation 1" in broken
    assert "iscrowd is neither 0 nor 1" in broken


def test_a_class_of_crowd_regions_alone_is_told_everywhere(tmp_path):
    def change(content):
        for row in content["annotations"]:
            row["iscrowd"] = int(row["category_id"] == 1)

    source = read(write(tmp_path, change))
    for lines in (check.check(source).unused, open_index(source, "custom").report.lines()):
        text = "\n".join(lines)
        assert "2 crowd regions (iscrowd 1) are ignored in training" in text
        assert "all 2 annotations of dog are crowd regions (iscrowd 1)" in text
        assert "of cat" not in text


def test_a_category_id_of_two_classes_is_refused(tmp_path):
    write(tmp_path, lambda content: content["categories"].append({"id": "1", "name": "bird"}))
    with pytest.raises(DataError, match="category id '1' is 'dog' and 'bird'"):
        read(tmp_path)
    write(tmp_path, lambda content: content["categories"].append({"id": 1, "name": "dog"}))
    assert check.check(read(tmp_path)).num_instances == 4


def test_an_unlisted_category_is_named_as_it_is_written(tmp_path):
    for value, shown in (("cow", "'cow'"), (None, "(none)"), (9, "9")):
        (broken,) = check.check(read(write(tmp_path, first(category_id=value)))).broken
        assert f"annotation 1 has category id {shown}, which" in broken


def part_of(link, number="ann-100"):
    def change(content):
        each("id", lambda v: f"ann-{v}")(content)
        content["categories"].append({"id": 3, "name": "dog:head"})
        head = {"id": number, "image_id": 1, "category_id": 3, "obj_ann_id": link}
        content["annotations"].append(head | {"segmentation": [[30, 20, 40, 20, 40, 30, 30, 30]]})

    return change


def test_parts_find_their_whole_by_ids_that_are_texts(tmp_path):
    example = read(write(tmp_path, part_of("ann-1")))[0]
    assert [item.parent for item in example.instances] == [-1, -1, 0]
    source = read(write(tmp_path, part_of("ann-77")))
    assert [item.parent for item in source[0].instances] == [-1, -1, -1]
    assert (
        "1 annotation used all the same, part whose whole is not known"
        in check.check(source).unused[0]
    )
    doubled = read(write(tmp_path, part_of("ann-1", number="ann-1")))
    assert doubled[0].instances[2].parent == -1
    assert any("appears twice" in line for line in check.check(doubled).unused)


def test_messages_about_half_letters_can_be_printed(tmp_path):
    write(tmp_path, lambda content: content["images"].append("\ud800"))
    with pytest.raises(DataError, match="images holds a str") as caught:
        read(tmp_path)
    str(caught.value).encode("utf-8")


@pytest.mark.parametrize("boxes_only", [False, True])
def test_annotations_that_are_there_twice_are_told(boxes_only, tmp_path):
    """As in a file that was made of two exports."""

    def change(content):
        first, second, *_ = content["annotations"]
        content["annotations"] += [{**first, "id": 101}, {**second, "id": 102, "category_id": 1}]

    source = read(write(tmp_path, change), boxes_only=boxes_only)
    assert len(source[0].instances) == 4
    (line,) = check.check(source).unused
    assert line.startswith(
        "1 annotation used all the same, the same class and outline as another one in its image"
    )
    assert "'1' annotation 101 (dog)" in line


def test_files_of_no_split_are_told(tmp_path):
    """CVAT's export of a project: tasks with the subset Train, and tasks without one."""
    for name in ("Train", "Validation", "default"):
        write(tmp_path, place=f"annotations/instances_{name}.json")
    (tmp_path / "annotations/captions_train.json").write_text("{}")
    for split in ("train", "val"):
        (line,) = check.check(read(tmp_path, split)).unused
        assert line.startswith("1 annotation file not used, it belongs to no split")
        assert line.endswith(": instances_default.json")
    (tmp_path / "annotations/instances_Train.json").unlink()
    (tmp_path / "annotations/instances_Validation.json").unlink()
    assert not check.check(read(tmp_path)).unused
    write(tmp_path, place="annotations/instances_more.json")
    assert "instances_more.json" in check.check(read(tmp_path)).unused[0]
    assert not read(tmp_path, annotations="annotations/instances_more.json").unused
