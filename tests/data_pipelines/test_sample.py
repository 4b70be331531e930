import collections
import csv
import json
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from data_pipelines import sample
from data_pipelines.schema import DATASETS
from data_pipelines.sources import open_source
from data_pipelines.vocabulary import build_vocabulary
from tools.build_sample import VAL_IDS, build, split_of
from tools.shrink import Shrink, rle_area, rle_box, shrink_image

SPLITS = ("train", "val")
SIZES = {
    "sa1b": (70, 24),
    "coco": (29, 24),
    "ade20k": (10, 4),
    "objects365": (23, 1),
    "pascal_part": (7, 1),
    "paco": (7, 1),
    "part_imagenet": (6, 2),
}


def attribution():
    """One row for each image file of the sample."""
    file = pathlib.Path(sample.__file__).parent / "data" / "ATTRIBUTION.csv"
    with file.open(newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


@pytest.fixture(scope="module")
def examples():
    vocabulary = build_vocabulary()
    found = {}
    for dataset, root in sample.roots().items():
        for split in SPLITS:
            source = open_source(dataset, root, split, vocabulary)
            found[dataset, split] = [source[i] for i in range(len(source))]
    return found


def test_every_dataset_has_both_splits(examples):
    assert set(sample.roots()) == set(DATASETS)
    for dataset, sizes in SIZES.items():
        assert (len(examples[dataset, "train"]), len(examples[dataset, "val"])) == sizes


def test_it_stays_small():
    root = pathlib.Path(sample.__file__).parent / "data"
    files = [path for path in root.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 7.5e6


def test_no_image_is_in_both_splits():
    splits = collections.defaultdict(set)
    for row in attribution():
        splits[row["coco_id"]].add(row["split"])
        assert row["split"] == split_of(int(row["coco_id"]))
    assert all(len(found) == 1 for found in splits.values())
    assert len(splits) == 94


def test_attribution_names_every_image_and_a_free_licence():
    root = pathlib.Path(sample.__file__).parent / "data"
    images = {
        p.relative_to(root).as_posix() for p in root.rglob("*") if p.suffix in (".jpg", ".JPEG")
    }
    rows = attribution()
    assert {row["file"] for row in rows} == images
    assert {row["license"] for row in rows} <= {
        "CC BY 2.0",
        "CC BY-SA 2.0",
        "No known copyright restrictions",
    }
    for row in rows:
        folder = row["file"].split("/")[0]
        assert folder in DATASETS
        assert row["flickr_url"].startswith("http")


def test_val_is_human_labelled_coco_val_images(examples):
    assert {int(e.example_id) for e in examples["coco", "val"]} == VAL_IDS
    for example in examples["coco", "val"]:
        assert example.instances
        assert not any(instance.is_pseudo for instance in example.instances)
    kinds = {i.is_thing for e in examples["coco", "val"] for i in e.instances}
    assert kinds == {True, False}


def test_machine_made_masks_are_marked(examples):
    for dataset in ("pascal_part", "paco", "part_imagenet"):
        for split in SPLITS:
            for example in examples[dataset, split]:
                for instance in example.instances:
                    if instance.part_id >= 0:
                        assert instance.is_pseudo
                        assert example.instances[instance.parent].object_id == instance.object_id
                    else:
                        assert instance.is_pseudo == (dataset == "part_imagenet")
    marks = collections.Counter(
        instance.is_pseudo for e in examples["sa1b", "val"] for instance in e.instances
    )
    assert marks == {False: 238, True: 517}


def test_masks_fit_their_images(examples):
    for group in examples.values():
        for example in group:
            for instance in example.instances:
                x0, y0, x1, y1 = instance.box
                assert 0 <= x0 < x1 <= example.width
                assert 0 <= y0 < y1 <= example.height
                if instance.rle is not None:
                    assert list(instance.rle["size"]) == [example.height, example.width]


def test_shrinking_keeps_masks_and_boxes_together():
    shrink = Shrink((80, 100), (40, 50))
    mask = np.zeros((80, 100), np.uint8)
    mask[20:60, 10:30] = 1
    rle = shrink.segmentation([[10, 20, 30, 20, 30, 60, 10, 60]])
    assert rle_box(rle) == [5, 10, 10, 20]
    assert rle_area(rle) == 200
    np.testing.assert_array_equal(shrink.mask(mask), mask[::2, ::2])
    np.testing.assert_array_equal(shrink.labels(mask), mask[::2, ::2])
    assert shrink.box_xywh([10, 20, 20, 40]) == [5, 10, 10, 20]
    assert shrink.segmentation([[1, 1, 2, 1]]) is None
    assert shrink.segmentation([[0, 0, 0.6, 0, 0.6, 0.6, 0, 0.6]]) is None


def test_shrinking_an_image(tmp_path):
    Image.new("L", (200, 100), 90).save(tmp_path / "big.png")
    shrink = shrink_image(tmp_path / "big.png", tmp_path / "a/small.jpg", 64, 80)
    assert shrink == Shrink((100, 200), (32, 64))
    with Image.open(tmp_path / "a/small.jpg") as image:
        assert (image.mode, image.size) == ("RGB", (64, 32))


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory):
    """The builder's own product, put back into the form of its input, and built again."""
    made = pathlib.Path(sample.__file__).parent / "data"
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("out")
    sa1b = source / "sa1b_layout_from_coco_cc/batch_000"
    sa1b.mkdir(parents=True)
    for file in made.glob("sa1b/*/sa_*"):
        shutil.copy(file, sa1b)
    shutil.copytree(made / "coco", source / "coco_panoptic_cc")
    with (source / "coco_panoptic_cc/ATTRIBUTION.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, attribution()[0])
        writer.writeheader()
        writer.writerows(attribution())
    standins = source / "layout_standins"
    paco = "annotations/paco_lvis_v1_"
    for folder, own, files, joined in (
        ("objects365", "objects365", "zhiyuan_objv2_{}.json", "zhiyuan_objv2_standin.json"),
        ("paco", "paco_lvis", f"{paco}{{}}.json", f"{paco}standin.json"),
        ("part_imagenet", "partimagenet", "annotations/{}.json", "annotations/standin.json"),
    ):  # fmt: skip
        shutil.copytree(made / folder, standins / own)
        parts = [json.loads((made / folder / files.format(s)).read_text()) for s in SPLITS]
        both = {
            key: [row for part in parts for row in part[key]] for key in ("images", "annotations")
        }
        (standins / own / joined).write_text(json.dumps(parts[0] | both))
    images = standins / "partimagenet/images"
    shutil.copytree(images / "train", images / "standin")
    shutil.copytree(images / "val", images / "standin", dirs_exist_ok=True)
    shutil.copytree(made / "pascal_part", standins / "pascal_part")
    build(source, out)
    return out


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_builder_builds_what_the_readers_read(dataset, rebuilt, examples):
    vocabulary = build_vocabulary()
    for split in SPLITS:
        source = open_source(dataset, rebuilt / dataset, split, vocabulary)
        for position, before in enumerate(examples[dataset, split]):
            after = source[position]
            assert after.example_id == before.example_id
            assert (after.height, after.width) == (before.height, before.width)
            if dataset in ("sa1b", "ade20k"):  # masks marked by id, images chosen by area
                continue
            assert after.instances == before.instances
    rows = list(csv.DictReader((rebuilt / "ATTRIBUTION.csv").open(newline="")))
    assert rows == attribution()
