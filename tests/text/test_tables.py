"""Stored name embeddings: what is found, what is not, and how the file is made."""

import json

import numpy as np
import pytest

from data_pipelines.vocabulary import build_vocabulary
from semsam_jax.core.errors import ConfigError
from semsam_jax.text.tables import TextEmbeddings, build_table, main, normalise


@pytest.fixture(scope="module")
def table():
    return TextEmbeddings.load()


def write_lists(folder):
    rng = np.random.default_rng(0)
    lists = {
        "lvis_v1": ["trash_can", "mouse_(computer_equipment)", "dog", "cookie"],
        "coco": ["dog", "wine glass"],
        "paco": ["dog", "dog:head", "car_(automobile):wing_mirror", "pipe:colied_tube"],
        "partimagenet": ["Bird Head", "Car Side Mirror", "Car Tier"],
    }
    for name, names in lists.items():
        np.save(folder / f"{name}.npy", rng.normal(size=(len(names), 8)).astype(np.float16))
        (folder / f"{name}.names.json").write_text(json.dumps(names))
    return folder


def test_embedded_table_is_small_and_covers_the_part_datasets(table):
    assert table.dim == 1024
    assert table.rows.dtype == np.float16
    assert "MIT" in table.meta["source"]
    assert len(set(table.names)) == len(table.names)
    for dataset, least in (("paco", 275), ("pascal_part", 50), ("part_imagenet", 21)):
        _, found = table.lookup(build_vocabulary([dataset]).names)
        assert found.sum() >= least, dataset
    _, found = table.lookup(build_vocabulary(["coco"]).object_names[:80])
    assert found.all()


def test_rows_are_unit_or_zero(table):
    names = ["dog", "no such thing at all", "person:head"]
    embeddings, found = table.lookup(names)
    assert embeddings.dtype == np.float32
    np.testing.assert_array_equal(found, [True, False, True])
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=-1), [1, 0, 1], atol=1e-6)
    assert table.lookup([])[0].shape == (0, 1024)


def test_related_names_are_close(table):
    rows, _ = table.lookup(["dog", "puppy", "refrigerator"])
    assert rows[0] @ rows[1] > rows[0] @ rows[2] + 0.05


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("Trash_Can", "trash can"),
        ("mouse", "mouse_(computer_equipment)"),
        ("wineglass", "wine glass"),
        ("dogs", "dog"),
        ("cookies", "cookie"),
        ("hound, dog", "dog"),
        ("cat or dog", "dog"),
        ("cat/dog", "dog"),
        ("dog-merged", "dog"),
        ("car:wing mirror", "car_(automobile):wing_mirror"),
        ("zebra:head", "head"),
        ("bird head", "Bird Head"),
        ("bird (head)", "bird head"),
    ],
)
def test_spellings(tmp_path, name, same):
    small = build_table(write_lists(tmp_path))
    rows, found = small.lookup([name, same])
    assert found.all()
    np.testing.assert_array_equal(rows[0], rows[1])


def test_part_words_are_means_over_their_wholes(tmp_path):
    small = build_table(write_lists(tmp_path))
    assert small.meta["derived"] == ["coiled tube", "head", "side mirror", "tire", "wing mirror"]
    rows, _ = small.lookup(["head", "dog:head", "Bird Head"])
    mean = rows[1] + rows[2]
    np.testing.assert_allclose(rows[0], mean / np.linalg.norm(mean), atol=2e-3)
    first = np.load(tmp_path / "lvis_v1.npy")[2]
    np.testing.assert_array_equal(small.rows[small.names.index("dog")], first)


def test_unknown_names_have_neighbours(table):
    assert "refrigerator" in table.nearest_names("refrigerater")
    assert table.nearest_names("qqqqqqqqqqqq") == []
    _, found = table.lookup(["refrigerater"])
    assert not found[0]


def test_command_line_makes_the_same_table(tmp_path, capsys):
    folder = write_lists(tmp_path)
    out = tmp_path / "t.npz"
    assert main(["--from", str(folder), "--out", str(out)]) == 0
    assert "derived" in capsys.readouterr().out
    read, built = TextEmbeddings.load(out), build_table(folder)
    assert read.names == built.names
    assert read.meta == built.meta
    np.testing.assert_array_equal(read.rows, built.rows)
    assert main(["--from", str(tmp_path / "none"), "--out", str(out)]) == 2
    assert "holds none of" in capsys.readouterr().err


def test_wrong_files_are_described(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read as a table"):
        TextEmbeddings.load(tmp_path / "none.npz")
    (tmp_path / "bad.npz").write_bytes(b"PK\3\4nothing")
    with pytest.raises(ConfigError, match="cannot be read as a table"):
        TextEmbeddings.load(tmp_path / "bad.npz")
    np.savez(tmp_path / "odd.npz", names=np.array(["a"]), rows=np.zeros((2, 3)), meta="{}")
    with pytest.raises(ConfigError, match="one row per name"):
        TextEmbeddings.load(tmp_path / "odd.npz")
    write_lists(tmp_path)
    (tmp_path / "coco.names.json").write_text('["dog"]')
    with pytest.raises(ConfigError, match="list coco has 1 names"):
        build_table(tmp_path)


def test_normalise():
    assert normalise("Mouse_(Computer  Equipment)") == "mouse (computer equipment)"
    assert normalise("wall-other-merged") == "wall"
