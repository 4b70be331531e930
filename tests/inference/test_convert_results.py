import json
import sys
import tracemalloc

import cv2
import numpy as np
import pytest
import supervision
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from scipy import ndimage
from skimage import draw as skimage_draw

from data_pipelines.sources.coco_folder import CocoFolder, read_class_names
from data_pipelines.sources.single_dataset import open_single_dataset
from data_pipelines.vocabulary import build_vocabulary
from semsam_jax.core import rle
from semsam_jax.core.errors import DataError
from semsam_jax.inference import convert_results as convert
from semsam_jax.inference import outlines
from semsam_jax.inference.results import Records, ScoredName, Segments

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
        record = {"segmentation": rle.encode(mask), "predicted_iou": 0.9 - 0.1 * i, "level": i + 1}
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
        for segmentation in (mask, rle.encode(mask), counts):
            got = convert.record_mask({"segmentation": segmentation})
            np.testing.assert_array_equal(got, mask)
    with pytest.raises(DataError, match="expected COCO RLE"):
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
    assert [s["label"] for s in content["shapes"]] == ["dog", "dog:head", "thing", "thing"]
    for group, mask in enumerate(masks, start=1):
        drawn = np.zeros_like(mask)
        for shape in content["shapes"]:
            if shape["group_id"] == group:
                # Pixel (row, column) is a unit square around its centre.
                points = np.array(shape["points"]) - 0.5
                drawn |= skimage_draw.polygon2mask(mask.shape, points[:, ::-1])
        union, both = (drawn | mask).sum(), (drawn & mask).sum()
        assert both / union > 0.95


def test_labelme_files_are_read_as_the_masks_they_were_written_from(records, masks, tmp_path):
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(tmp_path / "a.png")
    content = convert.to_labelme([*records, records[2]], "a.png", HEIGHT, WIDTH)
    (tmp_path / "a.json").write_text(json.dumps(content))
    source = open_single_dataset("mine", tmp_path, "train", {})
    read = [coco_mask.decode(i.rle).astype(bool) for i in source[0].instances]
    assert len(read) == 4
    for mask, wanted in zip(read, [masks[0], masks[2], masks[2], masks[1]], strict=True):
        assert (mask & wanted).sum() / (mask | wanted).sum() > 0.95


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
    assert found["class_name"].tolist() == ["dog", "dog:head", "thing"]
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


def enclosed(polygon):
    x, y = np.array(polygon).T
    return abs((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2


def test_thin_masks_keep_their_polygons_and_squares_their_area(caplog):
    masks = np.zeros((5, HEIGHT, WIDTH), bool)
    masks[0, 4, 10:40] = True
    masks[1, 5:35, 7] = True
    masks[2, 5:15, 5:15] = True
    masks[3, 5:35, 5:35] = masks[3, 38, 58] = True
    records = [{"segmentation": rle.encode(mask)} for mask in masks]
    shapes = convert.to_labelme(records, "a.jpg", HEIGHT, WIDTH)["shapes"]
    assert [shape["group_id"] for shape in shapes] == [1, 2, 3, 4, 4]
    assert [enclosed(shape["points"]) for shape in shapes] == [30, 30, 100, 900, 1]
    assert "1 masks are empty and have no polygon: [5]" in caplog.text


def test_outlines_of_small_masks_are_exact():
    """Against counting pixel by pixel: random pieces, holes filled."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        mask = rng.random(rng.integers(1, 9, 2)) < rng.random()
        drawn = np.zeros_like(mask)
        for polygon in outlines.mask_polygons(mask):
            piece = outlines.polygon_mask(polygon, *mask.shape)
            drawn |= piece
            assert enclosed(polygon) == piece.sum()
        np.testing.assert_array_equal(drawn, ndimage.binary_fill_holes(mask))


def test_pieces_are_joined_to_one_polygon(masks):
    polygons = outlines.mask_polygons(masks[2])
    assert len(polygons) == 2
    drawn = outlines.polygon_mask(outlines.joined(polygons), HEIGHT, WIDTH)
    np.testing.assert_array_equal(drawn, masks[2])


def test_one_polygon_leaves_holes_out_exactly():
    rng = np.random.default_rng(0)
    for _ in range(300):
        mask = rng.random(rng.integers(1, 12, 2)) < rng.random()
        polygon = outlines.joined_polygon(mask)
        if mask.any():
            np.testing.assert_array_equal(outlines.polygon_mask(polygon, *mask.shape), mask)
            x, y = np.array(polygon).T  # clockwise around pieces, counter-clockwise around holes
            assert (x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2 == mask.sum()
    assert outlines.joined_polygon(np.zeros((3, 3), bool)) == []


def test_yolo_lines_of_disjoint_masks_do_not_overlap(tmp_path):
    """Rings within rings: as the project's reader and OpenCV draw them."""
    side = 200
    y, x = np.mgrid[:side, :side]
    distance = np.hypot(x - 90, y - 110)
    bands = (distance / 12).astype(int)
    masks = [(bands % 3 == k) & (bands < 8) for k in range(3)]
    text = convert.to_yolo([{"segmentation": mask} for mask in masks], side, side)
    for folder in ("images", "labels"):
        (tmp_path / folder / "train").mkdir(parents=True)
    Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(tmp_path / "images/train/a.png")
    (tmp_path / "labels/train/a.txt").write_text(text)
    (tmp_path / "data.yaml").write_text("names: [thing]")
    source = open_single_dataset("mine", tmp_path, "train", {})
    read = [coco_mask.decode(i.rle).astype(bool) for i in source[0].instances]
    lines = [np.array(line.split()[1:], float).reshape(-1, 2) * side for line in text.splitlines()]
    for mask, drawn, points in zip(masks, read, lines, strict=True):
        assert (drawn & mask).sum() / (drawn | mask).sum() > 0.97
        canvas = cv2.fillPoly(np.zeros((side, side), np.uint8), [np.round(points).astype(int)], 1)
        path = [np.round(points).astype(int)]
        border = cv2.polylines(np.zeros((side, side), np.uint8), path, True, 1) > 0
        border = ndimage.binary_dilation(border, np.ones((3, 3)))
        assert not ((canvas > 0) ^ mask)[~border].any()
    assert (np.sum(read, axis=0) > 1).mean() < 0.01


def segments_of(masks):
    names = [ScoredName("dog", 0.9), ScoredName("cat", 0.1, False), None]
    return Segments(
        masks=np.stack(masks),
        scores=np.array([0.9, 0.8, 0.7], np.float32),
        low_res_logits=np.zeros((3, 4, 4), np.float32),
        levels=(1, 2, 3),
        tokens=(3, 2, 0),
        objects=tuple(names),
        parts=(None, ScoredName("head", 0.5), None),
    )


def test_segments_answer_in_other_formats(masks, tmp_path):
    segments = segments_of(masks)
    assert repr(segments) == (
        "Segments(3 masks of 60x40, level 1: 0.90, level 2: 0.80, level 3: 0.70)"
    )
    unpacked, scores, _ = segments
    np.testing.assert_array_equal(unpacked, masks)
    assert len(segments) == len(scores) == 3
    assert segments[1].levels == segments[-2:-1].levels == segments[[False, True, False]].levels
    with pytest.raises(IndexError):
        segments[3]
    found = segments.to_supervision()
    np.testing.assert_array_equal(np.asarray(found.mask), masks)
    assert found["class_name"].tolist() == ["dog", "head", "thing"]
    assert [c["name"] for c in segments.to_coco("a.jpg")["categories"]] == ["dog", "head", "thing"]
    assert [len(polygons) for polygons in segments.to_polygons()] == [1, 1, 2]
    np.testing.assert_array_equal(segments.to_label_map() == 2, masks[1])
    assert segments.class_names() == ["dog", "head", "thing"]
    assert segments.to_coco(tmp_path / "a.jpg")["images"][0]["file_name"] == f"{tmp_path}/a.jpg"
    lines = segments.to_yolo().splitlines()
    assert [line.split()[0] for line in lines] == ["0", "1", "2"]
    for line, mask in zip(lines, masks, strict=True):
        points = np.array(line.split()[1:], float).reshape(-1, 2) * [WIDTH, HEIGHT]
        drawn = outlines.polygon_mask(points, HEIGHT, WIDTH)
        assert (drawn & mask).sum() / (drawn | mask).sum() > 0.97
    assert segments.to_yolo(["thing", "head", "dog"]).splitlines()[0].split()[0] == "2"
    with pytest.raises(DataError, match="'dog' is not among"):
        segments.to_yolo(["cat"])
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    assert np.asarray(segments.plot(image)).any()
    out = segments.save(tmp_path / "out", image)
    assert {p.name for p in out.iterdir()} == {"masks.json", "label_map.png", "overlay.png"}
    with Image.open(out / "label_map.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), segments.to_label_map())
    again = json.loads((out / "masks.json").read_text())
    np.testing.assert_array_equal(convert.record_mask(again[2]), masks[2])
    with pytest.raises(DataError, match="already holds masks"):
        segments.save(out, image)
    with pytest.raises(DataError, match="60x40"):
        segments.plot(image[1:])


def test_many_masks_take_little_memory():
    side = 1000
    mask = np.zeros((side, side), bool)
    mask[100:900, 100:900] = True
    records = Records([{"segmentation": rle.encode(mask)} for _ in range(30)], (side, side))
    tracemalloc.start()
    found = records.to_supervision()
    size, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) == 30
    assert size < 1e6
    assert peak < 15e6  # 30 MB of dense masks
