import json
import sys

import numpy as np
import pytest
import supervision
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from skimage import draw as skimage_draw

from data_pipelines.sources.coco_folder import CocoFolder, read_class_names
from data_pipelines.vocabulary import build_vocabulary
from semsam_jax.core.errors import DataError
from semsam_jax.inference import convert_results as convert
from semsam_jax.inference.files import encode_rle

HEIGHT, WIDTH = 40, 60


@pytest.fixture
def masks():
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    disc = (x - 20) ** 2 + (y - 18) ** 2 < 15**2
    small = (x - 20) ** 2 + (y - 18) ** 2 < 5**2
    two = ((x > 40) & (x < 45) & (y < 10)) | ((x > 50) & (y > 20))
    return [disc, small, two]


@pytest.fixture
def records(masks):
    names = [("dog", None), ("dog", "head"), (None, None)]
    found = []
    for i, (mask, (thing, part)) in enumerate(zip(masks, names, strict=True)):
        record = {"segmentation": encode_rle(mask), "predicted_iou": 0.9 - 0.1 * i, "level": i + 1}
        if thing:
            record["object"] = {"name": thing, "score": 0.8}
        if part:
            record["part"] = {"name": part, "score": 0.7}
        found.append(record)
    return found


def uncompressed_counts(mask):
    """COCO's uncompressed RLE: lengths of the runs down the columns, zeros first."""
    flat = mask.flatten(order="F")
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff([0, *edges, flat.size]).tolist()
    return [0, *runs] if flat[0] else runs


def test_all_three_kinds_of_segmentation_are_read(masks):
    for mask in [*masks, np.zeros((HEIGHT, WIDTH), bool), np.ones((HEIGHT, WIDTH), bool)]:
        counts = {"size": [HEIGHT, WIDTH], "counts": uncompressed_counts(mask)}
        for segmentation in (mask, encode_rle(mask), counts):
            got = convert.record_mask({"segmentation": segmentation})
            np.testing.assert_array_equal(got, mask)
    with pytest.raises(DataError, match="wanted COCO RLE"):
        convert.record_mask({"segmentation": [[1, 2, 3, 4]]})


def test_coco_file_loads_in_pycocotools(records, masks, tmp_path):
    content = convert.to_coco(records, "a b.jpg", HEIGHT, WIDTH)
    (tmp_path / "masks.json").write_text(json.dumps(content, allow_nan=False))
    data = COCO(str(tmp_path / "masks.json"))
    assert data.imgs[1] == {"id": 1, "file_name": "a b.jpg", "height": HEIGHT, "width": WIDTH}
    assert [c["name"] for c in data.loadCats(data.getCatIds())] == ["dog", "dog:head", "thing"]
    for mask, annotation in zip(masks, data.loadAnns(data.getAnnIds()), strict=True):
        np.testing.assert_array_equal(data.annToMask(annotation), mask)
        assert annotation["area"] == mask.sum()
    assert len(data.getAnnIds(catIds=data.getCatIds(["dog:head"]))) == 1
    results = data.loadRes(content["annotations"])
    assert len(results.anns) == len(records)


def test_several_images_are_one_data_set_that_training_reads(records, masks, tmp_path):
    images = [(records, "a.png", HEIGHT, WIDTH), (records[1:2], "b.png", HEIGHT, WIDTH)]
    (tmp_path / "annotations").mkdir()
    (tmp_path / "train").mkdir()
    for _, name, height, width in images:
        Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(tmp_path / "train" / name)
    file = tmp_path / "annotations" / "train.json"
    file.write_text(json.dumps(convert.to_coco_dataset(images)))
    vocabulary = build_vocabulary([], extra={"mine": read_class_names(file)})
    source = CocoFolder(tmp_path, "train", vocabulary, dataset="mine")
    assert [len(source[i].instances) for i in range(2)] == [3, 1]
    found = source[0].instances[2]  # parts come after wholes
    assert vocabulary.entry(found.object_id).text == "dog"
    assert vocabulary.entry(found.part_id).text == "head"
    np.testing.assert_array_equal(coco_mask.decode(found.rle), masks[1])


def test_labelme_polygons_cover_the_masks(records, masks):
    content = convert.to_labelme(records, "a.jpg", HEIGHT, WIDTH)
    assert (content["imageHeight"], content["imageWidth"]) == (HEIGHT, WIDTH)
    assert content["imageData"] is None
    groups = [shape["group_id"] for shape in content["shapes"]]
    assert groups == [1, 2, 3, 3]
    assert [s["label"] for s in content["shapes"]] == ["dog", "dog / head", "thing", "thing"]
    for group, mask in enumerate(masks, start=1):
        drawn = np.zeros_like(mask)
        for shape in content["shapes"]:
            if shape["group_id"] == group:
                points = np.array(shape["points"]) - 0.5
                drawn |= skimage_draw.polygon2mask(mask.shape, points[:, ::-1])
        union, both = (drawn | mask).sum(), (drawn & mask).sum()
        assert both / union > 0.7


def test_label_map_puts_small_masks_on_top(records, masks):
    label_map = convert.to_label_map(records, HEIGHT, WIDTH)
    assert set(np.unique(label_map)) == {0, 1, 2, 3}
    np.testing.assert_array_equal(label_map == 2, masks[1])
    np.testing.assert_array_equal(label_map == 1, masks[0] & ~masks[1])


def test_supervision_detections(records, masks):
    found = convert.to_supervision(records)
    assert isinstance(found, supervision.Detections)
    np.testing.assert_array_equal(found.mask, masks)
    np.testing.assert_allclose(found.confidence, [0.9, 0.8, 0.7])
    assert found["class_name"].tolist() == ["dog", "dog / head", "thing"]
    assert found["level"].tolist() == [1, 2, 3]
    for box, mask in zip(found.xyxy, masks, strict=True):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert box.tolist() == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    assert len(found[found["level"] == 2]) == 1
    assert len(convert.to_supervision([])) == 0


def test_missing_supervision_is_explained(records, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(DataError, match="pip install supervision"):
        convert.to_supervision(records)


def test_scaling_keeps_shape_and_place(records):
    record = records[0] | {"point_coords": [[20, 18]], "box": [5, 3, 35, 33]}
    scaled = convert.scale_record(record, HEIGHT * 3, WIDTH * 2)
    mask = convert.record_mask(scaled)
    assert mask.shape == (HEIGHT * 3, WIDTH * 2)
    before = convert.record_mask(record)
    assert mask.mean() == pytest.approx(before.mean(), rel=0.03)
    np.testing.assert_array_equal(mask[1::3, ::2] & before, mask[1::3, ::2])
    assert scaled["point_coords"] == [[40, 54]]
    assert scaled["box"] == [10, 9, 70, 99]
    assert scaled["area"] == mask.sum()
    assert "area" not in record


def test_masks_of_another_size_are_refused(records):
    for make in (convert.to_coco, convert.to_labelme):
        with pytest.raises(DataError, match="scale_record"):
            make(records, "a.jpg", HEIGHT + 1, WIDTH)
    with pytest.raises(DataError, match="scale_record"):
        convert.to_label_map(records, HEIGHT, WIDTH + 2)
