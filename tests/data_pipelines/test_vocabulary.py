import numpy as np
import pytest

from data_pipelines.schema import DATASETS
from data_pipelines.vocabulary import (
    Vocabulary,
    VocabularyEntry,
    build_vocabulary,
    class_file,
    clean_name,
)
from semsam_jax.core.errors import ConfigError, DataError

# The paper counts 201 PACO parts; the published annotation file has 200 part words.
COUNTS = {
    "sa1b": (0, 0),
    "coco": (133, 0),
    "ade20k": (150, 0),
    "objects365": (365, 0),
    "pascal_part": (20, 30),
    "paco": (75, 200),
    "part_imagenet": (11, 13),
}


@pytest.fixture(scope="module")
def union() -> Vocabulary:
    return build_vocabulary()


def test_counts_are_those_of_the_paper(union):
    for dataset, (objects, parts) in COUNTS.items():
        span = union.object_slice(dataset), union.part_slice(dataset)
        assert (span[0].stop - span[0].start, span[1].stop - span[1].start) == (objects, parts)
        assert union.valid(dataset).sum() == objects + parts
    assert len(union) == 997
    assert (union.num_objects, union.num_parts) == (754, 243)


def test_the_class_masks_do_not_overlap_and_cover_everything(union):
    total = sum(union.valid(dataset).astype(int) for dataset in DATASETS)
    np.testing.assert_array_equal(total, np.ones(len(union), int))


def test_objects_come_before_parts_and_indices_agree_with_entries(union):
    for index in range(len(union)):
        entry = union.entry(index)
        find = union.object_index if index < union.num_objects else union.part_index
        assert find(entry.dataset, entry.name) == index
    assert union.names[union.part_index("paco", "handle")] == "handle"


def test_equal_things_share_their_text_but_not_their_index(union):
    people = [
        union.object_index("coco", "person"),
        union.object_index("ade20k", "person, individual, someone, somebody, mortal, soul"),
        union.object_index("objects365", "Person"),
        union.object_index("pascal_part", "person"),
    ]
    assert len(set(people)) == 4
    assert {union.names[index] for index in people} == {"person"}
    assert union.names[union.object_index("paco", "car_(automobile)")] == "car"
    assert union.names[union.object_index("coco", "wall-brick")] == "brick wall"


def test_names_are_found_in_looser_spelling(union):
    assert union.object_index("objects365", "Monitor/TV") == union.object_index(
        "objects365", "Moniter/TV"
    )
    assert union.object_index("ade20k", "windowpane;window") == union.object_index(
        "ade20k", "windowpane, window"
    )
    with pytest.raises(DataError, match="no object class 'unicorn'"):
        union.object_index("coco", "unicorn")
    with pytest.raises(DataError, match="no part class 'person'"):
        union.part_index("coco", "person")


def test_things_and_stuff(union):
    things = {
        dataset: sum(union.entry(i).is_thing for i in range(span.start, span.stop))
        for dataset in ("coco", "ade20k")
        for span in [union.object_slice(dataset)]
    }
    assert things == {"coco": 80, "ade20k": 100}


def test_texts_are_plain_words(union):
    for text in union.names:
        assert text == text.strip().lower()
        assert text
        assert not set(text) & set("_()/,;")


def test_pairs_name_known_objects_and_parts(union):
    for dataset, count in (("pascal_part", 93), ("paco", 456), ("part_imagenet", 40)):
        pairs = class_file(dataset)["pairs"]
        assert len(pairs) == count
        for pair in pairs:
            whole, part = pair.split(":")
            union.object_index(dataset, whole)
            union.part_index(dataset, part)


def test_json_round_trip_and_fingerprint(union):
    again = Vocabulary.from_json(union.to_json())
    assert again == union
    assert hash(again) == hash(union)
    assert again.fingerprint == union.fingerprint
    assert build_vocabulary(["coco"]).fingerprint != union.fingerprint
    with pytest.raises(DataError, match="cannot read"):
        Vocabulary.from_json('{"objects": 3}')


def test_order_of_the_request_does_not_matter():
    assert build_vocabulary(["paco", "coco"]) == build_vocabulary(["coco", "paco"])


def test_custom_sets_are_appended():
    mine = build_vocabulary(["paco"], extra={"mine": (["my_cat", "Hühner"], ["ear (left)"])})
    assert mine.object_index("mine", "Hühner") == 76
    assert mine.object_names[75:] == ("my cat", "hühner")
    assert mine.part_names[-1] == "ear"
    assert mine.valid("mine").sum() == 3


def test_bad_requests_are_refused():
    with pytest.raises(ConfigError, match="unknown datasets"):
        build_vocabulary(["lvis"])
    with pytest.raises(ConfigError, match="name of a built-in"):
        build_vocabulary([], extra={"coco": (["a"], [])})
    with pytest.raises(ConfigError, match="appears twice"):
        build_vocabulary([], extra={"mine": (["a", "a"], [])})
    scattered = [VocabularyEntry(d, n, n, 0) for d, n in (("x", "a"), ("y", "b"), ("x", "c"))]
    with pytest.raises(ConfigError, match="not contiguous"):
        Vocabulary(scattered)


@pytest.mark.parametrize(
    ("native", "text"),
    [
        ("sky-other-merged", "sky"),
        ("drum_(musical_instrument)", "drum"),
        ("Cabinet/shelf", "cabinet or shelf"),
        ("road, route", "road"),
        ("(odd)", "(odd)"),
    ],
)
def test_clean_name(native, text):
    assert clean_name(native) == text
