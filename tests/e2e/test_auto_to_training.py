"""What `auto` writes is a dataset: the SA-1B reader takes the folder as it is."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from data_pipelines.decode import check_header, decode_image
from data_pipelines.sources.coco_folder import CocoFolder, read_class_names
from data_pipelines.sources.sa1b import SA1B
from data_pipelines.vocabulary import Vocabulary, build_vocabulary
from semsam_jax.__main__ import main

DATA = Path(__file__).parents[1] / "golden" / "data"
_ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def image():
    return np.load(DATA / "tiny_inputs.npz")["image_a"]


@pytest.fixture(scope="module")
def annotated(image, tmp_path_factory):
    """A folder of images, and what `auto` made of it with the converted weights of the original."""
    root = tmp_path_factory.mktemp("auto")
    checkpoint, images, out = root / "checkpoint", root / "images", root / "annotated"
    images.mkdir()
    Image.fromarray(image).save(images / "plain.jpg")
    Image.fromarray(image[:96]).save(images / "lossless.png")
    rotated = Image.fromarray(image)
    exif = rotated.getexif()
    exif[_ORIENTATION] = 6
    rotated.save(images / "rotated.jpg", exif=exif)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEMSAM_JAX_CACHE", str(root / "cache"))
        convert = ["convert", DATA / "tiny_ref.pth", "--model-config", DATA / "tiny_config.json"]
        assert main([str(x) for x in [*convert, "--out", checkpoint]]) == 0
        auto = ["auto", images, "--checkpoint", checkpoint, "--out", out, "--size", 64]
        auto += ["--points-per-side", 4, "--pred-iou-thresh", 0, "--stability-score-thresh", 0.1]
        auto += ["--box-nms-thresh", 0.95, "--coco"]
        assert main([str(x) for x in auto]) == 0
    return images, out


def test_the_reader_gives_the_masks_that_were_found(annotated):
    _, out = annotated
    source = SA1B(out, "train", Vocabulary([]))
    assert set(source.example_ids) == {"plain", "lossless", "rotated"}
    for position, name in enumerate(source.example_ids):
        example = source[position]
        content = json.loads((out / f"{name}.json").read_text())
        stored = content["annotations"]
        assert len(example.instances) == len(stored) > 0
        for instance, annotation in zip(example.instances, stored, strict=True):
            mask = coco_mask.decode(instance.rle)
            np.testing.assert_array_equal(mask, coco_mask.decode(annotation["segmentation"]))
            assert mask.shape == (example.height, example.width)
            assert mask.sum() == annotation["area"]


def test_the_trees_are_a_custom_dataset_with_parents(annotated):
    _, out = annotated
    classes = read_class_names(out / "annotations" / "train.json")
    source = CocoFolder(out, "train", build_vocabulary([], extra={"mine": classes}), dataset="mine")
    assert len(source) == 3
    links = 0
    for position in range(3):
        example = source[position]
        assert not example.unused
        (name,) = (f for f in out.glob("*.jpg") if f.read_bytes() == example.image)
        tree = json.loads(name.with_suffix(".json").read_text())["tree"]
        assert len(example.instances) == len(tree) > 0
        assert sum(i.parent >= 0 for i in example.instances) == sum(
            node["parent"] is not None for node in tree
        )
        links += sum(i.parent >= 0 for i in example.instances)
    assert links > 0


def test_masks_lie_in_the_frame_of_the_stored_pixels(annotated, image):
    _, out = annotated
    source = SA1B(out, "train", Vocabulary([]))
    sizes = {"plain": (128, 160), "lossless": (96, 160), "rotated": (160, 128)}
    for position, name in enumerate(source.example_ids):
        example = source[position]
        assert (example.height, example.width) == sizes[name]
        check_header(example.image, where=name, size_hw=sizes[name])
        pixels = decode_image(example.image, where=name, size_hw=sizes[name])
        upright = {
            "plain": image,
            "lossless": image[:96],
            "rotated": image.swapaxes(0, 1)[:, ::-1],
        }[name]
        assert np.abs(pixels.astype(int) - upright).mean() < 8  # JPEG


def test_a_plain_jpeg_is_copied_and_the_images_stay_as_they_are(annotated, image):
    images, out = annotated
    assert (out / "plain.jpg").read_bytes() == (images / "plain.jpg").read_bytes()
    assert not (out / "plain.jpg").samefile(images / "plain.jpg")
    assert not (out / "rotated.jpg").samefile(images / "rotated.jpg")
    assert sorted(p.name for p in images.iterdir()) == ["lossless.png", "plain.jpg", "rotated.jpg"]
    assert {p.name for p in (out / "overlays").iterdir()} == {
        *("plain.jpg", "lossless.jpg", "rotated.jpg")
    }


def test_results_never_land_among_the_images(annotated, capsys):
    images, _ = annotated
    assert main(["auto", str(images), "--out", str(images)]) == 2
    assert "choose another folder" in capsys.readouterr().err
