"""COCOTree's published files: trees with open names, read as an additional dataset."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from data_pipelines import findings
from data_pipelines.sources import CocoTree, open_source
from data_pipelines.sources.single_dataset import custom_classes, open_single_dataset
from data_pipelines.vocabulary import build_vocabulary
from semsam_jax.core.errors import DataError

HW = (24, 32)


def row(image, node, parent, label, box, **extra):
    """A line of `instance_nodes.jsonl`, as the release has it."""
    x0, y0, x1, y1 = box
    mask = np.zeros(HW, np.uint8, order="F")
    mask[y0:y1, x0:x1] = 1
    packed = coco_mask.encode(mask)
    return {
        "image_id": image,
        "instance_node_id": node,
        "semantic_node_id": node.partition("#")[0],
        "parent_instance_node_id": parent,
        "final_label": label,
        "segmentation": {"size": list(HW), "counts": packed["counts"].decode()},
    } | extra


ROWS = [
    row(7, "n00003#1", "n00002#1", "Hub_cap", (2, 2, 4, 4)),  # before its parents
    row(7, "n00001#1", "n00000#1", "car", (0, 0, 16, 16)),
    row(9, "n00001#1", "n00000#1", "dog", (0, 0, 8, 8)),
    row(7, "n00002#1", "n00001#1", "wheel", (1, 1, 6, 6)),
    row(7, "n00004#1", "n00000#1", "others", (20, 0, 30, 9)),
    row(7, "n00005#1", "n00001#1", "car", (10, 10, 12, 12)),  # a car on a car
]


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "cocotree"
    (folder / "annotations").mkdir(parents=True)
    (folder / "train2017").mkdir()
    for image in (7, 9):
        picture = Image.fromarray(np.zeros((*HW, 3), np.uint8))
        picture.save(folder / "train2017" / f"{image:012d}.jpg")
    write(folder, ROWS)
    return folder


def write(folder, rows):
    text = "".join(json.dumps(r) + "\n" for r in rows)
    (folder / "annotations" / "instance_nodes.jsonl").write_text(text + "\n")


def opened(root, split="train"):
    return open_single_dataset("cocotree", root, split, {})


def test_a_tree_comes_with_all_links_and_open_names(root):
    source = opened(root)
    assert isinstance(source, CocoTree)
    assert list(source.example_ids) == ["7", "9"]
    vocabulary = source.vocabulary
    assert set(vocabulary.object_names) == {"car", "dog"}
    assert set(vocabulary.part_names) == {"car", "hub cap", "wheel"}
    example = source[0]
    assert not example.unused
    texts = [vocabulary.label_text(i.object_id, i.part_id) for i in example.instances]
    assert texts == ["car", "(no class)", "car: wheel", "car: car", "car: hub cap"]
    assert [i.parent for i in example.instances] == [-1, -1, 0, 0, 2]
    assert all(i.is_pseudo for i in example.instances)
    assert coco_mask.decode(example.instances[4].rle).sum() == 4
    # Nothing is known of names that an image does not have.
    known = {vocabulary.label_text(*pair) for pair in example.annotated}
    assert known == {"car", "car: wheel", "car: car", "car: hub cap"}


def test_the_benchmarks_images_are_held_out(root):
    (root / "splits").mkdir()
    (root / "splits" / "cocotree_1k_v1.jsonl").write_text('{"image_id": 9}\n')
    assert list(opened(root).example_ids) == ["7"]
    assert list(opened(root, "val").example_ids) == ["9"]
    (root / "splits" / "cocotree_1k_v1.jsonl").write_text("000000000007\n# comment\n")
    assert list(opened(root, "val").example_ids) == ["7"]
    (root / "splits" / "cocotree_1k_v1.jsonl").write_text("seven\n")
    with pytest.raises(DataError, match=r"line 1 .* expected an image id"):
        opened(root, "val")


def test_it_joins_other_sets(root):
    extra = {"cocotree": custom_classes("cocotree", root, "train")}
    vocabulary = build_vocabulary(["coco"], extra=extra)
    source = open_source("cocotree", root, "train", vocabulary)
    assert vocabulary.label_text(source[1].instances[0].object_id) == "dog"
    away = root.parent / "coco"
    (root / "train2017").rename(away)
    assert open_source("cocotree", root, "train", vocabulary, images=str(away))[1].height == 24
    with pytest.raises(DataError, match="train2017"):
        _ = source[1]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*ROWS, {"image_id": "x"}], "line 7 .* download the file again"),
        ([*ROWS, row(7, "n00009#1", "n00000#1", " ", (0, 0, 2, 2))], "line 7"),
        (
            [row(7, "a#1", "b#1", "a", (0, 0, 2, 2)), row(7, "b#1", "a#1", "b", (0, 0, 2, 2))],
            "itself",
        ),
        ([ROWS[1], ROWS[1]], "two masks have the id"),
        (
            [row(7, "a#1", "", "a", (0, 0, 2, 2), segmentation={"size": [24, 32], "counts": [5]})],
            "a#1",
        ),
    ],
)
def test_damage_is_one_clear_error(root, rows, message):
    write(root, rows)
    with pytest.raises(DataError, match=message):
        _ = opened(root)[0]


def test_a_part_without_its_whole_is_told(root):
    write(root, [*ROWS, row(9, "n00007#1", "n00006#1", "tail", (1, 1, 3, 3))])
    example = opened(root)[1]
    assert [u.reason for u in example.unused] == [findings.LOST_WHOLE]
    assert len(example.instances) == 2
