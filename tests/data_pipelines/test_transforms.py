import dataclasses
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipelines import decode
from data_pipelines.schema import BatchShape, RawExample, RawInstance
from data_pipelines.transforms import geometry, masks, prompts, row
from data_pipelines.transforms.evaluation import evaluation_rows
from semsam_jax.core.errors import DataError
from semsam_jax.inference.images import load_image
from tests.data_pipelines.fake_source import (
    HANDLE,
    FakeSource,
    ellipse,
    encode_image,
    encode_mask,
    fake_source,
    make_example,
    mask_instance,
    random_masks,
)

SHAPE = BatchShape(image_size=64, max_instances=6, num_prompts=12, max_targets=3, vocab_size=4)


def make_rows(augment=geometry.LSJ, shape=SHAPE, **policy):
    names = ("sa1b", "coco", "paco", "objects365")
    return row.RowMaker(
        shape=shape,
        policy=prompts.PromptPolicy(**policy),
        augments=dict.fromkeys(names, augment),
        vocab_valid={name: np.array([True, False, True, False]) for name in names},
        dataset_index={name: number for number, name in enumerate(names)},
    )


def placements():
    return st.builds(
        lambda seed, h, w, augment: geometry.sample_placement(
            np.random.default_rng(seed), h, w, 32, augment
        ),
        st.integers(0, 2**32 - 1),
        st.integers(1, 70),
        st.integers(1, 70),
        st.sampled_from([geometry.SA1B, geometry.LSJ, geometry.ADE20K]),
    )


def oracle(mask, placement):
    """The mask on the canvas by plain indexing."""
    source = mask[:, ::-1] if placement.flip else mask
    rows, columns = placement.size_hw
    canvas = np.zeros((placement.canvas, placement.canvas), bool)
    scale_y, scale_x = placement.scaled_h / mask.shape[0], placement.scaled_w / mask.shape[1]
    y = np.floor((np.arange(rows) + placement.offset_y + 0.5) / scale_y + 1e-9).astype(int)
    x = np.floor((np.arange(columns) + placement.offset_x + 0.5) / scale_x + 1e-9).astype(int)
    canvas[:rows, :columns] = source[y][:, x]
    return canvas


def drawn(mask, placement):
    height, width = mask.shape
    toggles = masks.rle_toggles(encode_mask(mask), height, width)
    packed = masks.draw_mask(toggles, masks.draw_tables(placement))
    canvas = np.zeros((placement.canvas, placement.canvas // 8), np.uint8)
    if packed:
        packed.paste(canvas)
    return packed, masks.unpack_bits(canvas)


@settings(max_examples=300, deadline=None)
@given(placements(), st.integers(0, 2**32 - 1), st.sampled_from(["dots", "blob", "full", "bar"]))
def test_drawing_equals_plain_indexing(placement, seed, kind):
    rng = np.random.default_rng(seed)
    height, width = placement.height, placement.width
    mask = {
        "dots": rng.random((height, width)) < rng.random(),
        "blob": random_masks(rng, height, width, 1)[0],
        "full": np.ones((height, width), bool),
        "bar": np.broadcast_to(np.arange(width) >= rng.integers(0, width), (height, width)),
    }[kind]
    packed, canvas = drawn(mask, placement)
    wanted = oracle(mask, placement)
    np.testing.assert_array_equal(canvas, wanted)
    assert (packed is None) == (not wanted.any())
    if packed:
        y, x = np.nonzero(wanted)
        assert packed.box_px == (x.min(), y.min(), x.max() + 1, y.max() + 1)
        assert packed.area_px == wanted.sum()
        listed = [packed.pixel(rank) for rank in range(packed.area_px)]
        assert listed == list(zip(x.tolist(), y.tolist(), strict=True))


@settings(max_examples=100, deadline=None)
@given(placements(), st.integers(0, 2**32 - 1), st.sampled_from([2, 4]))
def test_stride_keeps_the_pixel_nearest_the_cell_centre(placement, seed, stride):
    rng = np.random.default_rng(seed)
    mask = rng.random((placement.height, placement.width)) < rng.random()
    packed, canvas = drawn(mask, placement)
    wanted = canvas[stride // 2 :: stride, stride // 2 :: stride]
    cells = masks.subsample(packed, stride) if packed else None
    bits = np.zeros((32 // stride, 32 // stride // 8), np.uint8)
    if cells:
        cells.paste(bits)
    np.testing.assert_array_equal(masks.unpack_bits(bits), wanted)
    assert (cells is None) == (not wanted.any())


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_flipping_twice_is_identity(height, width, seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((height, width)) < 0.4
    plain = geometry.fit_placement(height, width, 32)
    flipped = dataclasses.replace(plain, flip=True)
    canvas = drawn(mask[:, ::-1], flipped)[1]
    np.testing.assert_array_equal(canvas, drawn(mask, plain)[1])
    box = (0.3 * width, 0.1 * height, 0.8 * width, height * 1.0)
    mirrored = (width - box[2], box[1], width - box[0], box[3])
    np.testing.assert_allclose(flipped.move_box(mirrored), plain.move_box(box), atol=1e-9)


def test_pixels_masks_and_boxes_move_together():
    """A white ellipse on black: the pixels, thresholded, must be the mask."""
    rng = np.random.default_rng(0)
    height, width = 301, 203
    mask = ellipse(height, width, 140, 80, 70, 40)
    data = encode_image(np.repeat(mask[..., None] * np.uint8(255), 3, axis=-1), "PNG")
    for _ in range(20):
        placement = geometry.sample_placement(rng, height, width, 256, geometry.LSJ)
        image = decode.place_image(data, placement, where="test")
        packed, canvas = drawn(mask, placement)
        rows, columns = placement.size_hw
        assert not image[rows:].any()
        assert not image[:, columns:].any()
        difference = (image[..., 0] > 127) != canvas
        assert difference.sum() <= 0.04 * max(canvas.sum(), 100)
        if packed:
            box = placement.move_box((40.0, 70.0, 121.0, 211.0))
            np.testing.assert_allclose(packed.box_px, box, atol=2.5)


def test_reduced_jpeg_is_the_same_picture():
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 255, (9, 13, 3)).astype(np.uint8))
    pixels = np.asarray(small.resize((801, 533), Image.Resampling.BICUBIC))
    placement = geometry.fit_placement(533, 801, 96)  # decoded at 1/8
    from_jpeg = decode.place_image(encode_image(pixels), placement, where="test")
    from_png = decode.place_image(encode_image(pixels, "PNG"), placement, where="test")
    assert np.abs(from_jpeg.astype(int) - from_png).mean() < 2
    assert decode.decode_image(encode_image(pixels), where="t", reduction=4).shape == (134, 201, 3)


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA", "LA", "1", "I;16"])
def test_every_pixel_format_becomes_rgb(mode):
    grey = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    if mode == "I;16":
        image = Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16) * 257)
    else:
        image = grey.convert("RGB").convert(mode) if mode == "CMYK" else grey.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG" if mode == "CMYK" else "PNG", quality=100)
    pixels = decode.decode_image(buffer.getvalue(), where="test")
    assert pixels.shape == (16, 16, 3)
    assert pixels.dtype == np.uint8
    if mode != "1":
        assert np.abs(pixels.astype(int) - np.asarray(grey)[..., None]).max() <= 8


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "I;16"])
def test_training_sees_the_pixels_of_inference(mode, tmp_path):
    """Below full transparency a file may hold any colour, mostly black."""
    rng = np.random.default_rng(3)
    channels = {"RGBA": 4, "LA": 2, "RGB": 3}.get(mode, 1)
    values = rng.integers(0, 65536 if mode == "I;16" else 256, (12, 16, channels))
    values = values.astype(np.uint16 if mode == "I;16" else np.uint8)
    image = Image.fromarray(values[..., 0] if channels == 1 else values)
    if mode == "P":
        image = image.convert("P")
    image.save(tmp_path / "a.png", **({"transparency": 7} if mode == "P" else {}))
    pixels = decode.decode_image((tmp_path / "a.png").read_bytes(), where="t")
    np.testing.assert_array_equal(pixels, load_image(tmp_path / "a.png"))


def test_exif_rotation_is_not_applied():
    image = Image.fromarray(np.zeros((10, 20, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    assert decode.decode_image(buffer.getvalue(), where="test").shape == (10, 20, 3)


def test_broken_images_are_named():
    data = encode_image(np.zeros((50, 50, 3), np.uint8))
    with pytest.raises(DataError, match=r"coco/7.*cannot be decoded"):
        decode.decode_image(data[: len(data) // 2], where="coco/7")
    with pytest.raises(DataError, match=r"coco/7.*cut short"):
        decode.check_header(data[:-10], where="coco/7", size_hw=(50, 50))
    with pytest.raises(DataError, match="50x50 but its annotations are for 50x40"):
        decode.decode_image(data, where="coco/7", size_hw=(50, 40))
    with pytest.raises(DataError, match="coco/7"):
        decode.decode_image(b"not an image", where="coco/7")


def test_broken_masks_are_named():
    good = encode_mask(np.eye(8, dtype=bool))
    with pytest.raises(DataError, match="differs from the image"):
        masks.rle_toggles(good, 8, 9)
    with pytest.raises(DataError, match="runs of"):
        masks.rle_toggles({"size": [8, 8], "counts": good["counts"][:-2]}, 8, 8)
    with pytest.raises(DataError, match="cut short"):
        masks.rle_toggles({"size": [8, 8], "counts": b"a"}, 8, 8)


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("dataset", ["sa1b", "coco", "paco", "objects365"])
def test_row_matches_the_contract(dataset, stride):
    shape = dataclasses.replace(SHAPE, mask_stride=stride)
    maker = make_rows(shape=shape, hierarchy=True, granularity_balance=0.3)
    for number in range(6):
        example = make_example(dataset, number, masks=9)
        made = maker((example, "any"), np.random.default_rng(number))
        assert list(made) == list(shape.spec())
        for key, (dtype, size) in shape.spec().items():
            assert (made[key].dtype, made[key].shape) == (dtype, size), key
        check_row(made, shape, dataset)


def check_row(made, shape, dataset):
    """Every promise that a row makes, recomputed from its own bits."""
    valid, stride = made["instance_valid"], shape.mask_stride
    count = int(valid.sum())
    assert 0 < count <= shape.max_instances
    assert valid[:count].all()
    assert made["has_masks"] == (dataset != "objects365")
    rows, columns = made["size_hw"]
    assert not made["image"][rows:].any()
    assert not made["image"][:, columns:].any()
    bits = masks.unpack_bits(made["mask_bits"])
    assert not bits[count:].any()
    assert not bits[:, -(-rows // stride) :].any()
    assert not bits[:, :, -(-columns // stride) :].any()
    assert (made["object_id"][count:] == -1).all()
    assert (made["part_id"][count:] == -1).all()
    if made["has_masks"]:
        assert bits[:count].any(axis=(1, 2)).all()
        for mask, box in zip(bits[:count], made["boxes"][:count], strict=True):
            y, x = np.nonzero(mask)
            cx, cy, w, h = box * shape.image_size
            tight = np.array([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
            if stride == 1:
                edges = [x.min(), y.min(), x.max() + 1, y.max() + 1]
                np.testing.assert_allclose(tight, edges, atol=1e-4)
            x, y = x * stride + stride // 2, y * stride + stride // 2
            assert (tight[:2] <= np.array([x.min(), y.min()]) + 1e-4).all()
            assert (tight[2:] >= np.array([x.max(), y.max()]) + 1 - 1e-4).all()
    assert made["prompt_valid"].all()
    side = 6 / shape.image_size
    for box, is_box, targets in zip(
        made["prompt_box"], made["prompt_is_box"], made["prompt_targets"], strict=True
    ):
        targets = targets[: int((targets >= 0).sum())]
        assert len(targets)
        assert len(set(targets.tolist())) == len(targets)
        assert (targets < count).all()
        if is_box:
            assert len(targets) == 1
            np.testing.assert_array_equal(box, made["boxes"][targets[0]])
            continue
        np.testing.assert_allclose(box[2:], side)
        x, y = np.round(box[:2] * shape.image_size).astype(int)
        np.testing.assert_allclose(box[:2], np.array([x, y]) / shape.image_size, atol=1e-7)
        under = np.flatnonzero(bits[:, y // stride, x // stride])
        assert set(targets.tolist()) <= set(under.tolist())
        if len(under) <= shape.max_targets:
            assert set(targets.tolist()) == set(under.tolist())


@pytest.mark.parametrize("stride", [1, 4])
def test_a_mask_of_one_pixel_still_makes_a_row(stride):
    """Neither a random crop nor the whole image shows it: the close-up has to."""
    mask = np.zeros((600, 800), bool)
    mask[311, 417] = True
    image = encode_image(np.zeros((600, 800, 3), np.uint8))
    example = RawExample("coco", "dot", image, 600, 800, (mask_instance(mask, object_id=0),))
    shape = dataclasses.replace(SHAPE, mask_stride=stride)
    for seed in range(5):
        made = make_rows(shape=shape)((example, "any"), np.random.default_rng(seed))
        check_row(made, shape, "coco")


def test_masks_and_bare_boxes_do_not_mix():
    mask = mask_instance(np.ones((60, 90), bool))
    bare = RawInstance(rle=None, box=(0.0, 0.0, 5.0, 5.0))
    example = dataclasses.replace(make_example("coco", 0), instances=(mask, bare))
    with pytest.raises(DataError, match="coco/image0: 1 of 2 instances have masks"):
        make_rows()((example, "any"), np.random.default_rng(0))


def test_placement_policies_stay_in_their_range():
    rng = np.random.default_rng(0)
    for _ in range(200):
        place = geometry.sample_placement(rng, 300, 500, 64, geometry.SA1B)
        assert 63 <= place.scaled_w <= 65
        place = geometry.sample_placement(rng, 300, 500, 64, geometry.LSJ)
        assert 6 <= max(place.scaled_h, place.scaled_w) <= 128
        place = geometry.sample_placement(rng, 300, 500, 60, geometry.ADE20K)
        assert place.scaled_h in {round(60 * k / 10) for k in range(5, 21)}
        assert 0 <= place.offset_x <= max(place.scaled_w - 60, 0)
        place = geometry.sample_placement(rng, 100, 900, 60, geometry.ADE20K)
        assert place.scaled_w <= 240  # a panorama stays within four canvases
    assert geometry.ade20k(0.5, 1.0).num_scales == 6


def test_evaluation_rows_show_the_whole_image_and_human_masks():
    source = fake_source("paco", size=2)
    first = source.examples[0]
    machine = dataclasses.replace(first.instances[0], is_pseudo=True)
    source.examples[0] = dataclasses.replace(first, instances=(machine, *first.instances[1:]))
    rows = list(evaluation_rows(source, 48))
    assert [item["example_id"] for item in rows] == ["image0", "image1"]
    assert rows[0]["instance"].tolist() == [1, 2, 3]
    assert rows[0]["size_hw"].tolist() == [32, 48]
    assert rows[0]["image_hw"] == (60, 90)
    assert rows[0]["mask_bits"].shape == (3, 48, 6)
    dot = np.zeros((60, 90), bool)
    dot[0, 1] = True  # between the columns that the canvas shows
    thin = dataclasses.replace(first, instances=(*first.instances, mask_instance(dot)))
    (row,) = evaluation_rows(FakeSource([thin]), 48)
    assert (len(row["instance"]), row["num_lost"], rows[0]["num_lost"]) == (4, 1, 0)
    parts = next(evaluation_rows(FakeSource([source.examples[1]]), 48, view="part"))
    assert (parts["part_id"] == HANDLE).all()
    short = next(evaluation_rows(source, 48, short_side=20))
    assert short["size_hw"].tolist() == [20, 30]


def test_evaluation_rows_hand_on_what_is_to_be_ignored():
    example = make_example("paco", 1)
    crowded = dataclasses.replace(
        example, instances=example.instances[1:], ignored=example.instances[:1]
    )
    whole, row = (next(evaluation_rows(FakeSource([e]), 48)) for e in (example, crowded))
    for key in ("mask_bits", "boxes", "object_id", "part_id"):
        ignored = row[f"ignore_{key.removeprefix('mask_')}"]
        np.testing.assert_array_equal(ignored, whole[key][:1])
        np.testing.assert_array_equal(row[key], whole[key][1:])
    assert whole["ignore_bits"].shape == (0, 48, 6)
    assert whole["ignore_boxes"].shape == (0, 4)


def test_training_rows_do_not_depend_on_crowds():
    example = make_example("paco", 1)
    crowded = dataclasses.replace(example, ignored=example.instances)
    rows = [make_rows()((e, "any"), np.random.default_rng(0)) for e in (example, crowded)]
    for key, value in rows[0].items():
        np.testing.assert_array_equal(value, rows[1][key])
