import dataclasses
import json
import pickle

import numpy as np
import pytest

from data_pipelines.index import Index, build_index
from data_pipelines.schema import RawInstance
from semsam_jax.core.errors import DataError
from tests.data_pipelines.fake_source import FakeSource, fake_source, make_example, mask_instance


def many(dataset="coco", size=300):
    return FakeSource([make_example(dataset, 0)] * size)


def test_views_and_counts():
    index = build_index(fake_source("paco", 6))
    assert len(index) == 6
    assert index.view("any").tolist() == [0, 1, 2, 3, 4, 5]
    assert index.view("object").tolist() == [0, 1, 2, 3, 4, 5]
    assert index.view("part").tolist() == [1, 3, 5]  # odd images have handles
    assert index.num_instances.tolist() == [4] * 6
    assert index.report.instances == 24
    unlabelled = build_index(fake_source("sa1b", 3))
    assert len(unlabelled.view("object")) == len(unlabelled.view("part")) == 0
    assert build_index(fake_source("objects365", 3)).has_object.all()


def test_unusable_records_are_dropped_and_counted():
    source = many()
    good = source.examples[0]
    empty = mask_instance(np.zeros((60, 90), bool))
    source.examples[4] = dataclasses.replace(good, instances=(), ignored=good.instances)
    source.examples[5] = dataclasses.replace(good, instances=())
    source.examples[6] = dataclasses.replace(good, instances=(empty,), example_id="hollow")
    source.examples[7] = DataError("coco example 7: no such file")
    source.examples[8] = dataclasses.replace(good, image=good.image[:-20])
    wrong = mask_instance(np.ones((60, 91), bool))
    source.examples[9] = dataclasses.replace(good, instances=(wrong,), example_id="odd")
    for threads in (0, 4):
        index = build_index(source, num_threads=threads)
        assert len(index) == 294
        assert sorted(set(range(300)) - set(index.position.tolist())) == [4, 5, 6, 7, 8, 9]
        assert index.report.dropped == {
            "only crowd regions": 1,
            "no instances": 1,
            "only empty instances": 1,
            "unreadable": 1,
            "image": 1,
            "annotation": 1,
        }
        assert index.report.named["only empty instances"] == ["coco/hollow"]
        assert "differs from the image" in index.report.named["annotation"][0]


def test_empty_boxes_do_not_count():
    example = make_example("objects365", 0)
    thin = RawInstance(rle=None, box=(5.0, 5.0, 5.2, 9.0), object_id=0)
    outside = RawInstance(rle=None, box=(95.0, 5.0, 99.0, 9.0), object_id=0)
    kept = dataclasses.replace(example, instances=(thin, outside, *example.instances))
    gone = dataclasses.replace(example, instances=(thin, outside))
    index = build_index(FakeSource([kept, gone]))
    assert index.num_instances.tolist() == [4]


def test_too_many_broken_records_fail_and_name_the_worst():
    source = many(size=100)
    for position in (3, 4):
        source.examples[position] = DataError(f"coco example {position}: cut off")
    with pytest.raises(DataError, match=r"2 of 100 records are broken.*unreadable.*example 3"):
        build_index(source)
    assert len(build_index(source, max_broken_share=0.02)) == 98
    source.examples[3] = source.examples[0]
    assert len(build_index(source)) == 99  # one is always allowed, even of a small set
    with pytest.raises(DataError, match="none of 1 records is usable"):
        build_index(FakeSource([DataError("gone")]))


def test_index_in_a_folder_is_mapped_and_not_scanned_again(tmp_path):
    source = fake_source("paco", 6)
    built = build_index(source, folder=tmp_path / "paco")
    report = json.loads((tmp_path / "paco" / "report.json").read_text())
    assert report["examples"] == 6
    for position in range(1, 6):
        source.examples[position] = DataError("must not be read again")
    again = build_index(source, folder=tmp_path / "paco")
    assert isinstance(again.position, np.memmap)
    assert again.report == built.report
    copy: Index = pickle.loads(pickle.dumps(again))
    assert len(pickle.dumps(again)) < 2000
    for view in ("any", "object", "part"):
        np.testing.assert_array_equal(copy.view(view), built.view(view))


def test_a_foreign_index_folder_is_refused(tmp_path):
    build_index(fake_source("paco", 6), folder=tmp_path)
    with pytest.raises(DataError, match="6 records, the source has 5"):
        build_index(fake_source("paco", 5), folder=tmp_path)
    with pytest.raises(DataError, match="index of paco, the source is coco"):
        build_index(fake_source("coco", 6), folder=tmp_path)
