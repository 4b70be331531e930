"""A file that passes by in pieces reads like one that is parsed at once."""

import json

import pytest

from data_pipelines.findings import UNKNOWN_IMAGE
from data_pipelines.sources import json_stream
from data_pipelines.sources.coco_json import load_table
from data_pipelines.sources.json_stream import read_elements
from semsam_jax.core.errors import DataError

CONTENT = {
    "info": {"year": 2017, "words": ["{", "]", '"', "\\", "☃"]},
    "count": 12345,
    "images": [{"id": 7, "file_name": "snow ☃.jpg"}, {"id": 8, "size": [1.5e-3, -2, None]}],
    "numbers": [1, 22, 333, [4, [5]]],
    "annotations": [{"id": n, "image_id": 7, "nested": {"a": [n] * n}} for n in range(5)],
    "nothing": [],
    "flag": True,
}
KEYS = ("images", "annotations", "nothing")


def read(path, keys=KEYS):
    found = {key: [] for key in keys}
    read_elements(path, "coco", {key: found[key].append for key in keys})
    return found


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 50, 10**6])
@pytest.mark.parametrize("indent", [None, 2])
def test_any_window_reads_the_same(chunk, indent, tmp_path, monkeypatch):
    monkeypatch.setattr(json_stream, "_CHUNK", chunk)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(CONTENT, indent=indent, ensure_ascii=chunk % 2 == 0))
    assert read(path) == {key: CONTENT[key] for key in KEYS}
    path.write_text(json.dumps({"images": []}), encoding="utf-8-sig")
    assert read(path, ["images"]) == {"images": []}


def test_a_file_cut_anywhere_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(json_stream, "_CHUNK", 16)
    text = json.dumps(CONTENT).encode()
    path = tmp_path / "a.json"
    for length in range(len(text)):
        path.write_bytes(text[:length])
        with pytest.raises(DataError, match=r"is not complete JSON|holds a"):
            read(path)
    path.write_bytes(text + b" \n")
    read(path)
    path.write_bytes(text + b"}")
    with pytest.raises(DataError, match="text after the end"):
        read(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "holds a list; expected an object with keys"),
        ("7", "holds a int; expected an object"),
        ('{"images": [3]}', "images holds a int .*expected objects"),
        ('{"images": [], "annotations": []}', r"has no \['nothing'\]; found keys"),
        ('{"images": {"1": 2}}', "images is a dict; expected an array"),
        ('{"images": [], "images": []}', r"has \['images'\] twice"),
        ('{"images": ' + 3000 * "[" + 3000 * "]" + "}", "nested too deeply"),
        ('{"images": [{"id": ' + 5000 * "9" + "}]}", "not complete JSON"),
        ('{"images": [{"id": 1} {"id": 2}]}', "not complete JSON"),
        ('{"images" []}', "not complete JSON"),
        ("\udc80", "not complete JSON"),
    ],
)
def test_what_is_no_annotation_file(text, message, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=message):
        read(path)
    with pytest.raises(DataError, match="cannot read"):
        read(tmp_path / "b.json")


def test_tables_of_unusual_files(tmp_path):
    path = tmp_path / "a.json"
    images = [{"id": "b", "height": 4, "width": 6}, {"id": "a"}]
    notes = [
        {"id": 1, "image_id": "b", "category_id": 1, "bbox": [0, 0, 1, 1], "segmentation": [[1]]},
        {"id": 2, "image_id": "c", "category_id": 1},
        {"id": 3, "image_id": "a", "category_id": 1, "iscrowd": 1, "segmentation": [[2]]},
        {"id": 4, "category_id": 1},
    ]
    # Annotations may come before the images that they belong to, and ids may be texts.
    content = {"annotations": notes, "images": images, "categories": [{"id": 1}]}
    path.write_text(json.dumps(content))
    table = load_table(path, "mine")
    assert table.image_ids == ("a", "b")
    assert table.heights.tolist() == [0, 4]
    assert table.starts.tolist() == [0, 1, 2]
    assert table.ids.tolist() == [3, 1]
    assert table.is_crowd.tolist() == [True, False]
    assert [table.outlines[at] for at in table.outline_at.tolist()] == ["[[2]]", "[[1]]"]
    assert [(item.reason, item.count) for item in table.unused] == [(UNKNOWN_IMAGE, 2)]
    assert "annotation 2 of 4 has image_id 'c'" in table.unused[0].named
    path.write_text(json.dumps({"annotations": [], "images": images, "categories": []}))
    empty = load_table(path, "mine")
    assert empty.starts.tolist() == [0, 0, 0]
    assert empty.boxes.shape == (0, 4)
