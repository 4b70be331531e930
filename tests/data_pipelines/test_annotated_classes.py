"""Which classes an image is annotated for: readers, records and rows."""

import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image

from data_pipelines import build
from data_pipelines.schema import BatchShape, RawExample, RawInstance
from data_pipelines.sources import open_source
from data_pipelines.sources import records as records_module
from data_pipelines.transforms.geometry import Augment
from data_pipelines.transforms.prompts import PromptPolicy
from data_pipelines.transforms.row import RowMaker
from data_pipelines.vocabulary import build_vocabulary
from semsam_jax.core.errors import DataError
from semsam_jax.core.rle import encode_mask
from tests.data_pipelines import custom_data
from tests.data_pipelines.trees import make_scene, write_scenes

UNION = build_vocabulary(["paco", "part_imagenet"])
STILL = Augment(flip=0.0, min_scale=1.0, max_scale=1.0)


def paco(tmp_path, **lists):
    """An image of a mug with a handle and of a chair, with some lists of categories by name."""
    write_scenes("paco", tmp_path, "train", [make_scene("paco", 1)])
    file = tmp_path / "annotations/paco_lvis_v1_train.json"
    content = json.loads(file.read_text())
    ids = {category["name"]: category["id"] for category in content["categories"]}
    found = {a["category_id"] for a in content["annotations"]}
    for key, names in lists.items():
        content["images"][0][key] = [ids.get(name, name) for name in names]
    file.write_text(json.dumps(content))
    names = {i: name for name, i in ids.items()}
    return open_source("paco", tmp_path, "train", UNION)[0], {names[i] for i in found}


def named(pairs):
    """Pairs of indices as PACO's own category names."""
    return {UNION.entry(o).name + (f":{UNION.entry(p).name}" if p >= 0 else "") for o, p in pairs}


def test_paco_is_annotated_for_its_own_and_its_negative_classes(tmp_path):
    example, found = paco(tmp_path, neg_category_ids=["bowl", "dog", 987654])
    assert named(example.annotated) == found | {"bowl", "dog"}
    assert example.partial == ()
    assert not example.is_exclusive


def test_an_image_without_negatives_is_annotated_for_its_own_classes(tmp_path):
    example, found = paco(tmp_path)
    assert named(example.annotated) == found


def test_a_class_that_is_not_exhaustive_takes_its_parts_with_it(tmp_path):
    example, found = paco(tmp_path, not_exhaustive_category_ids=["mug"])
    mugs = {name for name in found if name.partition(":")[0] == "mug"}
    assert len(mugs) > 1
    assert named(example.partial) == mugs
    assert named(example.annotated) == found - mugs


@pytest.mark.parametrize("value", ["bowl", [None], 3])
def test_damaged_lists_are_told(tmp_path, value):
    write_scenes("paco", tmp_path, "train", [make_scene("paco", 1)])
    file = tmp_path / "annotations/paco_lvis_v1_train.json"
    content = json.loads(file.read_text())
    content["images"][0]["neg_category_ids"] = value
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match="neg_category_ids of image"):
        open_source("paco", tmp_path, "train", UNION)


def test_part_imagenet_is_annotated_for_the_kind_of_its_object(tmp_path):
    write_scenes("part_imagenet", tmp_path, "train", [make_scene("part_imagenet", 1)])
    example = open_source("part_imagenet", tmp_path, "train", UNION)[0]
    kinds = {i.object_id for i in example.instances}
    assert {o for o, _ in example.annotated} == kinds
    assert {i.part_id for i in example.instances} <= {p for _, p in example.annotated}
    others = set(range(len(UNION)))  # all kinds that the set has
    assert kinds < {i for i in others if UNION.entry(i).dataset == "part_imagenet"}
    assert example.is_exclusive


def with_lists(content):
    """The first image has a cat to which others may be missing; the second no bird."""
    content["categories"] += [{"id": 3, "name": "bird"}, {"id": 4, "name": "fish"}]
    content["images"][0]["not_exhaustive_category_ids"] = [2]
    content["images"][1]["neg_category_ids"] = [3]


def test_own_data_with_the_lists_of_lvis_is_annotated_as_they_say(tmp_path):
    custom_data.write(tmp_path / "own", with_lists)
    source = custom_data.read(tmp_path / "own")
    dog, cat, bird = (source.vocabulary.object_index("custom", n) for n in ("dog", "cat", "bird"))
    assert source.is_federated
    first, second = source[0], source[1]
    assert (first.annotated, first.partial) == (((dog, -1),), ((cat, -1),))
    assert (second.annotated, second.partial) == (((dog, -1), (cat, -1), (bird, -1)), ())
    place = ["--root", str(tmp_path / "own"), "--out", str(tmp_path / "records")]
    assert build.main(["--dataset", "custom", *place]) == 0
    records = custom_data.read(tmp_path / "records/custom")
    assert records.is_federated
    assert [records[0], records[1]] == [first, second]


def test_own_data_without_such_lists_is_annotated_for_all_classes(tmp_path):
    def empty(content):
        for image in content["images"]:
            image.update(neg_category_ids=[], not_exhaustive_category_ids=[])

    source = custom_data.read(custom_data.write(tmp_path, empty))
    assert not source.is_federated
    assert source[0].annotated is None


def boxes_without_outline(root):
    custom_data.write(root, custom_data.first(segmentation=[]))


def coordinates_in_fractions(root):
    custom_data.write(root, custom_data.first(segmentation=[[0.2, 0.2, 0.6, 0.2, 0.6, 0.7]]))


def box_of_yolo(root):
    images, labels = root / "images/train", root / "labels/train"
    for folder in (images, labels):
        folder.mkdir(parents=True)
    (root / "data.yaml").write_text("names: [dog, cat]")
    (images / "p1.jpg").write_bytes(custom_data.image())
    (labels / "p1.txt").write_text("0 0.4 0.5 0.4 0.5\n1 0 0 0.2 0 0.2 0.2\n")


def line_of_labelme(root):
    root.mkdir()
    (root / "p1.jpg").write_bytes(custom_data.image())
    shapes = [
        {"label": "dog", "points": [[24, 16], [60, 48]], "shape_type": "linestrip"},
        {"label": "cat", "points": [[2, 2], [18, 2], [18, 12]], "shape_type": "polygon"},
    ]
    (root / "p1.json").write_text(json.dumps({"shapes": shapes, "imagePath": "p1.jpg"}))


@pytest.mark.parametrize(
    "write", [boxes_without_outline, coordinates_in_fractions, box_of_yolo, line_of_labelme]
)
def test_a_class_whose_instance_cannot_be_used_is_partial(write, tmp_path):
    """The image shows the dog all the same: no query on it may learn that it is no dog."""
    write(tmp_path / "own")
    source = custom_data.read(tmp_path / "own")
    dog, cat = (source.vocabulary.object_index("custom", name) for name in ("dog", "cat"))
    example = source[0]
    assert [item.object_id for item in example.instances] == [cat]
    assert example.annotated is None
    assert example.partial == ((dog, -1),)


def test_outlines_outside_the_image_leave_their_class_complete(tmp_path):
    custom_data.write(tmp_path, custom_data.first(segmentation=[[200, 9, 240, 9, 240, 30]]))
    assert custom_data.read(tmp_path)[0].partial == ()


def test_parts_of_part_imagenet_without_an_outline_are_partial(tmp_path):
    write_scenes("part_imagenet", tmp_path, "train", [make_scene("part_imagenet", 1)])
    file = next(tmp_path.rglob("train.json"))
    content = json.loads(file.read_text())
    content["annotations"].append({**content["annotations"][0], "id": 99, "segmentation": []})
    file.write_text(json.dumps(content))
    example = open_source("part_imagenet", tmp_path, "train", UNION)[0]
    part = next(item for item in example.instances if item.part_id >= 0)
    assert example.partial == ((part.object_id, part.part_id),)


def test_old_records_that_do_not_say_it_are_refused(tmp_path):
    folder = tmp_path / "train" / records_module.VERSION
    folder.mkdir(parents=True)
    (folder / records_module.CLAIM).write_text("{}")
    manifest = {"format": 2, "dataset": "paco", "options": {}, "classes": {}}
    (folder / records_module.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="does not say which classes"):
        open_source("paco", tmp_path, "train", UNION)


# A vocabulary of dog, cat, car | head, wheel, of which the set lacks the car.
DOG, CAT, CAR, HEAD, WHEEL = range(5)
SET = np.array([True, True, False, True, True])


def make_row(instances, *, max_instances=4, verified_classes=True, **fields):
    """The row of an image with one rectangle for each (object, part)."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "PNG")
    items = []
    for number, (object_id, part_id) in enumerate(instances):
        mask = np.zeros((64, 64), bool)
        mask[8 * number : 8 * number + 8] = True
        box = (0.0, 8.0 * number, 64.0, 8.0 * number + 8)
        items.append(RawInstance(encode_mask(mask), box, object_id=object_id, part_id=part_id))
    example = RawExample("some", "one", file.getvalue(), 64, 64, tuple(items), **fields)
    maker = RowMaker(
        shape=BatchShape(64, max_instances, 3, 6, 1, len(SET)),
        policy=PromptPolicy(),
        augments={"some": STILL},
        vocab_valid={"some": SET},
        dataset_index={"some": 0},
        verified_classes=verified_classes,
    )
    return maker((example, "any"), np.random.default_rng(0))


def classes(row):
    owned = {int(i): int(row["vocab_owned"][i]) for i in np.flatnonzero(row["vocab_owned"])}
    return set(np.flatnonzero(row["vocab_valid"]).tolist()), owned


def test_a_row_counts_all_classes_of_its_dataset_where_nothing_else_is_said():
    assert classes(make_row([(DOG, -1)])) == ({DOG, CAT, HEAD, WHEEL}, {})


def test_a_row_counts_what_its_image_is_annotated_for():
    found = make_row([(DOG, -1), (DOG, HEAD)], annotated=((DOG, -1), (DOG, HEAD), (CAR, -1)))
    assert classes(found) == ({DOG, HEAD}, {})  # the set has no car


def test_partial_classes_are_positives_only():
    found = make_row([(DOG, -1)], annotated=((CAT, -1), (CAT, HEAD)), partial=((DOG, HEAD),))
    assert classes(found) == ({CAT}, {HEAD: 1})


def test_exclusive_classes_are_negatives_of_each_other():
    found = make_row([(DOG, -1)], annotated=((DOG, -1), (DOG, HEAD)), is_exclusive=True)
    assert classes(found) == ({DOG, HEAD}, {CAT: 2, WHEEL: 2})


def test_classes_of_instances_that_were_cut_are_no_negatives():
    """Two of four fit; what was cut is a dog's head, a cat, or both."""
    instances = [(DOG, -1), (DOG, HEAD), (CAT, -1), (DOG, WHEEL)]
    row = make_row(instances, max_instances=2)
    kept = [(int(o), int(p)) for o, p in zip(row["object_id"], row["part_id"], strict=True)]
    cut = {p if p >= 0 else o for o, p in instances if (o, p) not in kept}
    assert len(cut) == 2
    assert classes(row) == ({DOG, CAT, HEAD, WHEEL} - cut, dict.fromkeys(cut, 2))
    before = make_row(instances, max_instances=2, verified_classes=False)
    assert classes(before) == ({DOG, CAT, HEAD, WHEEL}, {})


def test_what_an_image_says_is_a_plain_value():
    example = RawExample("paco", "one", b"", 1, 1, (), annotated=((1, -1),))
    assert dataclasses.replace(example, partial=((2, 3),)).annotated == ((1, -1),)
