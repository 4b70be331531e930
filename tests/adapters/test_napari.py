"""napari's reader: layers of labels from the files that this package writes."""

import json
from importlib import resources

import numpy as np
import pytest
import yaml

from semsam_jax.adapters.napari_reader import get_reader
from semsam_jax.core import rle
from semsam_jax.core.errors import DataError
from tests.packaging.conftest import ROOT


def record(mask, level, name=None):
    found = {"segmentation": rle.encode(mask), "level": level, "score": 0.5, "predicted_iou": 0.5}
    return found | ({"object": {"name": name, "score": 0.9, "is_sure": True}} if name else {})


def masks():
    whole, part = np.zeros((2, 20, 30), bool)
    whole[2:15, 3:20] = True
    part[4:8, 5:9] = True
    return whole, part


def test_a_layer_for_each_level(tmp_path):
    whole, part = masks()
    path = tmp_path / "cat" / "masks.json"
    path.parent.mkdir()
    path.write_text(json.dumps([record(whole, 1, "cat"), record(part, 3), record(part, 1)]))
    layers = get_reader(str(path))(str(path))
    assert [(about["name"], kind) for _, about, kind in layers] == [
        ("cat level 1", "labels"),
        ("cat level 3", "labels"),
    ]
    labels, about, _ = layers[0]
    assert (labels == np.where(part, 2, np.where(whole, 1, 0))).all()
    assert about["features"]["index"] == [1, 2]
    assert about["features"]["name"] == ["cat", ""]


def test_files_of_auto_and_lists_of_files(tmp_path):
    whole, part = masks()
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, mask in zip(paths, (whole, part), strict=True):
        path.write_text(json.dumps({"image": {}, "annotations": [record(mask, 2)]}))
    layers = get_reader([str(p) for p in paths])([str(p) for p in paths])
    assert [about["name"] for _, about, _ in layers] == ["a level 2", "b level 2"]


@pytest.mark.parametrize("content", ["{", "[]", "{}", "[1]", '[{"segmentation": 1}]', "\0"])
def test_other_files_are_left_to_others(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_text(content)
    assert get_reader(str(path)) is None
    assert get_reader(str(tmp_path / "absent.json")) is None


def test_a_damaged_mask_is_an_error(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('[{"segmentation": {"size": [2, 2], "counts": "zz"}}]')
    with pytest.raises(DataError):
        get_reader(str(path))(str(path))


def test_the_manifest_names_what_is_there():
    manifest = yaml.safe_load(resources.files("semsam_jax.adapters").joinpath("napari.yaml").open())
    (command,) = manifest["contributions"]["commands"]
    assert command["python_name"] == f"{get_reader.__module__}:{get_reader.__name__}"
    assert manifest["contributions"]["readers"][0]["command"] == command["id"]
    entry = 'napari-manifest = "semsam_jax.adapters:napari.yaml"'
    text = (ROOT / "pyproject.toml").read_text()
    assert entry.partition(" = ")[2] in text
    assert f'name = "{manifest["name"]}"' in text
