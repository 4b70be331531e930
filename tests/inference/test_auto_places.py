"""`auto` where names are long or missing, and where nothing can be written."""

import errno
import json
import os
import time

import pytest
from PIL import Image

from semsam_jax.__main__ import main
from semsam_jax.core.errors import PromptError
from semsam_jax.inference import arguments, files
from semsam_jax.inference.auto import result_names

OPTIONS = ["--size", 96, "--points-per-side", 2, "--stability-score-thresh", 0]
OPTIONS += ["--pred-iou-thresh", -9]


@pytest.fixture
def folder(tmp_path, image_a):
    where = tmp_path / "images"
    where.mkdir()
    Image.fromarray(image_a).save(where / "a.png")
    Image.fromarray(image_a[:96]).save(where / "b.png")
    return where


def auto(checkpoint, *args):
    return main(["auto", *map(str, [*args, "--checkpoint", checkpoint, *OPTIONS])])


def test_the_folder_one_is_in(folder, tiny_checkpoint, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert auto(tiny_checkpoint, ".") == 0
    written = folder.with_name("images_segments")
    assert {path.stem for path in written.glob("*.json")} == {"a", "b"}
    assert arguments.output_folder(None, folder / "..") == folder.parent.with_name(
        f"{folder.parent.name}_segments"
    )
    with pytest.raises(PromptError, match="no name to make one of"):
        arguments.output_folder(None, type(folder)("/"))


def test_names_as_long_as_a_disk_takes(folder, tiny_checkpoint):
    names = [
        "x" * 251 + ".png",
        "x" * 250 + "y.png",
        "\N{CJK UNIFIED IDEOGRAPH-65E5}" * 83 + ".png",
    ]
    for name in names:
        (folder / "a.png").rename(folder / name)
        (folder / "a.png").write_bytes((folder / "b.png").read_bytes())
    assert auto(tiny_checkpoint, folder) == 0
    found = [json.loads(f.read_text()) for f in folder.with_name("images_segments").glob("*.json")]
    assert {content["image"]["source"] for content in found} == {"a.png", "b.png", *names}
    stems = result_names([folder / name for name in names]).values()
    assert len(set(stems)) == 3
    assert all(len(os.fsencode(stem)) <= 200 for stem in stems)


def test_a_folder_that_grows(folder, tiny_checkpoint, image_a, capsys):
    """Images added later get ids of their own, and results of an image stay in their file."""
    out = folder.with_name("images_segments")
    assert auto(tiny_checkpoint, folder) == 0
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.json")}
    Image.fromarray(image_a[::-1]).save(folder / "0.png")
    Image.fromarray(image_a[:, ::-1]).save(folder / "b.jpg")  # the stem of b.png
    capsys.readouterr()
    assert auto(tiny_checkpoint, folder) == 0
    shown = capsys.readouterr()
    assert "2 images in" in shown.out
    assert ", 2 already finished" in shown.out
    assert "another image" not in shown.err
    contents = {p.name: json.loads(p.read_text())["image"] for p in out.glob("*.json")}
    assert set(contents) == {"0.json", "a.json", "b.json", "b.jpg.json"}
    assert len({image["image_id"] for image in contents.values()}) == 4
    for name, time_ns in before.items():
        assert (out / name).stat().st_mtime_ns == time_ns
    assert contents["b.json"]["source"] == "b.png"
    assert auto(tiny_checkpoint, folder, "--overwrite") == 0
    again = {p.name: json.loads(p.read_text())["image"] for p in out.glob("*.json")}
    assert again == contents
    assert "another image" not in capsys.readouterr().err


def test_a_full_disk_ends_the_command_at_once(folder, tiny_checkpoint, monkeypatch, capsys):
    """It is no fault of the image: a folder of thousands would be segmented for nothing."""
    asked = []

    def full(path, *args):
        asked.append(path)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    assert auto(tiny_checkpoint, folder) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "a.jpg: cannot be written (No space left on device)" in error
    assert len(asked) == 1
    left = folder.with_name("images_segments")
    assert not [path for path in left.rglob("*") if path.is_file()]


def test_two_commands_may_write_one_file(tmp_path):
    """As `auto`, started twice on one folder: each writes the whole file, the last one stays."""

    def other(partial):
        partial.write_text("half")
        files.write_json(tmp_path / "a.json", [1])
        partial.write_text("[2]")

    files._write(tmp_path / "a.json", other)
    assert json.loads((tmp_path / "a.json").read_text()) == [2]
    for name, age in ((".old.0.partial.json", 7200), (".new.0.partial.json", 0)):
        (tmp_path / name).write_text("half")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    files.remove_partial(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", ".new.0.partial.json"}
