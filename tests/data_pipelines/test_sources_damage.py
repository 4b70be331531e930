"""Damaged annotations: refused with a message, never read as something else."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from data_pipelines.sources import open_source
from data_pipelines.sources.outlines import to_rle
from data_pipelines.vocabulary import build_vocabulary
from semsam_jax.core.errors import DataError
from semsam_jax.core.rle import encode_mask, merge_masks
from tests.data_pipelines.trees import make_scene, truncate, write_scenes

UNION = build_vocabulary()


def write(dataset, root):
    write_scenes(dataset, root, "train", [make_scene(dataset, number) for number in (1, 2)])


def edit(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("dataset", "file"),
    [
        ("coco", "annotations/panoptic_train2017.json"),
        ("objects365", "zhiyuan_objv2_train.json"),
        ("paco", "annotations/paco_lvis_v1_train.json"),
        ("part_imagenet", "annotations/train.json"),
    ],
)
def test_a_json_that_is_cut_off_is_refused_when_opened(dataset, file, tmp_path):
    write(dataset, tmp_path)
    truncate(tmp_path / file)
    with pytest.raises(DataError, match="not complete JSON"):
        open_source(dataset, tmp_path, "train", UNION)
    (tmp_path / file).write_text("[]")
    with pytest.raises(DataError, match="holds a list"):
        open_source(dataset, tmp_path, "train", UNION)
    (tmp_path / file).write_text("{}")
    with pytest.raises(DataError, match="has no"):
        open_source(dataset, tmp_path, "train", UNION)


@pytest.mark.parametrize(
    ("dataset", "file"),
    [
        ("sa1b", "train/sa_1.json"),
        ("coco", "annotations/panoptic_train2017/000000000001.png"),
        ("ade20k", "annotations/training/ADE_train_00000001.png"),
        ("ade20k", "annotations_instance/training/ADE_train_00000001.png"),
        ("pascal_part", "Annotations_Part/2010_000001.mat"),
    ],
)
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_record_that_is_cut_off_is_refused_alone(dataset, file, share, tmp_path):
    write(dataset, tmp_path)
    truncate(tmp_path / file, share)
    source = open_source(dataset, tmp_path, "train", UNION)
    with pytest.raises(DataError, match=f"{dataset} example"):
        source[0]
    assert source[1].instances


def test_boxes_are_clipped_and_those_without_area_dropped(tmp_path):
    write("objects365", tmp_path)

    def change(content):
        rows = [a for a in content["annotations"] if a["image_id"] == 1]
        rows[0]["bbox"] = [-5, 40, 20, 30]
        rows[1]["bbox"] = [70, 10, 8, 8]
        content["annotations"] += [
            rows[0] | {"id": 90, "bbox": [10, 10, 0, 5]},
            rows[0] | {"id": 91, "bbox": [3, 3, 4, 4], "iscrowd": 1},
            rows[0] | {"id": 92, "image_id": 12345},
        ]

    edit(tmp_path / "zhiyuan_objv2_train.json", change)
    source = open_source("objects365", tmp_path, "train", UNION)
    assert [i.box for i in source[0].instances] == [(0.0, 40.0, 15.0, 48.0)]


@pytest.mark.parametrize("box", [None, [1, 2, 3], [1, 2, float("nan"), 4], ["a", 1, 2, 3]])
def test_a_box_that_is_none(box, tmp_path):
    write("objects365", tmp_path)
    edit(
        tmp_path / "zhiyuan_objv2_train.json",
        lambda content: content["annotations"][0].update(bbox=box),
    )
    with pytest.raises(DataError, match=r"objects365 example '1'.*not finite"):
        open_source("objects365", tmp_path, "train", UNION)[0]


def test_an_unlisted_category(tmp_path):
    write("paco", tmp_path)
    edit(
        tmp_path / "annotations/paco_lvis_v1_train.json",
        lambda content: content["annotations"][0].update(category_id=9999),
    )
    with pytest.raises(DataError, match="category id 9999"):
        open_source("paco", tmp_path, "train", UNION)[0]


def test_a_mask_of_another_size_inside_a_good_record(tmp_path):
    write("sa1b", tmp_path)
    edit(
        tmp_path / "train/sa_1.json",
        lambda content: content["annotations"][0]["segmentation"].update(size=[64, 48]),
    )
    with pytest.raises(DataError, match="mask size"):
        open_source("sa1b", tmp_path, "train", UNION)[0]


@pytest.mark.parametrize(
    ("key", "value"),
    [("segmentation", 5), ("segmentation", {"size": [48, 64]}), ("segmentation", None)],
)
def test_segmentations_that_are_none(key, value, tmp_path):
    write("sa1b", tmp_path)
    edit(
        tmp_path / "train/sa_1.json",
        lambda content: content["annotations"][0].update({key: value}),
    )
    with pytest.raises(DataError, match="sa1b example 'sa_1'"):
        open_source("sa1b", tmp_path, "train", UNION)[0]


def test_a_grey_panoptic_png_is_refused(tmp_path):
    from PIL import Image

    write("coco", tmp_path)
    png = tmp_path / "annotations/panoptic_train2017/000000000001.png"
    Image.new("L", (64, 48)).save(png)
    with pytest.raises(DataError, match="mode L; expected"):
        open_source("coco", tmp_path, "train", UNION)[0]


def test_ade20k_without_instances_says_what_is_missing(tmp_path):
    write("ade20k", tmp_path)
    (tmp_path / "annotations_instance").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="neighbouring things share one mask"):
        open_source("ade20k", tmp_path, "train", UNION)


def test_repeated_image_ids(tmp_path):
    write("paco", tmp_path)
    edit(
        tmp_path / "annotations/paco_lvis_v1_train.json",
        lambda content: content["images"].append(content["images"][0]),
    )
    with pytest.raises(DataError, match="image ids repeat"):
        open_source("paco", tmp_path, "train", UNION)


def test_the_three_spellings_of_a_mask_agree():
    mask = np.zeros((20, 30), np.uint8)
    mask[4:10, 6:18] = 1
    flat = mask.reshape(-1, order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    compressed = encode_mask(mask)
    text = {"size": [20, 30], "counts": compressed["counts"].decode()}
    polygon = [[6, 4, 18, 4, 18, 10, 6, 10], [1, 1]]
    for spelling in ({"size": [20, 30], "counts": counts}, text, compressed, polygon):
        np.testing.assert_array_equal(coco_mask.decode(to_rle(spelling, 20, 30)), mask)
    assert to_rle([], 20, 30) is None
    assert to_rle([[1, 1, 2, 2]], 20, 30) is None


def test_rle_of_random_masks_passes_and_damage_does_not():
    rng = np.random.default_rng(0)
    for _ in range(50):
        height, width = rng.integers(1, 40, 2).tolist()
        mask = rng.random((height, width)) < rng.random()
        rle = encode_mask(mask)
        np.testing.assert_array_equal(coco_mask.decode(to_rle(rle, height, width)), mask)
    text = encode_mask(np.eye(30))["counts"].decode()
    for damaged in (text[:-3], text + "1", text[:5] + "~" + text[5:], "é" + text):
        with pytest.raises(ValueError, match="RLE"):
            to_rle({"size": [30, 30], "counts": damaged}, 30, 30)
    with pytest.raises(ValueError, match="runs of 900 pixels for a mask of 31x30; expected 930"):
        to_rle({"size": [30, 31], "counts": text}, 30, 31)


def test_merging_masks():
    first, second = np.zeros((2, 9, 7), bool)
    first[2:4, 1:3] = True
    second[3:8, 2:6] = True
    merged = coco_mask.decode(merge_masks([encode_mask(first), encode_mask(second)]))
    np.testing.assert_array_equal(merged.astype(bool), first | second)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["images"].pop(0),
        lambda content: content["annotations"][0].pop("file_name"),
        lambda content: content["annotations"][0].update(segments_info=None),
        lambda content: content["annotations"][0]["segments_info"][0].pop("id"),
        lambda content: content["annotations"][0]["segments_info"][0].update(category_id=500),
        lambda content: content["images"][0].update(height="tall"),
    ],
)
def test_damaged_panoptic_records_are_refused_alone(change, tmp_path):
    write("coco", tmp_path)
    edit(tmp_path / "annotations/panoptic_train2017.json", change)
    source = open_source("coco", tmp_path, "train", UNION)
    with pytest.raises(DataError, match="coco example '1'"):
        source[0]
    assert source[1].instances
