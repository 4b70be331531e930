"""SA-1B's official archives are read where they are."""

import pickle
import tarfile

import numpy as np
import pytest

from data_pipelines.check import check
from data_pipelines.index.strings import StringTable
from data_pipelines.sources import SA1B, open_source, sa1b_listing
from data_pipelines.vocabulary import build_vocabulary
from semsam_jax.core.errors import DataError
from tests.data_pipelines.trees import make_scene, truncate, write_sa1b_archives, write_scenes

NOTHING = build_vocabulary([])
SCENES = [make_scene("sa1b", number) for number in (2, 9, 10, 11, 30)]


def open_sa1b(root, **kwargs) -> SA1B:
    return open_source("sa1b", root, "train", NOTHING, **kwargs)


def test_archives_and_unpacked_files_are_the_same(tmp_path):
    write_sa1b_archives(tmp_path / "tars", SCENES, 2)
    write_scenes("sa1b", tmp_path / "loose", "train", SCENES)
    tars, loose = open_sa1b(tmp_path / "tars"), open_sa1b(tmp_path / "loose")
    assert tars.example_ids == loose.example_ids == ("sa_2", "sa_9", "sa_10", "sa_11", "sa_30")
    for position in range(5):
        assert tars[position] == loose[position]


def test_other_members_and_archives_in_a_split_folder(tmp_path):
    write_sa1b_archives(tmp_path / "val", SCENES[:2], 2)
    with tarfile.open(tmp_path / "val/sa_000000.tar", "a") as tar:
        for name in ("LICENSE", "sa_77.json", "deep/sa_78.jpg"):
            tar.addfile(tarfile.TarInfo(name))
    assert open_source("sa1b", tmp_path, "val", NOTHING).example_ids == ("sa_2", "sa_9")


def test_images_of_val_are_not_training_images(tmp_path):
    """Without a folder train all of the root is train; loose images are found at any depth."""
    write_scenes("sa1b", tmp_path, "sa_000000", SCENES[:2])
    assert len(open_sa1b(tmp_path)) == 2
    write_scenes("sa1b", tmp_path, "val", SCENES[2:])
    with pytest.raises(DataError, match="expected a folder train/ next to val/"):
        open_sa1b(tmp_path)
    assert len(open_source("sa1b", tmp_path, "val", NOTHING)) == 3


@pytest.mark.parametrize("kind", ["archives", "images"])
def test_folders_next_to_archives_are_not_dropped(kind, tmp_path):
    write_sa1b_archives(tmp_path, SCENES[:2], 2)
    (tmp_path / "lists").mkdir()
    write_scenes("sa1b", tmp_path, "val", SCENES[2:])
    assert len(open_sa1b(tmp_path)) == 2
    if kind == "images":
        write_scenes("sa1b", tmp_path, "more", SCENES[2:])
    else:
        write_sa1b_archives(tmp_path / "more", SCENES[2:], 3)
    with pytest.raises(DataError, match=r"next to a folder of more \(more/sa_.*would not be read"):
        open_sa1b(tmp_path)


@pytest.mark.parametrize("place", ["inside the last JSON", "inside its header"])
def test_an_archive_that_is_cut_off_is_named_and_the_rest_is_read(tmp_path, place):
    write_sa1b_archives(tmp_path, SCENES, 3)
    archive = tmp_path / "sa_000000.tar"
    with tarfile.open(archive) as tar:
        last = tar.getmembers()[-1]
    end = last.offset_data + 50 if "JSON" in place else last.offset + 100
    archive.write_bytes(archive.read_bytes()[:end])
    source = open_sa1b(tmp_path)
    report = check(source)
    assert report.num_examples == 4  # sa_2 was written last
    assert all("sa_000000.tar" in message for message in report.broken)
    assert all("cut short" in message for message in report.broken)
    with pytest.raises(DataError, match=r"sa_000000.tar.*: the archive is cut short"):
        source[source.example_ids.index("sa_000000.tar")]


def test_an_archive_without_its_end_is_told_even_if_no_member_is_missing(tmp_path):
    write_sa1b_archives(tmp_path, SCENES[:2], 2)
    archive = tmp_path / "sa_000000.tar"
    with tarfile.open(archive) as tar:
        last = max(m.offset_data + -(-m.size // 512) * 512 for m in tar)
    archive.write_bytes(archive.read_bytes()[:last])
    report = check(open_sa1b(tmp_path))
    assert report.num_examples == 2
    assert len(report.broken) == 1


def test_an_archive_that_shrinks_after_the_listing(tmp_path):
    write_sa1b_archives(tmp_path, SCENES[:2], 2)
    source = open_sa1b(tmp_path)
    truncate(tmp_path / "sa_000000.tar", 0.05)
    with pytest.raises(DataError, match="cut short"):
        source[0]


def test_archives_beside_loose_images_are_refused(tmp_path):
    write_sa1b_archives(tmp_path, SCENES, 5)
    (tmp_path / "sa_2.jpg").write_bytes(SCENES[0].image)
    with pytest.raises(DataError, match=r"sa_000000\.tar .* next to loose images \(sa_2\.jpg"):
        open_sa1b(tmp_path)


@pytest.mark.parametrize("kind", ["tars", "loose"])
def test_a_kept_listing_is_mapped_and_renewed_when_the_folder_changes(tmp_path, kind, monkeypatch):
    root, cache = tmp_path / "data", tmp_path / "cache"

    def write(scenes):
        if kind == "tars":
            write_sa1b_archives(root, scenes, 2)
        else:
            write_scenes("sa1b", root, "train", scenes)

    write(SCENES[:3])
    assert len(open_sa1b(root, cache=cache)) == 3
    scan = sa1b_listing._scan
    monkeypatch.setattr(sa1b_listing, "_scan", lambda folder: pytest.fail("scanned again"))
    again = open_sa1b(root, cache=cache)
    assert again.example_ids == ("sa_2", "sa_9", "sa_10")
    assert len(pickle.dumps(again)) < 2500
    assert pickle.loads(pickle.dumps(again))[2] == again[2]
    monkeypatch.setattr(sa1b_listing, "_scan", scan)
    write(SCENES)
    assert len(open_sa1b(root, cache=cache)) == 5
    assert not list(cache.glob("*/*.part"))


def test_string_tables_are_sequences(tmp_path):
    texts = ("", "sa_1", "Straße ☃", "bad \udce9 byte")
    table = StringTable.of(texts)
    assert table == texts
    assert tuple(table) == texts
    assert table[1:] == texts[1:]
    assert table[-1] == texts[-1]
    assert table != texts[:3]
    with pytest.raises(IndexError):
        table[4]
    for name, array in table.arrays("t").items():
        np.save(tmp_path / name, array)
    mapped = StringTable.load(tmp_path, "t")
    assert mapped == texts
    assert pickle.loads(pickle.dumps(mapped)) == texts == pickle.loads(pickle.dumps(table))
    assert len(StringTable.of([])) == 0
