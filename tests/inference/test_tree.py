"""One tree of the masks of an image: arithmetic on squares, and the way into training."""

import json

import numpy as np
import pytest
from PIL import Image

from data_pipelines.sources.coco_folder import CocoFolder, read_class_names
from data_pipelines.vocabulary import build_vocabulary
from semsam_jax.core import rle
from semsam_jax.inference.mask_generator import MaskGenerator
from semsam_jax.inference.tree import build_tree, trees_to_coco

HW = (48, 64)


def squares(*boxes):
    masks = np.zeros((len(boxes), *HW), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    return [rle.encode(mask) for mask in masks]


def head(name, is_sure=True):
    return {"name": name, "score": 0.9, "is_sure": is_sure}


# Whole of 40x40 with two parts that overlap in 5x20, a part of the first, and another object.
BOXES = ((0, 0, 40, 40), (0, 0, 20, 20), (15, 0, 40, 20), (2, 2, 8, 8), (50, 0, 60, 10))
MASKS = squares(*BOXES)
LEVELS, SCORES = [1, 3, 4, 6, 2], [0.9, 0.8, 0.7, 0.6, 0.5]
OBJECTS = [head("car"), head("car"), head("bus"), head("car"), head("dog", False)]
PARTS = [head("wheel"), head("door"), head("window", False), head("handle"), None]


@pytest.fixture(scope="module")
def tree():
    return build_tree(MASKS, LEVELS, SCORES, HW, objects=OBJECTS, parts=PARTS)


def check(tree):
    """What every tree must be."""
    for i, node in enumerate(tree.nodes):
        mask = rle.decode(node.segmentation)
        assert mask.sum() == node.area > 0
        if node.parent is None:
            assert (node.depth, node.granularity) == (0, 1.0)
        else:
            above = tree.nodes[node.parent]
            assert node.parent < i
            assert not (mask & ~rle.decode(above.segmentation)).any()
            assert node.depth == above.depth + 1
            assert node.level >= above.level
            assert 0 <= node.granularity < above.granularity
    for parent in (None, *range(len(tree.nodes))):
        siblings = [rle.decode(tree.nodes[i].segmentation) for i in tree.children(parent)]
        assert not siblings or sum(mask.astype(int) for mask in siblings).max() == 1


def test_parts_lie_inside_and_siblings_apart(tree):
    check(tree)
    rows = {node.row: (i, node) for i, node in enumerate(tree.nodes)}
    assert set(rows) == {0, 1, 2, 3, 4}
    parents = {
        r: None if n.parent is None else tree.nodes[n.parent].row for r, (_, n) in rows.items()
    }
    assert parents == {0: None, 1: 0, 2: 0, 3: 1, 4: None}
    # The smaller of the two parts, 400 pixels, keeps the 5x20 pixels that both have.
    assert {r: n.area for r, (_, n) in rows.items()} == {0: 1600, 1: 400, 2: 400, 3: 36, 4: 100}
    # Sides 40, 20, 20, 6 in one tree: (20 - 6) / (40 - 6).
    want = {0: 1, 1: 14 / 34, 2: 14 / 34, 3: 0, 4: 1}
    assert {r: n.granularity for r, (_, n) in rows.items()} == pytest.approx(want)
    assert tree.path(rows[3][0]) == [rows[3][0], rows[1][0], rows[0][0]]


def test_names_come_from_their_own_heads(tree):
    names = {node.row: node.name for node in tree.nodes}
    # The root by the object head; parts by the part head, or the object head where it is not sure.
    assert names == {0: "car", 1: "door", 2: "bus", 3: "handle", 4: None}
    unnamed = build_tree(MASKS, LEVELS, SCORES, HW)
    assert {node.name for node in unnamed.nodes} == {None}


def test_what_is_left_out_passes_its_parts_on():
    # The middle square is nine tenths covered by a smaller sibling, and has a part outside that.
    boxes = ((0, 0, 40, 40), (0, 0, 20, 22), (0, 0, 20, 20), (0, 20, 20, 22))
    levels = [1, 3, 2, 4]  # the second is no part of the third by size: 400 of 440 inside
    tree = build_tree(squares(*boxes), levels, [0.9, 0.8, 0.7, 0.6], HW)
    check(tree)
    rows = {n.row: None if n.parent is None else tree.nodes[n.parent].row for n in tree.nodes}
    assert rows == {0: None, 2: 0, 3: 0}


def test_twins_and_nothing():
    twin = squares((0, 0, 40, 40), (0, 0, 40, 39), (10, 10, 20, 20))
    tree = build_tree(twin, [1, 1, 3], [0.9, 0.8, 0.7], HW)
    check(tree)
    assert len(tree.nodes) == 2
    assert build_tree([], [], [], HW).nodes == ()


def test_random_masks_make_a_tree():
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 40, (60, 2))
    sizes = rng.integers(2, 40, (60, 2))
    boxes = [
        (x, y, min(64, x + w), min(48, y + h))
        for (x, y), (w, h) in zip(corners, sizes, strict=True)
    ]
    levels = rng.integers(1, 7, 60).tolist()
    check(build_tree(squares(*boxes), levels, rng.uniform(size=60).tolist(), HW, min_piece=5))


def test_json_and_training_data(tree, tmp_path):
    records = json.loads(json.dumps(tree.records()))
    assert [r["id"] for r in records] == [1, 2, 3, 4, 5]
    for record in records:
        for child in record["children"]:
            assert records[child - 1]["parent"] == record["id"]
    content = trees_to_coco([(records, "a.png", *HW), (records, "b.png", *HW)])
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "train.json").write_text(json.dumps(content))
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((*HW, 3), np.uint8)).save(tmp_path / name)
    classes = read_class_names(tmp_path / "annotations" / "train.json")
    assert set(classes[0]) == {"car", "thing"}
    assert set(classes[1]) == {"door", "bus", "handle"}
    vocabulary = build_vocabulary(["coco"], extra={"mine": classes})
    source = CocoFolder(tmp_path, "train", vocabulary, dataset="mine")
    example = source[1]
    assert not example.unused
    assert len(example.instances) == 5
    by_area = {(i.box, int(i.box[2] - i.box[0])): i for i in example.instances}
    handle = next(i for (_, side), i in by_area.items() if side == 6)
    door = example.instances[handle.parent]
    assert door.box == (0, 0, 20, 20)
    assert example.instances[door.parent].box == (0, 0, 40, 40)
    assert all(i.is_pseudo for i in example.instances)


def test_the_generator_gives_its_tree(tiny_model, image_a):
    settings = {"points_per_side": 3, "pred_iou_thresh": -9.0, "stability_score_thresh": 0.0}
    settings |= {"box_nms_thresh": 0.99, "min_mask_region_area": 0, "size": 96}
    records = MaskGenerator(tiny_model, **settings, tree=True).generate(image_a)
    assert len(records.tree.nodes) > 2
    check(records.tree)
    assert records.tree.image_hw == records.image_hw
    for node in records.tree.nodes:
        assert node.level == records[node.row]["level"]
    assert records[:2].tree is None
    assert MaskGenerator(tiny_model, **settings).generate(image_a).tree is None
