"""Image files of real users: names, frames, damage, repair, and what is kept of them."""

import json
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps
from pycocotools import mask as coco_mask

from data_pipelines import build, check
from data_pipelines.decode import decode_image
from data_pipelines.index import open_index
from data_pipelines.sources import CocoFolder
from semsam_jax.core.rle import encode_mask
from semsam_jax.inference.convert_results import to_coco
from semsam_jax.inference.images import load_image
from tests.data_pipelines import custom_data
from tests.data_pipelines.custom_data import read, write


@pytest.mark.parametrize(
    "name",
    [
        r"images\p{}.jpg",
        "images/p{}.jpg",
        "/home/ann/set/images/p{}.jpg",
        r"C:\Users\ann\p{}.jpg",
        "./p{}.jpg",
        "../../label-studio/data/media/upload/1/p{}.jpg",
    ],
)
def test_file_names_of_another_machine(name, tmp_path):
    def change(content):
        for row in content["images"]:
            row["file_name"] = name.format(row["id"])

    assert check.check(read(write(tmp_path, change))).num_instances == 4


def test_two_names_never_become_one_file(tmp_path):
    def change(content):
        content["images"][0]["file_name"] = "day1/p1.jpg"
        content["images"][1]["file_name"] = "day2/p1.jpg"

    report = check.check(read(write(tmp_path, change)))
    assert len(report.broken) == 2
    assert "day1/p1.jpg" in report.broken[0]


def test_images_of_sixteen_bits_that_become_black_are_told(tmp_path):
    """10- and 12-bit cameras store small values; the high byte alone is read."""

    def report(pixels):
        write(tmp_path, lambda c: [r.update(file_name=f"p{r['id']}.png") for r in c["images"]])
        for number in (1, 2):
            (tmp_path / f"images/p{number}.png").write_bytes(cv2.imencode(".png", pixels)[1])
        source = read(tmp_path)
        seen = check.check(source)
        assert not seen.broken
        started = open_index(source, "custom", cache=tmp_path / "cache").report.lines()
        assert started == [f"custom: {line}" for line in seen.unused]
        return seen.unused

    for channels in ((), (3,)):
        grey = np.random.default_rng(0).integers(0, 4096, (64, 96, *channels), np.uint16)
        (line,) = report(grey)
        assert line == (
            "2 images used all the same, of 16 bits with all values below 8192 (almost black, "
            "since the high byte is read; rescale to 8 bits or the full 16-bit range): custom/1; "
            "custom/2"
        )
        assert not report(grey << 4)
        assert not report((grey >> 8).astype(np.uint8))


@pytest.mark.parametrize(
    "name", [None, "", 5, "a" * 5000, "p\x001.jpg", "\ud800.jpg", "/dev/zero", "images"]
)
def test_file_names_that_are_none_break_their_image_only(name, tmp_path):
    write(tmp_path, lambda content: content["images"][0].update(file_name=name))
    report = check.check(read(tmp_path))
    assert len(report.broken) == 1
    assert report.num_instances == 2
    assert "cannot read the image" in report.broken[0]
    report.broken[0].encode("utf-8")  # it can be printed


def test_a_name_in_other_capitals_is_told_what_the_folder_has(tmp_path):
    for name in ("P1.JPG", "p1.jpeg", "p1"):
        write(tmp_path, lambda content, name=name: content["images"][0].update(file_name=name))
        (broken,) = check.check(read(tmp_path)).broken
        assert "No such file" in broken
        assert "the folder has p1.jpg" in broken


@pytest.mark.parametrize("size", ["tall", -3, 2**40, float("nan"), [64]])
def test_a_size_that_is_none_breaks_its_image_only(size, tmp_path):
    write(tmp_path, lambda content: content["images"][0].update(height=size))
    (broken,) = check.check(read(tmp_path)).broken
    assert "not a size in pixels" in broken


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path):
    def png(width, height):
        def chunk(kind, data):
            body = kind + data
            return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

        header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
        pixels = zlib.compress(bytes(1000))
        parts = (chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b""))
        return b"\x89PNG\r\n\x1a\n" + b"".join(parts)

    write(tmp_path, lambda content: content["images"][0].pop("height"))
    for size in ((16000, 14000), (200_000, 200_000)):
        (tmp_path / "images/p1.jpg").write_bytes(png(*size))
        report = check.check(read(tmp_path))
        assert "too many pixels" in report.broken[0]
        assert report.num_instances == 2


def test_bytes_behind_the_image_do_no_harm(tmp_path):
    write(tmp_path)
    video = np.random.default_rng(0).integers(0, 255, 9000, np.uint8).tobytes()
    image = tmp_path / "images/p1.jpg"
    image.write_bytes(custom_data.image() + video.replace(b"\xff\xd9", b"ab"))
    source = read(tmp_path)
    assert len(open_index(source, "custom")) == 2
    assert not check.check(source).broken
    image.write_bytes(custom_data.image(kind="PNG") + video)
    assert len(open_index(source, "custom")) == 2
    # A picture inside it ends, too, which is not the end of the file.
    whole = custom_data.image()
    thumbnail = b"\xff\xe1" + struct.pack(">H", 2 + len(whole)) + whole
    image.write_bytes(whole[:2] + thumbnail + whole[2:-200])
    assert len(open_index(source, "custom")) == 1
    assert len(check.check(source).broken) == 1


def test_a_png_with_a_wrong_checksum_is_found_by_the_scan(tmp_path):
    write(tmp_path)
    data = bytearray(custom_data.image(kind="PNG"))
    data[data.index(b"IDAT") + 10] ^= 0xFF
    (tmp_path / "images/p1.jpg").write_bytes(data)
    source = read(tmp_path)
    assert open_index(source, "custom").report.dropped == {"image": 1}
    assert len(check.check(source).broken) == 1


def test_a_repaired_image_is_used_again(tmp_path):
    write(tmp_path / "set")
    image = tmp_path / "set/images/p1.jpg"
    image.write_bytes(custom_data.image()[:500])
    cache = tmp_path / "cache"
    assert len(open_index(read(tmp_path / "set"), "custom", cache=cache)) == 1
    image.write_bytes(custom_data.image())
    assert len(open_index(read(tmp_path / "set"), "custom", cache=cache)) == 2
    kept = open_index(read(tmp_path / "set"), "custom", cache=cache)
    assert isinstance(kept.position, np.memmap)
    assert len(list(cache.iterdir())) == 2


def test_a_build_goes_on_with_what_the_files_hold_now(tmp_path, capsys):
    write(tmp_path / "set")
    image = tmp_path / "set/images/p1.jpg"
    image.write_bytes(custom_data.image()[:500])
    out = tmp_path / "out"
    command = ["--dataset", "custom", "--root", str(tmp_path / "set"), "--out", str(out)]
    command += ["--max-broken", "1", "--shard-records", "1"]
    assert build.main(command) == 0
    assert "1 examples of 2 records" in capsys.readouterr().out
    second = next((out / "custom/train/1.0.0").glob("*00001-of-00002"))
    age = second.stat().st_mtime_ns
    image.write_bytes(custom_data.image())
    assert build.main(command) == 0
    assert "2 examples of 2 records" in capsys.readouterr().out
    assert second.stat().st_mtime_ns == age


def test_an_index_of_an_earlier_reader_is_made_again(tmp_path, monkeypatch):
    write(tmp_path / "data")
    source, cache = read(tmp_path / "data"), tmp_path / "cache"
    for revision in (1, 2):
        monkeypatch.setattr(CocoFolder, "revision", revision)
        assert len(open_index(source, "custom", cache=cache)) == 2
        assert len(list(cache.iterdir())) == revision


@pytest.mark.parametrize("damage", ["{", "[]", "{}"])
def test_a_damaged_cache_is_made_again(damage, tmp_path):
    write(tmp_path / "set")
    cache = tmp_path / "cache"
    open_index(read(tmp_path / "set"), "custom", cache=cache)
    (report,) = cache.glob("*/report.json")
    report.write_text(damage)
    assert len(open_index(read(tmp_path / "set"), "custom", cache=cache)) == 2
    assert json.loads(report.read_text())["records"] == 2


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, caplog):
    index = open_index(read(write(tmp_path)), "custom", cache="/dev/null/x")
    assert len(index) == 2
    assert "cannot be written" in caplog.text


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_frame_is_the_one_that_fits(orientation, kind, tmp_path):
    """Annotations as a label tool makes them: on the displayed image."""
    write(tmp_path)
    (tmp_path / "images/p1.jpg").write_bytes(custom_data.image(orientation, kind))
    with Image.open(tmp_path / "images/p1.jpg") as opened:
        stored = np.asarray(opened.convert("RGB"))
        shown = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    red = shown[..., 0] > 128
    ys, xs = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
    x0, y0, x1, y1 = (int(v) for v in (xs[0], ys[0], xs[-1] + 1, ys[-1] + 1))

    def change(content):
        content["images"][0].update(height=shown.shape[0], width=shown.shape[1])
        content["annotations"] = [
            row | {"segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]]}
            for row in content["annotations"][:1]
        ]

    (tmp_path / "annotations/train.json").unlink()
    made = custom_data.content()
    change(made)
    (tmp_path / "annotations/train.json").write_text(json.dumps(made))
    source = read(tmp_path)
    example = source[0]
    assert example.is_displayed
    assert (example.height, example.width) == shown.shape[:2]
    pixels = check.decode_example(example)
    np.testing.assert_allclose(pixels.astype(int), shown.astype(int), atol=3)
    mask = coco_mask.decode(example.instances[0].rle).astype(bool)
    assert mask.sum() == red.sum() == 1152
    assert pixels[mask][:, 0].mean() > 200
    # The same decoder without being told: the frame is the one of the wanted size.
    size = stored.shape[:2] if orientation < 5 else shown.shape[:2]
    plain = decode_image(example.image, where="t", size_hw=size)
    assert plain.shape[:2] == size


def test_annotations_of_the_stored_pixels_stay_there(tmp_path):
    write(tmp_path)
    (tmp_path / "images/p1.jpg").write_bytes(custom_data.image(6))
    example = read(tmp_path)[0]  # 96x64 stored and stated; displayed 64x96
    assert not example.is_displayed
    mask = coco_mask.decode(example.instances[0].rle).astype(bool)
    assert check.decode_example(example)[mask][:, 0].mean() > 200


def test_a_frame_that_fits_neither_is_told(tmp_path):
    write(tmp_path, lambda content: content["images"][0].update(width=50))
    (tmp_path / "images/p1.jpg").write_bytes(custom_data.image(6))
    (broken,) = check.check(read(tmp_path)).broken
    assert "says 50x64 pixels, the stored image has 96x64" in broken
    assert "displayed 64x96 (EXIF orientation 6)" in broken


def test_the_export_of_a_rotated_image_trains_here(tmp_path):
    """What the demo page and `segment` write for a phone's image, with the image beside it."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images/phone.jpg").write_bytes(custom_data.image(6))
    shown = load_image(tmp_path / "images/phone.jpg")
    red = shown[..., 0] > 128
    record = {"segmentation": encode_mask(red), "predicted_iou": 0.9}
    record["segmentation"]["counts"] = record["segmentation"]["counts"].decode()
    (tmp_path / "train.json").write_text(
        json.dumps(to_coco([record], "phone.jpg", *shown.shape[:2]))
    )
    example = read(tmp_path)[0]
    assert (example.height, example.width) == shown.shape[:2] == (96, 64)
    mask = coco_mask.decode(example.instances[0].rle).astype(bool)
    np.testing.assert_array_equal(mask, red)
    assert check.decode_example(example)[mask][:, 0].mean() > 200
