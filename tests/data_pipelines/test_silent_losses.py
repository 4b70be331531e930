"""The seven datasets share the readers' protections: losses are counted, odd values refused."""

import json

import numpy as np
import pytest
from PIL import Image

from data_pipelines import check, findings
from data_pipelines.index import open_index
from data_pipelines.sources import SA1B, open_source
from data_pipelines.vocabulary import build_vocabulary
from semsam_jax.core.errors import DataError
from tests.data_pipelines.trees import make_image, make_scene, write_ade20k_full, write_scenes

UNION = build_vocabulary()
COCO_JSON = "annotations/panoptic_train2017.json"
COCO_PNG = "annotations/panoptic_train2017/000000000001.png"


def write(dataset, root):
    write_scenes(dataset, root, "train", [make_scene(dataset, number) for number in (1, 2)])
    return open_source(dataset, root, "train", UNION)


def edit(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def reasons(example):
    return {item.reason: item.count for item in example.unused}


def test_swapped_colours_of_a_panoptic_png_are_refused_with_their_ids(tmp_path):
    source = write("coco", tmp_path)
    file = tmp_path / COCO_PNG
    ids = [segment["id"] for segment in json.loads((tmp_path / COCO_JSON).read_text())
           ["annotations"][0]["segments_info"]]  # fmt: skip
    edit(tmp_path / COCO_JSON, lambda c: c["annotations"][0]["segments_info"][0].update(id=70000))
    pixels = np.asarray(Image.open(file)).astype(np.int64)
    number = pixels[..., 0] + 256 * pixels[..., 1] + 65536 * pixels[..., 2]
    number[number == ids[0]] = 70000
    swapped = np.stack([number >> 16, number >> 8 & 255, number & 255], -1).astype(np.uint8)
    Image.fromarray(swapped).save(file)
    source = open_source("coco", tmp_path, "train", UNION)
    with pytest.raises(DataError) as caught:
        source[0]
    for part in ("70000", str(ids[1]), "have no pixel", "no segment lists", "BGR"):
        assert part in str(caught.value)
    assert source[1].instances


def test_segments_without_pixels_and_ids_that_nobody_lists_are_counted(tmp_path):
    write("coco", tmp_path)

    def change(content):
        content["annotations"][0]["segments_info"][0]["id"] += 5

    edit(tmp_path / COCO_JSON, change)
    source = open_source("coco", tmp_path, "train", UNION)
    assert len(source[0].instances) == 1
    assert reasons(source[0]) == {findings.EMPTY_SEGMENT: 1, findings.UNLISTED_SEGMENT: 1}
    text = "\n".join(check.check(source).unused)
    assert "no pixel of this segment in the PNG: '1' segment 65798 of 000000000001.png" in text
    assert "an id in the PNG that no segment lists: '1' 65793 of 000000000001.png" in text
    assert not source[1].unused


def test_panoptic_ids_may_be_texts_and_never_stand_for_two(tmp_path):
    write("coco", tmp_path)

    def as_text(content):
        for record in content["annotations"]:
            record["image_id"] = str(record["image_id"])
            for segment in record["segments_info"]:
                segment["category_id"] = str(segment["category_id"])
                segment["iscrowd"] = str(segment["iscrowd"])

    edit(tmp_path / COCO_JSON, as_text)
    source = open_source("coco", tmp_path, "train", UNION)
    assert [len(source[at].instances) for at in range(2)] == [2, 2]
    assert not source[0].ignored
    edit(
        tmp_path / COCO_JSON,
        lambda c: c["annotations"][0]["segments_info"].append(
            c["annotations"][0]["segments_info"][0]
        ),
    )
    with pytest.raises(DataError, match=r"segments \[65793\] are listed twice"):
        open_source("coco", tmp_path, "train", UNION)[0]
    edit(tmp_path / COCO_JSON, lambda c: c["annotations"].append(c["annotations"][0]))
    with pytest.raises(DataError, match=r"image_id '1' appears twice"):
        open_source("coco", tmp_path, "train", UNION)


def test_a_label_image_of_many_pixels_is_refused_before_it_is_decoded(tmp_path):
    source = write("coco", tmp_path)
    Image.new("RGB", (4000, 3000)).save(tmp_path / COCO_PNG)
    with pytest.raises(DataError, match="has 4000x3000 pixels, the image 64x48"):
        source[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segmentation": {"size": [48, 64], "counts": [10, -5, 3067]}}, "run length 1 is -5"),
        ({"segmentation": [[1, 2, float("nan"), 4, 5, 6]]}, "coordinate 2 of polygon 0 is nan"),
        ({"predicted_iou": "high"}, "predicted_iou is 'high', expected a number"),
        ({"is_pseudo": "perhaps"}, "is_pseudo is neither 0 nor 1"),
    ],
)
def test_damaged_annotations_of_segment_anything_are_named(change, message, tmp_path):
    source = write("sa1b", tmp_path)
    edit(tmp_path / "train/sa_1.json", lambda content: content["annotations"][1].update(change))
    with pytest.raises(DataError, match=rf"annotation 1001: .*{message}"):
        source[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations": None}, r"sa_1.json: annotations is None, expected a list of objects"),
        ({"annotations": [None]}, r"sa_1.json: annotations\[0\] is None, expected an object"),
        ({"image": None}, "sa_1.json: image is None, expected an object"),
        ({"image": {"height": "tall", "width": 64}}, "sa_1.json: height or width"),
    ],
)
def test_records_of_segment_anything_that_are_none_are_named(change, message, tmp_path):
    source = write("sa1b", tmp_path)
    edit(tmp_path / "train/sa_1.json", lambda content: content.update(change))
    with pytest.raises(DataError, match=message):
        source[0]


def test_a_doubled_annotation_of_segment_anything_is_told(tmp_path):
    source = write("sa1b", tmp_path)
    edit(
        tmp_path / "train/sa_1.json",
        lambda content: content["annotations"].append(content["annotations"][0]),
    )
    assert reasons(source[0]) == {findings.DOUBLED_ID: 1}


def test_panoptic_records_with_other_names_or_none(tmp_path):
    write("coco", tmp_path)

    def change(content):
        for row in content["images"]:
            row["file_name"] = "train2017\\" + row["file_name"]
        for row in content["annotations"]:
            row["file_name"] = "panoptic_train2017/" + row["file_name"]

    edit(tmp_path / COCO_JSON, change)
    assert len(check.check(open_source("coco", tmp_path, "train", UNION)).broken) == 0
    edit(tmp_path / COCO_JSON, lambda c: c["annotations"][1].update(segments_info=None))
    (broken,) = check.check(open_source("coco", tmp_path, "train", UNION)).broken
    assert "segments_info is None, expected a list of objects" in broken
    edit(tmp_path / COCO_JSON, lambda c: c["annotations"].pop(0))
    source = open_source("coco", tmp_path, "train", UNION)
    assert (
        "1 image record not used, no annotation record for it: image 1"
        in check.check(source).unused
    )


def test_what_segment_anything_leaves_out_is_counted(tmp_path):
    source = write("sa1b", tmp_path)
    (tmp_path / "train/sa_9.json").write_text("{}")
    edit(
        tmp_path / "train/sa_1.json",
        lambda content: content["annotations"][0].update(predicted_iou=0.1, segmentation=[]),
    )
    source = SA1B(tmp_path, "train", UNION, cache=tmp_path / "cache")
    again = SA1B(tmp_path, "train", UNION, cache=tmp_path / "cache")
    assert source.unused == again.unused
    assert source.unused[0].named == ("sa_9.json",)
    assert reasons(source[0]) == {findings.NO_OUTLINE: 1}
    picky = SA1B(tmp_path, "train", UNION, min_predicted_iou=0.5)
    assert reasons(picky[0]) == {findings.LOW_QUALITY: 1}
    lines = open_index(picky, "sa1b").report.lines()
    assert any("sa_9.json" in line for line in lines)
    assert any("below the quality" in line for line in lines)


def test_objects_outside_the_list_of_ade20k_are_counted(tmp_path):
    scene = make_scene("ade20k", 1)
    write_ade20k_full(tmp_path, "train", [scene], 2021)
    file = next(tmp_path.rglob("*.json"))
    edit(file, lambda content: content["annotation"]["object"][0].update(name="zeppelin"))
    source = open_source("ade20k", tmp_path, "train", UNION)
    assert len(source[0].instances) == 1
    assert reasons(source[0]) == {findings.OTHER_CLASS: 1}
    assert "'zeppelin'" in check.check(source).unused[0]


def test_hidden_pixels_of_ade20k_are_no_mask(tmp_path):
    """Of an object behind others the release has 128 where it is hidden, 255 where it is seen."""
    write_ade20k_full(tmp_path, "train", [make_scene("ade20k", 1)], 2021)
    partly, wholly = sorted(tmp_path.rglob("instance_*.png"))
    mask = np.asarray(Image.open(partly)).copy()
    top = int(mask.any(axis=1).argmax())
    mask[top] = np.where(mask[top] > 0, 128, 0)
    Image.fromarray(mask).save(partly)
    hidden = np.where(np.asarray(Image.open(wholly)) > 0, 128, 0).astype(np.uint8)
    Image.fromarray(hidden).save(wholly)
    example = open_source("ade20k", tmp_path, "train", UNION)[0]
    (instance,) = example.instances
    assert instance.box[1] == top + 1
    assert reasons(example) == {findings.NO_PIXEL: 1}


@pytest.mark.parametrize("dataset", ["coco", "ade20k", "pascal_part", "paco", "sa1b"])
def test_a_repaired_file_of_any_dataset_is_scanned_again(dataset, tmp_path):
    write(dataset, tmp_path / "data")
    image = sorted(p for p in tmp_path.rglob("*.jpg"))[0]
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2])
    cache = tmp_path / "cache"

    def count():
        return len(open_index(open_source(dataset, tmp_path / "data", "train", UNION), dataset,
                              cache=cache))  # fmt: skip

    assert count() == 1
    image.write_bytes(whole)
    assert count() == 2


def test_published_sets_keep_the_stored_frame_where_both_fit(tmp_path):
    write("coco", tmp_path)
    image = tmp_path / "train2017/000000000001.jpg"
    for orientation in (2, 3, 4):
        image.write_bytes(make_image((48, 64), 1, orientation=orientation))
        assert not open_source("coco", tmp_path, "train", UNION)[0].is_displayed
    # Only the displayed image has the stated size.
    image.write_bytes(make_image((64, 48), 1, orientation=6))
    example = open_source("coco", tmp_path, "train", UNION)[0]
    assert example.is_displayed
    assert check.decode_example(example).shape == (48, 64, 3)
