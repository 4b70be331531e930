"""The folder of `segment`: whose results it holds, and which files."""

import json

import pytest
from PIL import Image

from semsam_jax.__main__ import main
from semsam_jax.core.errors import DataError
from semsam_jax.inference.segment_folder import segment_folder

FILES = ["masks.json", "overlay.png"]


@pytest.fixture
def images(tmp_path, image_a):
    """Paths and pixels of two images that share a stem."""
    found = {tmp_path / "ph.jpg": image_a, tmp_path / "ph.png": image_a[:, ::-1].copy()}
    for path, pixels in found.items():
        Image.fromarray(pixels).save(path)
    return found


def write(out, path, pixels, names=FILES, overwrite=False):
    """As `segment` does; each file holds the name of its image."""
    place = segment_folder(out, path, pixels, overwrite)
    place.start(names)
    for name in names:
        (place.path / name).write_text(path.name)
    return place.path


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def test_images_of_one_stem_have_folders_of_their_own(images, tmp_path):
    for _ in range(2):  # the same command again replaces its own result
        places = [write(None, *image) for image in images.items()]
        assert [place.name for place in places] == ["ph_segments", "ph.png_segments"]
    for place, path in zip(places, images, strict=True):
        assert (place / "masks.json").read_text() == path.name
        assert json.loads((place / "source.json").read_text())["image"] == f"../{path.name}"


def test_a_folder_of_another_image_is_refused_or_replaced(images, tmp_path):
    (first, pixels), (second, others) = images.items()
    out = tmp_path / "out"
    write(str(out), first, pixels, [*FILES, "segments.png"])
    with pytest.raises(DataError, match=r"out: holds results of another image.*--overwrite"):
        write(str(out), second, others)
    assert (out / "masks.json").read_text() == first.name
    write(str(out), second, others, overwrite=True)
    assert listing(out) == [*FILES, "source.json"]
    assert (out / "masks.json").read_text() == second.name


def test_another_task_leaves_no_files_of_the_first(images, tmp_path):
    (path, pixels), _ = images.items()
    out = tmp_path / "out"
    write(str(out), path, pixels, [*FILES, "segments.png"])
    (out / "notes.txt").write_text("mine")
    write(str(out), path, pixels)
    assert listing(out) == ["masks.json", "notes.txt", "overlay.png", "source.json"]


def test_the_same_image_is_known_by_its_place_or_its_content(images, tmp_path):
    (path, pixels), (other, others) = images.items()
    out = tmp_path / "out"
    write(str(out), path, pixels)
    write(str(out), path, others)  # edited
    write(str(out), other, others)  # a copy
    (out / "source.json").unlink()  # as earlier versions left it
    with pytest.raises(DataError, match="another image"):
        write(str(out), other, others)


def test_the_command_keeps_results_of_another_image(
    images, tmp_path, tiny_checkpoint, capsys, monkeypatch
):
    monkeypatch.setenv("SEMSAM_JAX_CACHE", str(tmp_path / "cache"))
    args = ["--checkpoint", str(tiny_checkpoint), "--point", "60,80", "--size", "96"]
    args += ["--level", "2", "--out", str(tmp_path / "out")]
    first, second = map(str, images)
    for _ in range(2):
        assert main(["segment", first, *args]) == 0
    before = (tmp_path / "out" / "masks.json").read_text()
    capsys.readouterr()
    assert main(["segment", second, *args]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--overwrite" in error
    assert (tmp_path / "out" / "masks.json").read_text() == before
    assert main(["segment", second, *args, "--overwrite"]) == 0
    assert (tmp_path / "out" / "masks.json").read_text() != before
