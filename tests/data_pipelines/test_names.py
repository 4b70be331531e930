"""Names that are spelled alike count as one; a mirrored left hand is a right hand."""

import dataclasses

import numpy as np
import pytest

from data_pipelines.check import check
from data_pipelines.inspect import sample_settings
from data_pipelines.names import first_spellings, name_notes, row_labels
from data_pipelines.pipeline import make_iterator
from data_pipelines.recipe import pipeline_config
from data_pipelines.sources.single_dataset import open_single_dataset
from data_pipelines.vocabulary import build_vocabulary
from tests.data_pipelines import custom_data


def vocabulary_of(*objects, parts=()):
    return build_vocabulary([], extra={"custom": (objects, parts)})


def test_case_spaces_and_hyphens_make_no_other_name():
    names = ("Car", "car", "traffic light", "traffic-light", "cars", "car")
    groups = ("a", "a", "a", "a", "a", "b")
    assert first_spellings(names, groups).tolist() == [0, 0, 2, 2, 4, 5]
    vocabulary = vocabulary_of("Car", "car", "dog", parts=["car"])
    assert row_labels(vocabulary).tolist() == [[0, 0, 2, 3]] * 2
    (note,) = name_notes(vocabulary, ())
    assert note.startswith("custom: the classes 'Car' and 'car' have the same name ")
    assert note.endswith("merge or rename them in the data.")


def test_classes_of_the_other_side():
    objects = ["left hand", "hand", "rightHand", "left or right", "bright copyright"]
    vocabulary = vocabulary_of(*objects, "Turn LEFT", parts=["ear (left)", "ear (right)", "hand"])
    as_is, mirrored = row_labels(vocabulary).tolist()
    assert as_is == list(range(9))
    assert mirrored == [2, 1, 0, 3, 4, 5, 7, 6, 8]
    (note,) = name_notes(vocabulary, ["custom"])
    assert note.startswith("custom: flips mix the sides of 'Turn LEFT', because ")
    assert note.endswith("turn flips off with --config.data.flip=0.")
    assert not name_notes(vocabulary, ())
    nothing = build_vocabulary([])
    assert row_labels(nothing).shape == (2, 0)
    assert not name_notes(nothing, ["sa1b"])


def test_l_and_r_are_sides_if_both_exist_and_no_other_letter():
    objects = ["eye_L", "eye_R", "l", "r", "letter k", "letter l", "letter r", "R kidney"]
    vocabulary = vocabulary_of(*objects, parts=["eye_l"])
    assert row_labels(vocabulary)[1].tolist() == [1, 0, 2, 3, 4, 5, 6, 7, 8]
    assert not name_notes(vocabulary, ["custom"])


@pytest.mark.parametrize("pascal_parts", ["merged", "full"])
def test_the_seven_datasets_have_both_sides_and_no_name_twice(pascal_parts):
    vocabulary = build_vocabulary(pascal_parts=pascal_parts)
    assert not name_notes(vocabulary, vocabulary.datasets)
    as_is, mirrored = row_labels(vocabulary)
    every = np.arange(len(vocabulary))
    np.testing.assert_array_equal(as_is, every)
    np.testing.assert_array_equal(mirrored[mirrored], every)
    moved = {vocabulary.entry(i).dataset for i in np.flatnonzero(mirrored != every).tolist()}
    assert moved == ({"paco"} if pascal_parts == "merged" else {"paco", "pascal_part"})


def rows_of(folder, count, **settings):
    """(classes of the instances, left to right) of some interactive rows; the notes."""
    source = open_single_dataset("custom", folder, "train", {})
    shares = {"custom": 1.0}
    data = sample_settings() | {"datasets": shares, "granularity": {"any": 1.0}}
    data |= {"image_size": 64, "scale_jitter": (1.0, 1.0), "interactive_batch": count}
    data |= {"generic_batch": 0} | settings
    config = pipeline_config(data, len(source.vocabulary))
    config = dataclasses.replace(config, num_threads=0, prefetch=0)
    iterator = make_iterator(config, {"custom": source}, source.vocabulary)
    rows = next(iterator)["interactive"]
    found = []
    for row in range(count):
        valid = rows["instance_valid"][row]
        order = np.argsort(rows["boxes"][row][valid][:, 0])
        assert rows["vocab_valid"][row][rows["object_id"][row][valid]].all()
        found.append([source.vocabulary.names[i] for i in rows["object_id"][row][valid][order]])
    return found, iterator.notes


def square(number, left, category):
    outline = [left, 5, left + 8, 5, left + 8, 15, left, 15]
    return {"id": number, "image_id": 1, "category_id": category, "iscrowd": 0,
            "bbox": [left, 5, 8, 10], "segmentation": [outline]}  # fmt: skip


def write(folder, *names):
    """One image with two squares, the first to the left."""

    def change(content):
        content["images"] = content["images"][:1]
        content["categories"] = [{"id": 1 + n, "name": name} for n, name in enumerate(names)]
        content["annotations"] = [square(1, 2, 1), square(2, 15, 2)]

    return custom_data.write(folder, change)


def test_mirrored_rows_swap_left_and_right(tmp_path):
    write(tmp_path, "left hand", "right hand")
    # The mirror image moves the square of the left hand to the right, and makes it a right hand.
    found, notes = rows_of(tmp_path, 16)
    assert found == [["left hand", "right hand"]] * 16
    assert not [note for note in notes if "flips" in note]
    write(tmp_path, "left hand", "hand")
    found, notes = rows_of(tmp_path, 16)
    assert sorted(map(tuple, found))[::15] == [("hand", "left hand"), ("left hand", "hand")]
    assert any("flips mix the sides of 'left hand'" in note for note in notes)
    found, notes = rows_of(tmp_path, 4, flip=0.0)
    assert found == [["left hand", "hand"]] * 4
    assert not [note for note in notes if "flips" in note]


def test_classes_that_are_spelled_alike_are_one(tmp_path):
    write(tmp_path, "Car", "car")
    found, notes = rows_of(tmp_path, 4)
    assert found == [["car", "car"]] * 4
    (note,) = [note for note in notes if "same name" in note]
    assert note in check(open_single_dataset("custom", tmp_path, "train", {})).unused
