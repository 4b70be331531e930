"""Files of real users: what is read, what is refused, and that nothing vanishes without a word."""

import json
import resource
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from data_pipelines import build, check, findings
from data_pipelines.decode import decode_image
from data_pipelines.index import open_index
from data_pipelines.sources.outlines import encode_mask, to_rle
from semsam_jax.core.errors import DataError
from semsam_jax.inference.convert_results import to_coco
from semsam_jax.inference.images import load_image
from tests.data_pipelines import own_data
from tests.data_pipelines.own_data import CAT, DOG, read, write


def first(**values):
    """Changes the first annotation."""
    return lambda content: content["annotations"][0].update(values)


def each(key, make):
    """Changes a key of every annotation."""

    def change(content):
        for row in content["annotations"]:
            row[key] = make(row[key])

    return change


def both(content, key, make):
    for row in content["annotations"]:
        row["category_id"] = make(row["category_id"])
    for row in content["categories"]:
        row["id"] = make(row["id"])


def areas(example):
    return [int(coco_mask.area(item.rle)) for item in example.instances]


@pytest.mark.parametrize(
    ("outline", "message"),
    [
        ([[24, 16, float("nan"), 16, 60, 48]], "coordinate 2 of polygon 0 is nan"),
        ([CAT, [24, 16, 60, float("inf"), 60, 48]], "coordinate 3 of polygon 1 is inf"),
        ([[24, 16, 10**400, 16, 60, 48]], "coordinate 2 of polygon 0 is 1000"),
        ([[24, 16, "wide", 16, 60, 48]], "coordinate 2 of polygon 0 is 'wide'"),
        ([[24, 16, [60], 16, 60, 48]], "coordinate 2 of polygon 0 is a list of 1"),
        ([[24, 16, 60, 16, 60, 48, 24]], "polygon 0 has 7 numbers"),
        ([24, 16, None, 16, 60, 48], "coordinate 2 of polygon 0 is None"),
        ([{"x": 1}], "polygon 0 is an object of 1"),
        ({"size": [64, 96], "counts": [100, -50, 6094]}, "run length 1 is -50"),
        (
            {"size": [64, 96], "counts": [100, 2**70, 6044]},
            "run length 1 is 1180591620717",
        ),
        ({"size": [64, 96], "counts": [2**32, 6144]}, "add up to 4294973440"),
        ({"size": [64, 96], "counts": 10**12}, "RLE counts are 1000000000000"),
        ({"size": [64, 96], "counts": "ooooooooooooooo0"}, "more than 12 digits"),
        ({"size": [64, "tall"], "counts": "0"}, "RLE size is a list of 2"),
        ({"size": 64, "counts": "0"}, "RLE size is 64"),
        ({"size": [96, 64], "counts": [100, 50, 5994]}, r"mask size \[96, 64\] \(h, w\), image"),
        ("polygon", "segmentation is 'polygon'"),
    ],
)
def test_a_damaged_outline_breaks_its_image_only_and_is_named(outline, message, tmp_path):
    report = check.check(read(write(tmp_path, first(segmentation=outline))))
    (broken,) = report.broken
    assert "example '1'" in broken
    with pytest.raises(DataError, match=message):
        raise DataError(broken)
    assert (report.num_examples, report.num_instances) == (1, 2)


def test_run_lengths_whose_sum_wraps_around_are_refused():
    rle = {"size": [64, 96], "counts": []}
    rle["counts"] = [2**61] * 8
    with pytest.raises(ValueError, match="add up to"):
        to_rle(rle, 64, 96)


@pytest.mark.parametrize("far", [1e3, 3.5e8, 1e18, 1e300, -1e12])
def test_outlines_that_leave_the_image_are_cut_to_it(far):
    mask = coco_mask.decode(to_rle([[24, 16, far, 16, far, 48, 24, 48]], 64, 96))
    assert mask[16:48].any(axis=1).all()
    assert mask.sum() == 32 * (72 if far > 0 else 24)
    # A slanted edge leaves where the straight line does.
    slanted = coco_mask.decode(to_rle([[0, 0, far, abs(far), 0, abs(far)]], 64, 96))
    if far > 0:
        ys, xs = np.mgrid[:64, :96]
        inside = ys >= xs
        assert (slanted.astype(bool) != inside).sum() < 64 * 3


def test_cutting_changes_nothing_inside(tmp_path):
    rng = np.random.default_rng(0)
    for _ in range(40):
        polygon = (rng.random(2 * rng.integers(3, 9)) * 800 - 350).tolist()
        far = coco_mask.decode(to_rle([polygon], 64, 96))
        plain = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([polygon], 64, 96)))
        # Cut edges round in another place than long ones, which moves single pixels of an edge.
        assert (far != plain).sum() <= 2 * (64 + 96)
        assert abs(int(far.sum()) - int(plain.sum())) <= 160


def test_an_outline_without_end_is_refused():
    zigzag = np.stack([np.tile([0.0, 95.0], 30000), np.linspace(0, 60, 60000)], 1).reshape(-1)
    with pytest.raises(ValueError, match="60000 points and is 57"):
        to_rle([zigzag.tolist()], 64, 96)


@pytest.mark.parametrize(
    "outline", [DOG, [[24, 16], [60, 16], [60, 48], [24, 48]], [[[str(v) for v in DOG]]][0]]
)
def test_spellings_of_a_polygon_that_leave_no_doubt(outline, tmp_path):
    assert areas(read(write(tmp_path, first(segmentation=outline)))[0]) == [1152, 160]


@pytest.mark.parametrize("outline", [[], None, [[24, 16, 36, 32]], [[1, 1]], [[]]])
def test_a_box_without_outline_is_told(outline, tmp_path, capsys):
    write(tmp_path, first(segmentation=outline))
    assert check.main(["--dataset", "own", "--root", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "num_instances     3" in said
    assert "1 annotation not used, no usable outline" in said
    assert "boxes_only" in said
    assert "'1' annotation 1 (dog)" in said
    out = ["--root", str(tmp_path), "--out", str(tmp_path.parent / "records")]
    assert build.main(["--dataset", "own", *out]) == 0
    assert "1 annotation not used, no usable outline" in capsys.readouterr().out
    boxes = read(tmp_path, boxes_only=True)
    assert [item.box for item in boxes[0].instances] == [(24, 16, 60, 48), (2, 2, 18, 12)]


def test_a_set_of_boxes_says_why_nothing_can_be_used(tmp_path):
    source = read(write(tmp_path, each("segmentation", lambda _: [])))
    with pytest.raises(DataError, match=r"none of 2 records is usable.*4 annotations.*boxes_only"):
        open_index(source, "own")


@pytest.mark.parametrize("make", [str, float, lambda v: f"a{v}", lambda v: v + 2**70])
def test_ids_of_any_one_kind_are_matched(make, tmp_path):
    def change(content):
        for row in content["images"]:
            row["id"] = make(row["id"])
        each("image_id", make)(content)
        each("id", make)(content)
        both(content, "category_id", make)

    report = check.check(read(write(tmp_path, change)))
    assert report.classes == {"dog": 2, "cat": 2}
    assert not report.broken
    assert not report.unused


def test_numbers_as_text_match_numbers(tmp_path):
    def change(content):
        each("image_id", str)(content)
        each("category_id", float)(content)

    assert check.check(read(write(tmp_path, change))).num_instances == 4


def test_annotations_of_no_image_are_told(tmp_path):
    def change(content):
        content["annotations"][0]["image_id"] = 77
        content["annotations"][1]["image_id"] = None
        content["images"].append({"file_name": "p1.jpg"})

    source = read(write(tmp_path, change))
    report = check.check(source)
    assert report.num_instances == 2
    text = "\n".join(report.unused)
    assert "2 annotations not used, image_id of no image in the file" in text
    assert "annotation 1 of 4 has image_id 77" in text
    assert "1 image record not used, no id: 'p1.jpg'" in text
    assert open_index(source, "own").report.unused[findings.UNKNOWN_IMAGE] == 2


@pytest.mark.parametrize(
    ("value", "crowds"),
    [("0", 0), (None, 0), (False, 0), (0.0, 0), ("1", 4), (True, 4), ("false", 0)],
)
def test_crowd_flags(value, crowds, tmp_path):
    report = check.check(read(write(tmp_path, each("iscrowd", lambda _: value))))
    assert (report.num_crowds, report.num_instances) == (crowds, 4 - crowds)


@pytest.mark.parametrize("value", ["maybe", 2, [1], float("nan")])
def test_a_crowd_flag_that_is_none_is_refused_by_name(value, tmp_path):
    (broken,) = check.check(read(write(tmp_path, first(iscrowd=value)))).broken
    assert "annotation 1" in broken
    assert "iscrowd is neither 0 nor 1" in broken


def test_a_class_of_crowd_regions_alone_is_told_everywhere(tmp_path):
    def change(content):
        for row in content["annotations"]:
            row["iscrowd"] = int(row["category_id"] == 1)

    source = read(write(tmp_path, change))
    for lines in (check.check(source).unused, open_index(source, "own").report.lines()):
        text = "\n".join(lines)
        assert "2 crowd regions (iscrowd 1) are ignored in training" in text
        assert "all 2 annotations of dog are crowd regions (iscrowd 1)" in text
        assert "of cat" not in text


def test_a_category_id_of_two_classes_is_refused(tmp_path):
    write(tmp_path, lambda content: content["categories"].append({"id": "1", "name": "bird"}))
    with pytest.raises(DataError, match="category id '1' is 'dog' and 'bird'"):
        read(tmp_path)
    write(tmp_path, lambda content: content["categories"].append({"id": 1, "name": "dog"}))
    assert check.check(read(tmp_path)).num_instances == 4


def test_an_unlisted_category_is_named_as_it_is_written(tmp_path):
    for value, shown in (("cow", "'cow'"), (None, "(none)"), (9, "9")):
        (broken,) = check.check(read(write(tmp_path, first(category_id=value)))).broken
        assert f"annotation 1 has category id {shown}, which" in broken


def part_of(link, number="ann-100"):
    def change(content):
        each("id", lambda v: f"ann-{v}")(content)
        content["categories"].append({"id": 3, "name": "dog:head"})
        head = {"id": number, "image_id": 1, "category_id": 3, "obj_ann_id": link}
        content["annotations"].append(head | {"segmentation": [[30, 20, 40, 20, 40, 30, 30, 30]]})

    return change


def test_parts_find_their_whole_by_ids_that_are_texts(tmp_path):
    example = read(write(tmp_path, part_of("ann-1")))[0]
    assert [item.parent for item in example.instances] == [-1, -1, 0]
    source = read(write(tmp_path, part_of("ann-77")))
    assert [item.parent for item in source[0].instances] == [-1, -1, -1]
    assert (
        "1 annotation used all the same, part whose whole is not known"
        in check.check(source).unused[0]
    )
    doubled = read(write(tmp_path, part_of("ann-1", number="ann-1")))
    assert doubled[0].instances[2].parent == -1
    assert any("appears twice" in line for line in check.check(doubled).unused)


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


@pytest.mark.parametrize(
    "name", [None, "", 5, "a" * 5000, "p\x001.jpg", "\ud800.jpg", "/dev/zero", "images"]
)
def test_file_names_that_are_none_break_their_image_only(name, tmp_path):
    write(tmp_path, lambda content: content["images"][0].update(file_name=name))
    report = check.check(read(tmp_path))
    assert len(report.broken) == 1
    assert report.num_instances == 2
    report.broken[0].encode("utf-8")  # it can be printed


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
    image.write_bytes(own_data.image() + video.replace(b"\xff\xd9", b"ab"))
    source = read(tmp_path)
    assert len(open_index(source, "own")) == 2
    assert not check.check(source).broken
    image.write_bytes(own_data.image(kind="PNG") + video)
    assert len(open_index(source, "own")) == 2
    # A picture inside it ends, too, which is not the end of the file.
    whole = own_data.image()
    thumbnail = b"\xff\xe1" + struct.pack(">H", 2 + len(whole)) + whole
    image.write_bytes(whole[:2] + thumbnail + whole[2:-200])
    assert len(open_index(source, "own")) == 1
    assert len(check.check(source).broken) == 1


def test_a_png_with_a_wrong_checksum_is_found_by_the_scan(tmp_path):
    write(tmp_path)
    data = bytearray(own_data.image(kind="PNG"))
    data[data.index(b"IDAT") + 10] ^= 0xFF
    (tmp_path / "images/p1.jpg").write_bytes(data)
    source = read(tmp_path)
    assert open_index(source, "own").report.dropped == {"image": 1}
    assert len(check.check(source).broken) == 1


def test_a_repaired_image_is_used_again(tmp_path):
    write(tmp_path / "set")
    image = tmp_path / "set/images/p1.jpg"
    image.write_bytes(own_data.image()[:500])
    cache = tmp_path / "cache"
    assert len(open_index(read(tmp_path / "set"), "own", cache=cache)) == 1
    image.write_bytes(own_data.image())
    assert len(open_index(read(tmp_path / "set"), "own", cache=cache)) == 2
    kept = open_index(read(tmp_path / "set"), "own", cache=cache)
    assert isinstance(kept.position, np.memmap)
    assert len(list(cache.iterdir())) == 2


def test_a_build_goes_on_with_what_the_files_hold_now(tmp_path, capsys):
    write(tmp_path / "set")
    image = tmp_path / "set/images/p1.jpg"
    image.write_bytes(own_data.image()[:500])
    command = ["--dataset", "own", "--root", str(tmp_path / "set"), "--out", str(tmp_path / "out")]
    command += ["--max-broken", "1", "--shard-records", "1"]
    assert build.main(command) == 0
    assert "1 examples of 2 records" in capsys.readouterr().out
    second = next((tmp_path / "out/own/train/1.0.0").glob("*00001-of-00002"))
    age = second.stat().st_mtime_ns
    image.write_bytes(own_data.image())
    assert build.main(command) == 0
    assert "2 examples of 2 records" in capsys.readouterr().out
    assert second.stat().st_mtime_ns == age


@pytest.mark.parametrize("damage", ["{", "[]", "{}"])
def test_a_damaged_cache_is_made_again(damage, tmp_path):
    write(tmp_path / "set")
    cache = tmp_path / "cache"
    open_index(read(tmp_path / "set"), "own", cache=cache)
    (report,) = cache.glob("*/report.json")
    report.write_text(damage)
    assert len(open_index(read(tmp_path / "set"), "own", cache=cache)) == 2
    assert json.loads(report.read_text())["records"] == 2


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, caplog):
    index = open_index(read(write(tmp_path)), "own", cache="/dev/null/x")
    assert len(index) == 2
    assert "cannot be written" in caplog.text


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_frame_is_the_one_that_fits(orientation, kind, tmp_path):
    """Annotations as a label tool makes them: on the displayed image."""
    write(tmp_path)
    (tmp_path / "images/p1.jpg").write_bytes(own_data.image(orientation, kind))
    with Image.open(tmp_path / "images/p1.jpg") as opened:
        stored = np.asarray(opened.convert("RGB"))
        from PIL import ImageOps

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
    made = own_data.content()
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
    (tmp_path / "images/p1.jpg").write_bytes(own_data.image(6))
    example = read(tmp_path)[0]  # 96x64 stored and stated; displayed 64x96
    assert not example.is_displayed
    mask = coco_mask.decode(example.instances[0].rle).astype(bool)
    assert check.decode_example(example)[mask][:, 0].mean() > 200


def test_a_frame_that_fits_neither_is_told(tmp_path):
    write(tmp_path, lambda content: content["images"][0].update(width=50))
    (tmp_path / "images/p1.jpg").write_bytes(own_data.image(6))
    (broken,) = check.check(read(tmp_path)).broken
    assert "says 50x64 pixels, the stored image has 96x64" in broken
    assert "displayed 64x96 (EXIF orientation 6)" in broken


def test_deep_json_and_great_values_never_end_the_process(tmp_path):
    """The commands themselves, within two gigabytes."""
    deep = "[" * 900 + "]" * 900
    text = json.dumps(own_data.content()).replace(json.dumps([DOG]), deep, 1)
    write(tmp_path)
    (tmp_path / "annotations/train.json").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "data_pipelines.check", "--dataset", "own", "--root", tmp_path],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (8 * 10**9,) * 2),
    )
    assert done.returncode == 1, done.stderr
    assert "broken            1" in done.stdout


def test_the_export_of_a_rotated_image_trains_here(tmp_path):
    """What the demo page and `segment` write for a phone's image, with the image beside it."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images/phone.jpg").write_bytes(own_data.image(6))
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


def test_messages_about_half_letters_can_be_printed(tmp_path):
    write(tmp_path, lambda content: content["images"].append("\ud800"))
    with pytest.raises(DataError, match="images holds a str") as caught:
        read(tmp_path)
    str(caught.value).encode("utf-8")
