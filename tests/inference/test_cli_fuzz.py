"""Images and arguments that are broken or strange: the right result, or one clear line."""

import io
import json
import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from semsam_jax.__main__ import main

_ORIENTATION = 0x0112


def _encode(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _bomb() -> bytes:
    """A PNG of a few bytes that says it has ten thousand million pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + chunk(b"IEND", b"")
    )


def _rotated(image: Image.Image) -> bytes:
    exif = image.getexif()
    exif[_ORIENTATION] = 8
    return _encode(image, "JPEG", exif=exif)


def good_images(pixels: np.ndarray) -> dict[str, tuple[bytes, tuple[int, int]]]:
    """Name -> bytes, and height and width of the image as displayed."""
    image = Image.fromarray(pixels)
    alpha = image.convert("RGBA")
    alpha.putalpha(Image.linear_gradient("L").resize(image.size))
    wide = Image.fromarray(np.resize(pixels, (3, 20_000, 3)))
    frames = [Image.fromarray(pixels[..., ::step]) for step in (1, -1)]
    palette = image.quantize(7)
    palette.info["transparency"] = 3
    return {
        "alpha.png": (_encode(alpha, "PNG"), (128, 160)),
        "palette.png": (_encode(palette, "PNG", transparency=3), (128, 160)),
        "grey16.png": (
            _encode(Image.fromarray(pixels[..., 0].astype(np.uint16) * 257), "PNG"),
            (128, 160),
        ),
        "one_bit.png": (_encode(image.convert("1"), "PNG"), (128, 160)),
        "cmyk.jpg": (_encode(image.convert("CMYK"), "JPEG"), (128, 160)),
        "rotated.jpg": (_rotated(image), (160, 128)),
        "animated.gif": (
            _encode(frames[0], "GIF", save_all=True, append_images=frames[1:]),
            (128, 160),
        ),
        "one_wide.png": (_encode(Image.fromarray(pixels[:, :1]), "PNG"), (128, 1)),
        "one_pixel.png": (_encode(Image.fromarray(pixels[:1, :1]), "PNG"), (1, 1)),
        "wide.png": (_encode(wide, "PNG"), (3, 20_000)),
    }


def bad_images(pixels: np.ndarray) -> dict[str, bytes]:
    png, jpeg = (_encode(Image.fromarray(pixels), kind) for kind in ("PNG", "JPEG"))
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 0xFF
    return {
        "empty.png": b"",
        "text.jpg": b"this is not an image\n" * 50,
        "cut.png": png[: len(png) // 2],
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "flipped.png": bytes(flipped),
        "bomb.png": _bomb(),
    }


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SEMSAM_JAX_CACHE", str(tmp_path / "cache"))


def run(*args) -> int:
    return main([str(arg) for arg in args])


@pytest.mark.nightly
def test_strange_images_give_masks_of_the_displayed_size(tmp_path, image_a, tiny_checkpoint):
    for name, (content, size) in good_images(image_a).items():
        path, out = tmp_path / name, tmp_path / f"{name}_out"
        path.write_bytes(content)
        args = ["--checkpoint", tiny_checkpoint, "--size", 64, "--point", "0.5,0.5", "--level", 2]
        assert run("segment", path, *args, "--out", out) == 0, name
        (record,) = json.loads((out / "masks.json").read_text())
        assert coco_mask.decode(record["segmentation"]).shape == size, name
        assert (out / "overlay.png").exists()


def test_broken_images_are_one_line(tmp_path, image_a, tiny_checkpoint, capsys):
    for name, content in bad_images(image_a).items():
        path = tmp_path / name
        path.write_bytes(content)
        assert run("segment", path, "--checkpoint", tiny_checkpoint, "--point", "1,1") == 2, name
        error = capsys.readouterr().err
        assert error.count("\n") == 1, name
        assert name in error
    assert not list(tmp_path.glob("*_segments"))


def test_a_folder_of_everything_is_worked_off(tmp_path, image_a, tiny_checkpoint, capsys):
    folder, out = tmp_path / "images", tmp_path / "out"
    folder.mkdir()
    good = {k: v for k, v in good_images(image_a).items() if k in ("alpha.png", "rotated.jpg")}
    for name, content in ({k: v[0] for k, v in good.items()} | bad_images(image_a)).items():
        (folder / name).write_bytes(content)
    args = ["--checkpoint", tiny_checkpoint, "--size", 64, "--points-per-side", 2, "--out", out]
    assert run("auto", folder, *args) == 0
    shown = capsys.readouterr()
    assert f"{len(good)} images" in shown.out
    assert "6 skipped" in shown.out
    assert shown.err.count("skipped:") == 6
    assert {p.stem for p in out.glob("*.json")} == {"alpha", "rotated"}


TEXT = st.one_of(
    st.text(max_size=12).filter(lambda s: "\0" not in s),
    st.lists(st.floats(), max_size=5).map(lambda v: ",".join(map(str, v))),
    st.lists(st.integers(-200, 200), max_size=5).map(lambda v: ",".join(map(str, v))),
)


@given(
    point=TEXT,
    box=st.one_of(st.none(), TEXT),
    level=st.one_of(st.just("all"), TEXT),
    size=st.one_of(st.just("64"), TEXT),
    labels=st.one_of(st.none(), TEXT),
)
@example(point="5,5", box=None, level="7", size="64", labels=None)
@example(point="5,5", box=None, level="1", size="64", labels="")
@example(point="nan,5", box=None, level="all", size="64", labels=None)
@example(point="", box="", level="", size="", labels="")
@example(point="5,5", box="1,1,9,9", level="1", size="٣٢", labels=None)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_arguments_end_well(
    tmp_path, image_a, tiny_checkpoint, capsys, point, box, level, size, labels
):
    path = tmp_path / "a.png"
    if not path.exists():
        Image.fromarray(image_a).save(path)
    args = [f"--point={point}", f"--level={level}", f"--size={size}", f"--out={tmp_path / 'o'}"]
    args += [] if box is None else [f"--box={box}"]
    args += [] if labels is None else [f"--labels={labels}"]
    try:
        code = run("segment", path, "--checkpoint", tiny_checkpoint, *args)
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err
    assert code in (0, 2)
    assert (code == 0) == (error == "")
    assert error.count("\n") <= 1
    if code == 0:
        records = json.loads((tmp_path / "o" / "masks.json").read_text())
        assert records
        assert all(r["segmentation"]["size"] == [128, 160] for r in records)
