import os
import warnings

import numpy as np
import pytest
from PIL import Image

from semsam_jax.core.errors import DataError
from semsam_jax.inference import images
from semsam_jax.inference.images import load_image

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (12, 20, 3), np.uint8)


def test_path_pil_and_array_give_the_same(tmp_path):
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    for image in (IMAGE, Image.fromarray(IMAGE), tmp_path / "a.png", str(tmp_path / "a.png")):
        np.testing.assert_array_equal(load_image(image), IMAGE)


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    Image.fromarray(IMAGE).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), np.rot90(IMAGE, -1))


def test_transparency_becomes_white():
    rgba = np.dstack([IMAGE, np.zeros((12, 20), np.uint8)])
    assert (load_image(rgba) == 255).all()
    assert (load_image(Image.fromarray(rgba)) == 255).all()


def test_palette_with_transparency(tmp_path):
    palette = Image.fromarray(IMAGE).quantize(16)
    palette.save(tmp_path / "p.png", transparency=0)
    loaded = load_image(tmp_path / "p.png")
    assert loaded.shape == (12, 20, 3)
    assert (loaded[np.asarray(palette) == 0] == 255).all()


def test_sixteen_bits_keep_the_high_byte(tmp_path):
    deep = RNG.integers(0, 65536, (12, 20), np.uint16)
    Image.fromarray(deep).save(tmp_path / "d.png")
    for image in (tmp_path / "d.png", deep):
        np.testing.assert_array_equal(load_image(image)[..., 1], deep >> 8)


def test_sixteen_bits_that_become_black_are_warned_of_once(tmp_path):
    """10- and 12-bit cameras store small values."""
    cv2 = pytest.importorskip("cv2")
    images.warn_of_dark.cache_clear()
    for name, channels in (("grey.png", ()), ("colour.png", (3,)), ("grey.tif", ())):
        deep = RNG.integers(0, 4096, (12, 20, *channels), np.uint16)
        cv2.imwrite(str(tmp_path / name), deep)
        with pytest.warns(UserWarning, match=rf"{name}: an image of 16 bits .* rescale it to"):
            np.testing.assert_array_equal(load_image(tmp_path / name)[..., ::-1].max(), 15)
        with warnings.catch_warnings(action="error"):
            load_image(tmp_path / name)  # once is enough
            cv2.imwrite(str(tmp_path / f"full-{name}"), deep << 4)
            load_image(tmp_path / f"full-{name}")
            Image.fromarray((deep >> 8).astype(np.uint8)).save(tmp_path / f"eight-{name}")
            load_image(tmp_path / f"eight-{name}")
    with pytest.warns(UserWarning, match="image: an image of 16 bits"):
        load_image(RNG.integers(0, 4096, (12, 20), np.uint16))


@pytest.mark.parametrize("mode", ["L", "1", "CMYK", "LA", "YCbCr"])
def test_every_mode_becomes_rgb(mode):
    assert load_image(Image.fromarray(IMAGE).convert(mode)).shape == (12, 20, 3)


def test_float_arrays_are_in_0_to_1():
    got = load_image(IMAGE.astype(np.float32) / 255)
    np.testing.assert_array_equal(got, IMAGE)
    with pytest.raises(DataError, match=r"0\.\.1"):
        load_image(IMAGE.astype(np.float32))
    with pytest.raises(DataError, match="NaN"):
        load_image(np.full((4, 4), np.nan))


@pytest.mark.parametrize("shape", [(4,), (4, 4, 2), (0, 4, 3), (2, 4, 4, 3)])
def test_shapes_that_are_no_images(shape):
    with pytest.raises(DataError, match="expected"):
        load_image(np.zeros(shape, np.uint8))


def test_broken_files_name_the_file(tmp_path):
    Image.fromarray(RNG.integers(0, 256, (90, 90, 3), np.uint8)).save(tmp_path / "ok.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "ok.jpg").read_bytes()[:900])
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").write_bytes(b"")
    for name in ("cut.jpg", "text.png", "empty.png", "missing.png"):
        with pytest.raises(DataError, match=name):
            load_image(tmp_path / name)
    with pytest.raises(DataError, match="folder"):
        load_image(tmp_path)


def test_a_bomb_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="smaller copy"):
        load_image(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(DataError, match="smaller copy"):
        load_image(tmp_path / "a.png")


def test_what_never_ends_or_starts_programs_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(DataError, match="is a device or a pipe"):
        load_image(tmp_path / "pipe.jpg")
    with pytest.raises(DataError, match="File name too long"):
        load_image(tmp_path / ("x" * 300))
    # Pillow reads EPS with a program of its own.
    Image.fromarray(IMAGE).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.jpg")
    with pytest.raises(DataError, match="cannot identify image file"):
        load_image(tmp_path / "a.jpg")
