import dataclasses
import json
import pathlib
import pickle

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from data_pipelines import check
from data_pipelines.index import build_index
from data_pipelines.schema import DATASETS
from data_pipelines.sources import SA1B, CocoFolder, open_source
from data_pipelines.sources.coco_folder import read_class_names
from data_pipelines.vocabulary import Vocabulary, VocabularyEntry, build_vocabulary
from semsam_jax.core.errors import ConfigError, DataError
from tests.data_pipelines.trees import (
    CLASSES,
    example_id,
    make_scene,
    write_ade20k_full,
    write_scenes,
    write_tree,
    write_ugly_tree,
)

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
ALL = (*DATASETS, "coco_folder")


@pytest.fixture(scope="module")
def union() -> Vocabulary:
    own = (["cat", "snow ☃", "class 77"], ["ear"])
    return build_vocabulary(extra={"coco_folder": own})


def decode(instance) -> np.ndarray:
    return coco_mask.decode(instance.rle).astype(bool)


@pytest.mark.parametrize("dataset", ALL)
def test_reads_back_what_was_written(dataset, tmp_path, union):
    write_tree(dataset, tmp_path)
    for split, numbers in (("train", (1, 2, 3, 4)), ("val", (5, 6))):
        source = open_source(dataset, tmp_path, split, union)
        assert source.example_ids == tuple(example_id(dataset, n, split) for n in numbers)
        for position, number in enumerate(numbers):
            scene = make_scene(dataset, number, (48, 64) if number % 2 else (64, 48))
            example = source[position]
            assert (example.height, example.width) == scene.size_hw
            assert example.image == scene.image
            if dataset == "part_imagenet":
                continue
            assert len(example.instances) == len(scene.instances)
            for written in scene.instances:
                match = [
                    i
                    for i in example.instances
                    if (i.part_id >= 0) == bool(written.part)
                    and (i.rle is None or (decode(i) == written.mask).all())
                    and i.box == box_of(written.mask)
                ]
                assert len(match) == 1
                check_labels(dataset, union, written, match[0], example)


def box_of(mask: np.ndarray) -> tuple[float, float, float, float]:
    ys, xs = np.nonzero(mask)
    return float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1)


def check_labels(dataset, union, written, read, example):
    if dataset == "sa1b":
        assert (read.object_id, read.part_id) == (-1, -1)
        return
    assert read.object_id == union.object_index(dataset, written.whole)
    assert read.is_thing == union.entry(read.object_id).is_thing
    if not written.part:
        assert (read.part_id, read.parent) == (-1, -1)
        return
    assert read.part_id == union.part_index(dataset, written.part)
    assert example.instances[read.parent].object_id == read.object_id
    assert example.instances[read.parent].part_id == -1


def test_part_imagenet_wholes_are_the_union_of_their_parts(tmp_path, union):
    write_tree("part_imagenet", tmp_path)
    example = open_source("part_imagenet", tmp_path, "train", union)[0]
    wholes = [i for i in example.instances if i.part_id < 0]
    assert len(wholes) == 2
    for index, whole in enumerate(wholes):
        parts = [decode(i) for i in example.instances if i.parent == index]
        np.testing.assert_array_equal(decode(whole), np.any(parts, axis=0))


@pytest.mark.parametrize("dataset", ALL)
def test_ugly_folders(dataset, tmp_path, union):
    tree = write_ugly_tree(dataset, tmp_path)
    source = open_source(dataset, tmp_path, "train", union)
    assert set(source.example_ids) == set(tree.readable) | tree.broken
    for position, name in enumerate(source.example_ids):
        if name in tree.broken:
            with pytest.raises(DataError, match=dataset) as caught:
                source[position]
            assert repr(name) in str(caught.value)
            assert str(tmp_path) in str(caught.value)
            continue
        example = source[position]
        assert len(example.instances) == tree.readable[name]
        assert len(example.ignored) == (name in tree.crowded)
        for crowd in example.ignored:
            assert crowd.box == (30.0, 40.0, 40.0, 50.0)
            assert crowd.object_id == union.object_index(dataset, CLASSES[dataset][0])
        for instance in example.instances:
            if instance.rle is not None:
                assert isinstance(instance.rle["counts"], bytes)
    report = check.check(source)
    assert report.num_examples == len(tree.readable) - len(tree.undecodable)
    assert len(report.broken) == len(tree.broken | tree.undecodable)
    assert report.num_crowds == len(tree.crowded)


@pytest.mark.parametrize("dataset", ALL)
def test_readers_travel_to_worker_processes(dataset, tmp_path, union):
    write_tree(dataset, tmp_path, 2, 1)
    source = open_source(dataset, tmp_path, "train", union)
    again = pickle.loads(pickle.dumps(source))
    assert again[1] == source[1]
    with pytest.raises(IndexError):
        source[2]


@pytest.mark.parametrize("dataset", ALL)
def test_wrong_folders_are_told_at_once(dataset, tmp_path, union):
    with pytest.raises(DataError, match="not a folder"):
        open_source(dataset, tmp_path / "nowhere", "train", union)
    (tmp_path / "something_else").mkdir()
    with pytest.raises(DataError, match=r"expected .*found \['something_else'\]"):
        open_source(dataset, tmp_path, "train", union)
    write_tree(dataset, tmp_path / "data", 2, 1)
    with pytest.raises(DataError, match="layout of"):
        open_source(dataset, tmp_path / "data", "test", union)


@pytest.mark.parametrize("dataset", ["coco", "paco", "objects365", "part_imagenet", "coco_folder"])
def test_an_image_in_the_json_that_is_not_on_disk(dataset, tmp_path, union):
    write_scenes(dataset, tmp_path, "train", [make_scene(dataset, n) for n in (1, 2)])
    image = sorted(p for p in tmp_path.rglob("*") if p.suffix in (".jpg", ".JPEG"))[0]
    image.unlink()
    source = open_source(dataset, tmp_path, "train", union)
    with pytest.raises(DataError, match="cannot read the image: No such file"):
        source[0]
    assert source[1].instances


@pytest.mark.parametrize("year", [2017, 2021])
def test_ade20k_full_layouts(year, tmp_path, union):
    scenes = [make_scene("ade20k", number) for number in (1, 2)]
    write_ade20k_full(tmp_path, "train", scenes, year)
    source = open_source("ade20k", tmp_path, "train", union)
    assert source.example_ids[0] == "street/ADE_train_00000001"
    for scene, position in zip(scenes, range(2), strict=True):
        example = source[position]
        for written, read in zip(scene.instances, example.instances, strict=True):
            np.testing.assert_array_equal(decode(read), written.mask)
            assert read.object_id == union.object_index("ade20k", written.whole)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("door", "door, double door"),
        ("double door", "door, double door"),
        ("closet", "wardrobe, closet, press"),
        ("booth", "booth, cubicle, stall, kiosk"),
        ("screen, CRT screen", "crt screen"),
        ("screen door, screen", "screen door, screen"),
        ("Pot, flowerpot", "pot, flowerpot"),
        ("pot", None),
        ("basket, basketball hoop, hoop", None),
        ("bag, handbag, pocketbook, purse", None),
        ("pier", None),
    ],
)
def test_names_of_the_full_ade20k_are_classes_with_all_their_synonyms(name, found, tmp_path):
    scene = make_scene("ade20k", 1)
    instances = tuple(dataclasses.replace(item, whole=name) for item in scene.instances[:1])
    write_ade20k_full(tmp_path, "train", [dataclasses.replace(scene, instances=instances)], 2021)
    vocabulary = build_vocabulary(["ade20k"])
    example = open_source("ade20k", tmp_path, "train", vocabulary)[0]
    names = [vocabulary.entry(item.object_id).name for item in example.instances]
    assert names == ([found] if found else [])


def test_ade20k_panoptic_layout(tmp_path, union):
    write_scenes("coco", tmp_path, "train", [make_scene("coco", 1)])
    file = tmp_path / "annotations/panoptic_train2017.json"
    content = json.loads(file.read_text())
    content["categories"] = [{"id": 1, "name": "person"}, {"id": 187, "name": "sky"}]
    (tmp_path / "ade20k_panoptic_train.json").write_text(json.dumps(content))
    (tmp_path / "annotations/panoptic_train2017").rename(tmp_path / "ade20k_panoptic_train")
    (tmp_path / "images").mkdir()
    (tmp_path / "train2017").rename(tmp_path / "images/training")
    example = open_source("ade20k", tmp_path, "train", union)[0]
    assert [union.names[i.object_id] for i in example.instances] == ["person", "sky"]


@pytest.mark.parametrize(
    ("folder", "split", "classes"),
    [
        ("ade20k2017", "train", ["sky", "person"]),
        ("ade20k2017", "val", ["sky", "person"]),
        ("ade20k2020", "train", ["car", "person"]),
        ("ade20k2020", "val", ["car", "person"]),
    ],
)
def test_ade20k_fixtures(folder, split, classes, union):
    # Their part "door" has the name of a whole of the 150 classes, and must not become one.
    source = open_source("ade20k", FIXTURES / folder, split, union)
    assert [union.names[i.object_id] for i in source[0].instances] == classes


def test_segment_anything_fixture(union):
    source = open_source("sa1b", FIXTURES / "segment_anything_dataset", "train", union)
    assert source.example_ids == ("a", "b")
    assert source[0].instances[0].box == (3.0, 1.0, 4.0, 5.0)
    with pytest.raises(DataError, match=r"mask size \[5, 10\] \(h, w\), image size \[10, 5\]"):
        source[1]


def test_sa1b_quality_thresholds(tmp_path, union):
    write_tree("sa1b", tmp_path)
    assert not SA1B(tmp_path, "train", union, min_predicted_iou=0.95)[0].instances
    assert SA1B(tmp_path, "train", union, min_stability_score=0.95)[0].instances


def test_coco_instances_option(tmp_path, union):
    write_tree("coco", tmp_path)
    source = open_source("coco", tmp_path, "train", union, annotations="instances")
    example = source[0]
    assert [union.names[i.object_id] for i in example.instances] == ["person"]
    # The sky may well be there: it is no negative of an image that is annotated for things only.
    annotated = {union.entry(object_id).name for object_id, _ in example.annotated}
    assert "person" in annotated
    assert "sky-other-merged" not in annotated
    with pytest.raises(ConfigError, match="'panoptic' or 'instances'"):
        open_source("coco", tmp_path, "train", union, annotations="stuff")


@pytest.mark.parametrize("annotations", ["panoptic", "instances"])
def test_crowds_are_kept_apart(annotations, tmp_path, union):
    scene = make_scene("coco", 1)
    person, sky = scene.instances
    crowd = dataclasses.replace(person, is_crowd=True)
    scenes = [
        dataclasses.replace(scene, instances=(crowd, sky)),
        dataclasses.replace(scene, number=2),
    ]
    write_scenes("coco", tmp_path, "train", scenes)
    source = open_source("coco", tmp_path, "train", union, annotations=annotations)
    (found,) = source[0].ignored
    assert (found.object_id, found.is_thing) == (union.object_index("coco", "person"), True)
    np.testing.assert_array_equal(decode(found), crowd.mask)
    assert found.object_id not in [i.object_id for i in source[0].instances]
    assert source[1].instances[0] == found
    assert not source[1].ignored


@pytest.mark.parametrize(
    ("folder", "split", "parents"),
    [
        ("ade20k2017", "train", [1]),
        ("ade20k2017", "val", [0, 2]),
        ("ade20k2020", "train", [0]),
        ("ade20k2020", "val", [0, 2]),
    ],
)
def test_ade20k_part_levels(folder, split, parents, union):
    plain = open_source("ade20k", FIXTURES / folder, split, union)[0]
    source = open_source("ade20k", FIXTURES / folder, split, union, parts=True)
    wholes, parts = source[0].instances[:2], source[0].instances[2:]
    assert wholes == plain.instances
    assert [part.parent for part in parts] == parents
    assert {(part.object_id, part.part_id) for part in parts} == {(-1, -1)}
    assert {part.kind for part in parts} == {"part"}
    index = build_index(source)
    assert index.view("part").tolist() == index.view("object").tolist() == [0]


def test_ade20k_parts_need_the_full_release(tmp_path, union):
    write_tree("ade20k", tmp_path)
    with pytest.raises(ConfigError, match="has no part levels; expected the full release"):
        open_source("ade20k", tmp_path, "train", union, parts=True)


def test_custom_folder_needs_only_its_json(tmp_path):
    write_tree("coco_folder", tmp_path)
    classes = read_class_names(tmp_path / "annotations/train.json")
    assert classes == ((CLASSES["coco_folder"][0], "snow ☃", "class 77"), ("ear",))
    vocabulary = build_vocabulary([], extra={"mine": classes})
    source = CocoFolder(tmp_path, "train", vocabulary, dataset="mine")
    assert source[0].dataset == "mine"
    boxes = CocoFolder(tmp_path, "train", vocabulary, dataset="mine", boxes_only=True)
    assert not boxes.has_masks
    assert all(instance.rle is None for instance in boxes[0].instances)
    with pytest.raises(ConfigError, match="built-in"):
        CocoFolder(tmp_path, "train", vocabulary, dataset="coco")


def test_unknown_classes_are_listed_together(tmp_path):
    write_tree("coco", tmp_path)
    small = Vocabulary([VocabularyEntry("coco", "person", "person", 1)])
    with pytest.raises(DataError, match=r"has 132 classes that the vocabulary of coco lacks"):
        open_source("coco", tmp_path, "train", small)


def test_check_from_the_command_line(tmp_path, capsys):
    write_tree("paco", tmp_path / "good")
    arguments = [
        "--dataset",
        "paco",
        "--split",
        "val",
        "--contact-sheet",
        str(tmp_path / "sheet.png"),
    ]
    assert check.main([*arguments, "--root", str(tmp_path / "good")]) == 0
    assert (tmp_path / "sheet.png").stat().st_size > 1000
    assert "mug: handle" in capsys.readouterr().out
    write_ugly_tree("paco", tmp_path / "ugly")
    assert check.main(["--dataset", "paco", "--root", str(tmp_path / "ugly")]) == 1
    assert check.main(["--dataset", "paco", "--root", str(tmp_path / "none")]) == 2
    assert "not a folder" in capsys.readouterr().err
    write_tree("coco_folder", tmp_path / "own")
    options = ["--options", '{"annotations": "annotations/train.json"}']
    assert check.main(["--dataset", "mine", "--root", str(tmp_path / "own"), *options]) == 0
