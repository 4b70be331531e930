"""Records hold what the native readers give, and a build loses nothing and hides nothing."""

import io
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from absl import logging as absl_logging
from tqdm import tqdm

from data_pipelines import build, sample
from data_pipelines.builders import shards, tfds_builder
from data_pipelines.builders.tfds_builder import RecordsBuilder
from data_pipelines.check import check
from data_pipelines.index import build_index, open_index
from data_pipelines.schema import DATASETS
from data_pipelines.sources import RecordReader, open_native, open_source
from data_pipelines.sources import records as records_module
from data_pipelines.sources.single_dataset import open_single_dataset, reader_options
from data_pipelines.vocabulary import build_vocabulary
from semsam_jax.core.errors import ConfigError, DataError
from tests.data_pipelines.trees import (
    make_scene,
    truncate,
    write_ade20k_full,
    write_scenes,
    write_tree,
    write_ugly_tree,
)

OWN = (["cat", "snow ☃", "class 77"], ["ear"])
UNION = build_vocabulary(extra={"coco_folder": OWN})
OWN_OPTIONS = {"annotations": "annotations/train.json"}


def make(dataset, root, out, split="train", **kwargs) -> RecordsBuilder:
    options = OWN_OPTIONS if dataset == "coco_folder" else {}
    return RecordsBuilder(dataset, root, split, out, options=options, num_threads=1, **kwargs)


def built(dataset, root, out, **kwargs) -> RecordReader:
    make(dataset, root, out, **kwargs).download_and_prepare()
    return open_source(dataset, out / dataset, "train", UNION)


@pytest.fixture
def coco(tmp_path):
    """Twelve images in four shards of three."""
    root = tmp_path / "data"
    write_scenes("coco", root, "train", [make_scene("coco", n) for n in range(1, 13)])
    return root


@pytest.mark.nightly  # all seven data sets; the ugly files of each are in each check
def test_records_equal_the_native_readers_on_the_sample(tmp_path):
    for dataset, root in sample.roots().items():
        native = open_native(dataset, root, "train", UNION)
        index = build_index(native)
        records = built(dataset, root, tmp_path, shard_records=5)
        assert isinstance(records, RecordReader)
        assert len(records) == len(index)
        assert records.has_masks == native.has_masks
        for number, position in enumerate(index.position.tolist()):
            assert records[number] == native[position]
        own = open_index(records, dataset)
        for view in ("any", "object", "part"):
            wanted = np.searchsorted(index.position, index.view(view))
            np.testing.assert_array_equal(own.view(view), wanted)
        np.testing.assert_array_equal(own.num_instances, index.num_instances)
        assert own.report == index.report


@pytest.mark.parametrize("dataset", [*DATASETS, "coco_folder"])
def test_what_is_ugly_is_kept_or_counted(dataset, tmp_path):
    tree = write_ugly_tree(dataset, tmp_path / "data")
    native = open_native(dataset, tmp_path / "data", "train", UNION)
    records = built(dataset, tmp_path / "data", tmp_path / "out", max_broken_share=0.6)
    report = json.loads((records.index_folder / "report.json").read_text())
    assert report["dropped"] == {"unreadable": len(tree.broken), "image": len(tree.undecodable)}
    for name in tree.broken:
        assert any(repr(name) in message for message in report["named"]["unreadable"])
    wanted = sorted(set(tree.readable) - tree.undecodable)
    assert sorted(records.example_ids) == wanted
    for example in records:
        assert example == native[list(native.example_ids).index(example.example_id)]


def test_it_is_a_tfds_data_set(coco, tmp_path):
    records = built("coco", coco, tmp_path, shard_records=5)
    builder = tfds.builder_from_directory(str(tmp_path / "coco/train/1.0.0"))
    assert builder.info.splits["train"].shard_lengths == [4, 4, 4]
    rows = builder.as_data_source("train")
    assert len(rows) == 12
    for row, example in zip(rows, records, strict=True):
        assert row["example_id"].decode() == example.example_id
        assert row["image"] == example.image
        counts = [instance.rle["counts"] for instance in example.instances]
        assert list(row["instances"]["rle"]) == counts
        first = UNION.object_slice("coco").start
        assert list(row["instances"]["object_id"]) == [
            instance.object_id - first for instance in example.instances
        ]


def test_records_are_taken_where_training_looks(coco, tmp_path):
    built("coco", coco, tmp_path / "root")
    alone = open_single_dataset("coco", tmp_path / "root/coco", "train", {})
    assert isinstance(alone, RecordReader)
    assert check(alone).num_examples == 12
    with pytest.raises(ConfigError, match=r"built with options .*'panoptic'.*'instances'"):
        open_source("coco", tmp_path / "root/coco", "train", UNION, annotations="instances")
    with pytest.raises(DataError, match="no records in gs://bucket/coco, and native layouts"):
        open_native("coco", "gs://bucket/coco", "train", UNION)


def test_records_with_parts_are_refused_by_recipes_without(tmp_path):
    write_ade20k_full(tmp_path / "ade", "train", [make_scene("ade20k", 1)], 2021)
    folder = tmp_path / "records"
    builder = RecordsBuilder(
        "ade20k", tmp_path / "ade", "train", folder, options={"parts": True}, num_threads=1
    )
    builder.download_and_prepare()
    off, on = (reader_options(pascal_part_tree=False, ade20k_parts=on) for on in (False, True))
    open_source("ade20k", folder / "ade20k", "train", UNION, **on["ade20k"])
    with pytest.raises(ConfigError, match=r"built with options .* got {'parts': False}"):
        open_source("ade20k", folder / "ade20k", "train", UNION, **off["ade20k"])


def test_custom_data_brings_its_classes(tmp_path):
    write_tree("coco_folder", tmp_path / "data")
    make("coco_folder", tmp_path / "data", tmp_path).download_and_prepare()
    source = open_single_dataset("coco_folder", tmp_path / "coco_folder", "train", {})
    assert source.vocabulary.object_names == ("cat", "snow ☃", "class 77")
    small = build_vocabulary([], extra={"coco_folder": (["cat"], ["ear"])})
    with pytest.raises(DataError, match=r"built with 3 objects, the vocabulary has 1.*snow"):
        open_source("coco_folder", tmp_path / "coco_folder", "train", small)


def test_an_interrupted_build_goes_on_and_writes_nothing_twice(coco, tmp_path, monkeypatch):
    builder = make("coco", coco, tmp_path, shard_records=3)
    write = shards.write_shard

    def stops_at_three(plan, shard, **kwargs):
        if shard == 2:
            raise KeyboardInterrupt
        return write(plan, shard, **kwargs)

    monkeypatch.setattr(shards, "write_shard", stops_at_three)
    with pytest.raises(KeyboardInterrupt):
        builder.download_and_prepare()
    with pytest.raises(DataError, match="is not finished; run the same"):
        open_source("coco", tmp_path / "coco", "train", UNION)
    before = [builder.plan.file(number).stat().mtime for number in (0, 1)]
    written = []
    monkeypatch.setattr(
        shards, "write_shard", lambda plan, shard, **k: written.append(shard) or write(plan, shard)
    )
    make("coco", coco, tmp_path, shard_records=3).download_and_prepare()
    assert written == [2, 3]
    assert before == [builder.plan.file(number).stat().mtime for number in (0, 1)]
    assert len(open_source("coco", tmp_path / "coco", "train", UNION)) == 12
    make("coco", coco, tmp_path, shard_records=3).download_and_prepare()
    assert written == [2, 3]


def test_a_killed_process_leaves_whole_shards_only(coco, tmp_path):
    script = (
        "import os, sys\n"
        "from data_pipelines.builders import shards\n"
        "look = shards.read_entry\n"
        "def stop(source, position, seen=[]):\n"
        "    seen.append(1)\n"
        "    return os._exit(9) if len(seen) == 8 else look(source, position)\n"
        "shards.read_entry = stop\n"
        "from data_pipelines.build import main\n"
        "main(sys.argv[1:])\n"
    )
    arguments = ["--dataset", "coco", "--root", str(coco), "--out", str(tmp_path)]
    arguments += ["--shard-records", "3", "--threads", "1"]
    done = subprocess.run([sys.executable, "-c", script, *arguments], timeout=200, check=False)
    assert done.returncode == 9
    folder = tmp_path / "coco/train/1.0.0"
    assert len(list(folder.glob("*.array_record-*"))) == 2
    assert build.main(arguments) == 0
    records = open_source("coco", tmp_path / "coco", "train", UNION)
    assert list(records) == list(open_native("coco", coco, "train", UNION))


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_build_that_was_killed_while_it_was_described_ends_as_any_other(
    coco, tmp_path, monkeypatch
):
    make("coco", coco, tmp_path / "whole", shard_records=3).download_and_prepare()
    whole = contents(tmp_path / "whole")
    write = tfds_builder.write_json

    def killed(path, content):
        if path.name == records_module.MANIFEST:
            raise KeyboardInterrupt
        write(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(tfds_builder, "write_json", killed)
        for _ in range(2):  # the second one reads what the first has described
            with pytest.raises(KeyboardInterrupt):
                make("coco", coco, tmp_path / "cut", shard_records=3).download_and_prepare()
    make("coco", coco, tmp_path / "cut", shard_records=3).download_and_prepare()
    assert contents(tmp_path / "cut") == whole
    make("coco", coco, tmp_path / "cut", shard_records=3).download_and_prepare()
    assert contents(tmp_path / "cut") == whole
    info = tmp_path / "cut/coco/train/1.0.0/dataset_info.json"
    info.write_bytes(info.read_bytes()[:40])
    with pytest.raises(DataError, match=r"dataset_info\.json: damaged"):
        make("coco", coco, tmp_path / "cut", shard_records=3)


def test_a_file_cut_short_is_told_when_opened_and_mended_by_the_build(coco, tmp_path):
    builder = make("coco", coco, tmp_path, shard_records=3)
    builder.download_and_prepare()
    truncate(tmp_path / "coco/train/1.0.0/coco-train.array_record-00001-of-00004", 0.9)
    (tmp_path / "coco/train/1.0.0/coco-train.array_record-00003-of-00004").unlink()
    with pytest.raises(
        DataError, match=r"2 of 4 record files.*00001-of-00004 \(\d+ bytes, expected"
    ):
        open_source("coco", tmp_path / "coco", "train", UNION)
    builder.download_and_prepare()
    records = open_source("coco", tmp_path / "coco", "train", UNION)
    assert list(records) == list(open_native("coco", coco, "train", UNION))


def test_damage_of_the_same_length_is_found_by_verify(coco, tmp_path):
    builder = make("coco", coco, tmp_path, shard_records=3)
    builder.download_and_prepare()
    file = tmp_path / "coco/train/1.0.0/coco-train.array_record-00001-of-00004"
    good = file.read_bytes()
    file.write_bytes(good[:100] + bytes(len(good) - 100))
    records = open_source("coco", tmp_path / "coco", "train", UNION)
    with pytest.raises(DataError, match=r"coco record 4 .*run semsam data build with --verify"):
        records[4]
    assert records[0].instances
    builder.download_and_prepare(verify=True)
    assert file.read_bytes() == good
    assert open_source("coco", tmp_path / "coco", "train", UNION)[4].instances


def test_a_file_that_is_no_array_record_is_refused(tmp_path):
    (tmp_path / "short").write_bytes(b"x" * 100)
    with pytest.raises(DataError, match="not a whole ArrayRecord file"):
        shards.count_records(tmp_path / "short")


def test_too_many_broken_records_stop_the_build_and_a_repair_finishes_it(coco, tmp_path):
    names = [coco / f"train2017/{number:012d}.jpg" for number in (2, 5, 8)]
    kept = [name.read_bytes() for name in names]
    for name in names:
        name.write_bytes(b"")
    builder = make("coco", coco, tmp_path, shard_records=3)
    with pytest.raises(DataError, match=r"2 of 12 records are broken.*example '2'.*example '5'"):
        builder.download_and_prepare()  # stops in the second shard already
    assert not builder.plan.file(2).exists()
    generous = make("coco", coco, tmp_path, shard_records=3, max_broken_share=0.5)
    report = generous.download_and_prepare()
    assert report.dropped == {"unreadable": 3}
    assert len(report.named["unreadable"]) == 3
    for name, data in zip(names, kept, strict=True):
        name.write_bytes(data)
    report = builder.download_and_prepare(retry_broken=True)
    assert (report.dropped, report.examples) == ({}, 12)


def test_another_build_in_the_same_place_is_refused(coco, tmp_path, monkeypatch):
    make("coco", coco, tmp_path, shard_records=3).download_and_prepare()
    with monkeypatch.context() as newer:
        newer.setattr(records_module, "FORMAT", 99)
        with pytest.raises(DataError, match=r"expected coco in format 99.*build the records again"):
            open_source("coco", tmp_path / "coco", "train", UNION)
    with pytest.raises(DataError, match=r"holds another build: shards is 4 there, 2 here"):
        make("coco", coco, tmp_path, shard_records=6).download_and_prepare()
    with pytest.raises(DataError, match="inside the data's own folder"):
        make("coco", coco, coco.parent / "data")


def test_readers_travel_without_their_files_and_keep_few_open(coco, tmp_path, monkeypatch):
    records = built("coco", coco, tmp_path, shard_records=2)
    monkeypatch.setattr(records_module, "MAX_READERS", 2)
    wanted = list(records)
    assert len(records._readers._open) == 2
    again = pickle.loads(pickle.dumps(records))
    assert not again._readers._open
    assert list(again) == wanted
    assert again.fingerprint == records.fingerprint
    with pytest.raises(IndexError):
        records[12]


def test_command_line(coco, tmp_path, capsys):
    common = ["--dataset", "coco", "--out", str(tmp_path / "out")]
    verbosity = absl_logging.get_verbosity()
    assert build.main([*common, "--root", str(coco)]) == 0
    assert absl_logging.get_verbosity() == verbosity
    assert "12 examples of 12 records" in capsys.readouterr().out
    assert build.main([*common, "--root", str(tmp_path / "nowhere")]) == 2
    assert "is not a folder" in capsys.readouterr().err
    assert build.main([*common, "--root", str(coco), "--beam-options", "x=1"]) == 2
    assert "without a runner" in capsys.readouterr().err


def test_the_bar_follows_shards_that_others_write(coco, tmp_path):
    builder = make("coco", coco, tmp_path, shard_records=5)
    builder._claim_folder()
    bar = tqdm(total=12, file=io.StringIO())
    with builder._watched(range(3), bar):
        for number in range(3):
            shards.write_shard(builder.plan, number)
    assert bar.n == 12


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_beam_workers_build_the_same_files(coco, tmp_path):
    options = "direct_num_workers=2,direct_running_mode=multi_processing"
    command = [sys.executable, "-m", "data_pipelines.build", "--dataset", "coco"]
    command += ["--root", str(coco), "--shard-records", "3"]
    here = ["--out", str(tmp_path / "here")]
    beam = ["--out", str(tmp_path / "beam"), "--runner=DirectRunner", f"--beam-options={options}"]
    for out in (here, beam):
        done = subprocess.run([*command, *out], capture_output=True, text=True, timeout=800)
        assert done.returncode == 0, done.stderr
        assert "12 examples of 12 records" in done.stdout
    for number in range(4):
        name = f"coco/train/1.0.0/coco-train.array_record-{number:05d}-of-00004"
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "beam" / name).read_bytes()
    one, two = (
        open_source("coco", tmp_path / out / "coco", "train", UNION) for out in ("here", "beam")
    )
    assert list(one) == list(two)


def test_a_full_disk_is_one_error(coco, tmp_path, monkeypatch):
    class Writer:
        def __init__(self, file, options):
            open(file, "w").close()

        def write(self, record):
            raise RuntimeError("write() failed: No space left on device; at byte 4096; closed")

    monkeypatch.setattr(shards.array_record_module, "ArrayRecordWriter", Writer)
    with pytest.raises(DataError, match=r"cannot be written \(write\(\) failed: No space left on"):
        make("coco", coco, tmp_path).download_and_prepare()
    assert not list(tmp_path.rglob("shard-*"))


def test_what_killed_builds_left_is_removed_and_damaged_descriptions_are_named(coco, tmp_path):
    folder = tmp_path / "coco" / "train" / "1.0.0"
    scratch = folder / "shard-00000-abcdefgh"
    scratch.mkdir(parents=True)
    (scratch / "records").write_bytes(b"half")
    built("coco", coco, tmp_path)
    assert not list(folder.glob("shard-*"))
    opened = {
        records_module.CLAIM: make("coco", coco, tmp_path).download_and_prepare,
        records_module.MANIFEST: lambda: open_source("coco", tmp_path / "coco", "train", UNION),
    }
    for name, use in opened.items():
        whole = (folder / name).read_text()
        for text in (whole[:20], "", "[]", "null", "{}"):
            (folder / name).write_text(text)
            with pytest.raises(DataError, match=name):
                use()
        (folder / name).write_text(whole)
