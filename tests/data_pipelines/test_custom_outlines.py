"""Outlines of real users' files: what is read, what is refused, and that no process ends."""

import json
import resource
import subprocess
import sys

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from data_pipelines import build, check, findings
from data_pipelines.index import open_index
from data_pipelines.sources.outlines import to_rle
from semsam_jax.core.errors import DataError
from tests.data_pipelines import custom_data
from tests.data_pipelines.custom_data import CAT, DOG, each, first, read, write


def areas(example):
    return [int(coco_mask.area(item.rle)) for item in example.instances]


@pytest.mark.parametrize(
    ("outline", "message"),
    [
        ([[24, 16, float("nan"), 16, 60, 48]], "coordinate 2 of polygon 0 is nan"),
        ([CAT, [24, 16, 60, float("inf"), 60, 48]], "coordinate 3 of polygon 1 is inf"),
        ([[24, 16, 10**400, 16, 60, 48]], "coordinate 2 of polygon 0 is 1000"),
        ([[24, 16, "wide", 16, 60, 48]], "coordinate 2 of polygon 0 is 'wide'"),
        ([[24, 16, [60], 16, 60, 48]], "coordinate 2 of polygon 0 is a list of 1"),
        ([[24, 16, 60, 16, 60, 48, 24]], "polygon 0 has 7 numbers"),
        ([24, 16, None, 16, 60, 48], "coordinate 2 of polygon 0 is None"),
        ([{"x": 1}], "polygon 0 is an object of 1"),
        ({"size": [64, 96], "counts": [100, -50, 6094]}, "run length 1 is -50"),
        (
            {"size": [64, 96], "counts": [100, 2**70, 6044]},
            "run length 1 is 1180591620717",
        ),
        ({"size": [64, 96], "counts": [2**32, 6144]}, "add up to 4294973440"),
        ({"size": [64, 96], "counts": 10**12}, "RLE counts are 1000000000000"),
        ({"size": [64, 96], "counts": "ooooooooooooooo0"}, "more than 8 digits"),
        ({"size": [64, "tall"], "counts": "0"}, "RLE size is a list of 2"),
        (
            {"size": [10**6, 10**6], "counts": [10**12]},
            "1000000x1000000, expected at most 178 million",
        ),
        ({"size": 64, "counts": "0"}, "RLE size is 64"),
        ({"size": [96, 64], "counts": [100, 50, 5994]}, r"mask size \[96, 64\] \(h, w\), image"),
        ("polygon", "segmentation is 'polygon'"),
    ],
)
def test_a_damaged_outline_breaks_its_image_only_and_is_named(outline, message, tmp_path):
    report = check.check(read(write(tmp_path, first(segmentation=outline))))
    (broken,) = report.broken
    assert "example '1'" in broken
    with pytest.raises(DataError, match=message):
        raise DataError(broken)
    assert (report.num_examples, report.num_instances) == (1, 2)


def test_run_lengths_whose_sum_wraps_around_are_refused():
    rle = {"size": [64, 96], "counts": []}
    rle["counts"] = [2**61] * 8
    with pytest.raises(ValueError, match="add up to"):
        to_rle(rle, 64, 96)


@pytest.mark.parametrize("far", [1e3, 3.5e8, 1e18, 1e300, -1e12])
def test_outlines_that_leave_the_image_are_cut_to_it(far):
    mask = coco_mask.decode(to_rle([[24, 16, far, 16, far, 48, 24, 48]], 64, 96))
    assert mask[16:48].any(axis=1).all()
    assert mask.sum() == 32 * (72 if far > 0 else 24)
    # A slanted edge leaves where the straight line does.
    slanted = coco_mask.decode(to_rle([[0, 0, far, abs(far), 0, abs(far)]], 64, 96))
    if far > 0:
        ys, xs = np.mgrid[:64, :96]
        inside = ys >= xs
        assert (slanted.astype(bool) != inside).sum() < 64 * 3


def test_cutting_changes_nothing_inside(tmp_path):
    rng = np.random.default_rng(0)
    for _ in range(40):
        polygon = (rng.random(2 * rng.integers(3, 9)) * 800 - 350).tolist()
        far = coco_mask.decode(to_rle([polygon], 64, 96))
        plain = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([polygon], 64, 96)))
        # Cut edges round in another place than long ones, which moves single pixels of an edge.
        assert (far != plain).sum() <= 2 * (64 + 96)
        assert abs(int(far.sum()) - int(plain.sum())) <= 160


def test_an_outline_without_end_is_refused():
    zigzag = np.stack([np.tile([0.0, 95.0], 30000), np.linspace(0, 60, 60000)], 1).reshape(-1)
    with pytest.raises(ValueError, match="60000 points and is 57"):
        to_rle([zigzag.tolist()], 64, 96)


@pytest.mark.parametrize(
    "outline", [DOG, [[24, 16], [60, 16], [60, 48], [24, 48]], [[[str(v) for v in DOG]]][0]]
)
def test_spellings_of_a_polygon_that_leave_no_doubt(outline, tmp_path):
    assert areas(read(write(tmp_path, first(segmentation=outline)))[0]) == [1152, 160]


@pytest.mark.parametrize("outline", [[], None, [[24, 16, 36, 32]], [[1, 1]], [[]]])
def test_a_box_without_outline_is_told(outline, tmp_path, capsys):
    write(tmp_path, first(segmentation=outline))
    assert check.main(["--dataset", "custom", "--root", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "instances              3" in said
    assert "1 annotation not used, no usable outline" in said
    assert "boxes_only" in said
    assert "'1' annotation 1 (dog)" in said
    out = ["--root", str(tmp_path), "--out", str(tmp_path.parent / "records")]
    assert build.main(["--dataset", "custom", *out]) == 0
    assert "1 annotation not used, no usable outline" in capsys.readouterr().out
    boxes = read(tmp_path, boxes_only=True)
    assert [item.box for item in boxes[0].instances] == [(24, 16, 60, 48), (2, 2, 18, 12)]


def test_a_set_of_boxes_says_why_nothing_can_be_used(tmp_path):
    source = read(write(tmp_path, each("segmentation", lambda _: [])))
    with pytest.raises(DataError, match=r"none of 2 records is usable.*4 annotations.*boxes_only"):
        open_index(source, "custom")


def in_fractions(content):
    for row in content["annotations"]:
        (outline,) = row["segmentation"]
        row["segmentation"] = [[value / (96, 64)[at % 2] for at, value in enumerate(outline)]]
        row["bbox"] = [value / (96, 64)[at % 2] for at, value in enumerate(row["bbox"])]


@pytest.mark.parametrize("boxes_only", [False, True])
def test_coordinates_that_are_fractions_of_the_image_are_told(boxes_only, tmp_path):
    said = "coordinates between 0 and 1 (fractions of the image; expected pixels"
    source = read(write(tmp_path / "all", in_fractions), boxes_only=boxes_only)
    report = check.check(source)
    assert (report.num_instances, report.broken) == (0, [])
    assert f"4 annotations not used, {said}" in report.unused[0]
    assert "'1' annotation 1 (dog)" in report.unused[0]
    with pytest.raises(DataError) as caught:
        open_index(source, "custom")
    assert f"4 annotations not used, {said}" in str(caught.value)
    change = first(segmentation=[[0.25, 0.25, 0.6, 0.25, 1, 1]], bbox=[0.25, 0.25, 0.75, 0.75])
    source = read(write(tmp_path / "one", change), boxes_only=boxes_only)
    assert open_index(source, "custom").report.unused == {findings.FRACTIONS: 1}


def test_deep_json_and_great_values_never_end_the_process(tmp_path):
    """The commands themselves, within two gigabytes."""
    deep = "[" * 900 + "]" * 900
    text = json.dumps(custom_data.content()).replace(json.dumps([DOG]), deep, 1)
    write(tmp_path)
    (tmp_path / "annotations/train.json").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "data_pipelines.check", "--dataset", "custom", "--root", tmp_path],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (8 * 10**9,) * 2),
    )
    assert done.returncode == 1, done.stderr
    assert "broken records         1" in done.stdout
