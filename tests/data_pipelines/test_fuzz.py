"""Files that nobody thought of: read as a naive reader reads them, or refused by name.

Each strategy makes a small dataset and may damage one value of it. Whatever comes: every annotation
becomes an instance, a crowd region or a counted loss; only `DataError` is raised; and damage of one
annotation leaves the other images as they were.
"""

import contextlib
import copy
import functools
import io
import json
import pathlib
import tempfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from data_pipelines import check, decode, findings
from data_pipelines.index.scan import look_at
from data_pipelines.sources import open_source
from data_pipelines.sources.single_dataset import open_single_dataset
from data_pipelines.vocabulary import build_vocabulary
from semsam_jax.core.errors import DataError
from tests.data_pipelines import custom_data

pytestmark = pytest.mark.nightly

FUZZ = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
HEIGHT, WIDTH = 24, 40
UNION = build_vocabulary(["coco"])


@functools.cache
def jpeg(height=HEIGHT, width=WIDTH):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, "JPEG")
    return buffer.getvalue()


ODD_VALUES = st.sampled_from(
    [None, True, False, -1, 0, 1.5, float("nan"), float("inf"), -float("inf"), 1e308, 3.5e8,
     10**30, -(2**63), "", "x", "1", "NaN", "\ud800", "a\x00b", [], {}, [[]], [[[1]]], {"id": 1},
     ["a", 1], [1, 2, 3, 4], [[1, 2, 3, 4]], {"size": [1, 1], "counts": [1]},
     {"size": [HEIGHT, WIDTH], "counts": [-1, 961]}, {"size": [10**9, 10**9], "counts": "0"},
     {"size": [HEIGHT, WIDTH], "counts": 10**12}, [[0, 0, 1e300, 0, 1e300, 1e300]]]
)  # fmt: skip


def places(value, path=()):
    """Every place of a JSON value that can be replaced."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else ()
    items = enumerate(value) if isinstance(value, list) else items
    for key, inner in items:
        found += places(inner, (*path, key))
    return found


def replaced(content, path, value):
    """The content with one value replaced."""
    made = copy.deepcopy(content)
    inner = made
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return made


coordinate = st.one_of(
    st.integers(-10, 50), st.floats(-30, 70).map(lambda v: round(v, 2)), st.just(0.5)
)


@st.composite
def segmentations(draw):
    """A mask in one of COCO's spellings."""
    kind = draw(st.sampled_from(["polygons", "counts", "text"]))
    if kind == "polygons":
        polygon = st.lists(coordinate, min_size=3, max_size=6).flatmap(
            lambda xs: st.lists(coordinate, min_size=len(xs), max_size=len(xs)).map(
                lambda ys: [v for pair in zip(xs, ys, strict=True) for v in pair]
            )
        )
        return draw(st.lists(polygon, min_size=1, max_size=3))
    edges = sorted(draw(st.lists(st.integers(0, HEIGHT * WIDTH), max_size=8)))
    counts = np.diff([0, *edges, HEIGHT * WIDTH]).tolist()
    rle = {"size": [HEIGHT, WIDTH], "counts": counts}
    if kind == "text":
        packed = coco_mask.frPyObjects(rle, HEIGHT, WIDTH)
        rle = {"size": [HEIGHT, WIDTH], "counts": packed["counts"].decode()}
    return rle


@st.composite
def coco_files(draw):
    """A whole COCO-format file of two or three images."""
    number = draw(st.integers(2, 3))
    images = [
        {"id": 10 * n, "file_name": f"p{n}.jpg", "height": HEIGHT, "width": WIDTH}
        for n in range(number)
    ]
    annotations = [
        {
            "id": n + 1,
            "image_id": 10 * draw(st.integers(0, number - 1)),
            "category_id": draw(st.integers(1, 2)),
            "iscrowd": draw(st.integers(0, 1)),
            "bbox": [1, 2, 3, 4],
            "segmentation": draw(segmentations()),
        }
        for n in range(draw(st.integers(1, 6)))
    ]
    categories = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    return {"images": images, "annotations": annotations, "categories": categories}


spellings = st.sampled_from([int, str, float])


def respelled(content, of_images, of_notes):
    """The same file with its ids as other JSON types."""
    made = copy.deepcopy(content)
    for image in made["images"]:
        image["id"] = of_images(image["id"])
    for row in made["annotations"]:
        row["image_id"] = of_notes(row["image_id"])
        row["category_id"] = of_notes(row["category_id"])
        row["iscrowd"] = of_images(row["iscrowd"])
    return made


@contextlib.contextmanager
def folder_of(content, number=3):
    """A custom dataset on disk."""
    with tempfile.TemporaryDirectory() as name:
        root = pathlib.Path(name)
        (root / "annotations").mkdir()
        (root / "images").mkdir()
        (root / "annotations/train.json").write_text(json.dumps(content))
        for n in range(number):
            (root / f"images/p{n}.jpg").write_bytes(jpeg())
        yield root


def is_in_fractions(row):
    """Whether polygons may be in fractions of the image, which are left out and counted."""
    outlines = row["segmentation"]
    values = [v for outline in outlines for v in outline] if isinstance(outlines, list) else []
    return bool(values) and min(values) >= 0 and 0 < max(values) <= 1


def naive_masks(root, is_crowd):
    """Masks of each image as pycocotools reads them, empty ones left out."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(root / "annotations/train.json")
    found = {}
    for image in coco.dataset["images"]:
        rows = [row for row in coco.imgToAnns[image["id"]] if not is_in_fractions(row)]
        masks = [coco.annToMask(row) for row in rows if row["iscrowd"] == is_crowd]
        found[str(image["id"])] = [mask for mask in masks if mask.any()]
    return found


def drawn(items):
    return [coco_mask.decode(item.rle) for item in items]


def assert_equal(ours, naive):
    assert len(ours) == len(naive)
    for mine, theirs in zip(ours, naive, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@FUZZ
@given(coco_files(), spellings, spellings)
def test_coco_files_are_read_as_pycocotools_reads_them(content, of_images, of_notes):
    with folder_of(content) as root:
        naive, crowds = naive_masks(root, 0), naive_masks(root, 1)
        text = json.dumps(respelled(content, of_images, of_notes))
        (root / "annotations/train.json").write_text(text)
        source = open_single_dataset("own", root, "train", {})
        total = sum(item.count for item in source.unused)
        for position, name in enumerate(source.example_ids):
            example = source[position]
            assert_equal(drawn(example.instances), naive[name])
            assert_equal(drawn(example.ignored), crowds[name])
            assert look_at(example).reason not in ("image", "annotation")
            total += len(example.instances) + len(example.ignored)
            total += sum(item.count for item in example.unused)
        assert total == len(content["annotations"])


@FUZZ
@given(coco_files(), st.data())
def test_one_odd_value_in_a_coco_file_harms_one_image(content, data):
    path = data.draw(st.sampled_from(places(content)))
    made = replaced(content, path, data.draw(ODD_VALUES))
    with folder_of(content) as root:
        before = list(open_single_dataset("own", root, "train", {}))
        (root / "annotations/train.json").write_text(json.dumps(made))
        try:
            source = open_single_dataset("own", root, "train", {})
        except DataError as error:
            str(error).encode("utf-8")
            return
        report = check.check(source)
        for line in (*report.broken, *report.unused):
            line.encode("utf-8")
        if path[0] == "annotations" and len(path) > 1:
            owner = str(content["annotations"][path[1]]["image_id"])
            new_owner = made["annotations"][path[1]]
            new_owner = new_owner.get("image_id") if isinstance(new_owner, dict) else None
            for position, name in enumerate(source.example_ids):
                if name not in (owner, str(new_owner)):
                    assert source[position] == before[position]


@st.composite
def panoptic_files(draw):
    """Ids [h,w] of one image and the segments that its JSON lists."""
    numbers = draw(st.lists(st.integers(1, 2**24 - 1), min_size=1, max_size=5, unique=True))
    grid = st.lists(st.sampled_from([0, *numbers]), min_size=24, max_size=24)
    ids = np.kron(np.array(draw(grid)).reshape(4, 6), np.ones((3, 4), int))
    listed = draw(st.lists(st.sampled_from(numbers), unique=True))
    segments = [
        {"id": n, "category_id": draw(st.sampled_from([1, 3, 187])), "iscrowd": n % 2}
        for n in listed
    ]
    return ids, segments


@contextlib.contextmanager
def panoptic_folder(ids, segments, change=lambda content: content, damage=lambda data: data):
    classes = {1: "person", 3: "car", 187: "sky-other-merged"}
    content = change(
        {
            "images": [
                {"id": n, "file_name": f"{n}.jpg", "height": 12, "width": 24} for n in (1, 2)
            ],
            "annotations": [
                {"image_id": n, "file_name": f"{n}.png", "segments_info": segments} for n in (1, 2)
            ],
            "categories": [{"id": number, "name": name} for number, name in classes.items()],
        }
    )
    pixels = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    with tempfile.TemporaryDirectory() as name:
        root = pathlib.Path(name)
        pngs = root / "annotations/panoptic_train2017"
        pngs.mkdir(parents=True)
        (root / "train2017").mkdir()
        pngs.with_suffix(".json").write_text(json.dumps(content))
        for n in (1, 2):
            (root / f"train2017/{n}.jpg").write_bytes(jpeg(12, 24))
            png = buffer.getvalue()
            (pngs / f"{n}.png").write_bytes(damage(png) if n == 1 else png)
        yield root


@FUZZ
@given(panoptic_files())
def test_panoptic_files_lose_nothing(made):
    ids, segments = made
    with panoptic_folder(ids, segments) as root:
        listed, present = {s["id"] for s in segments}, set(np.unique(ids[ids > 0]).tolist())
        swapped = {(n & 255) << 16 | n & 0xFF00 | n >> 16 for n in present - listed}
        if swapped and swapped <= listed - present:
            with pytest.raises(DataError, match="red and blue swapped"):
                open_source("coco", root, "train", UNION)[0]
            return
        example = open_source("coco", root, "train", UNION)[0]
        for items, flag in ((example.instances, 0), (example.ignored, 1)):
            wanted = [ids == s["id"] for s in segments if s["iscrowd"] == flag]
            wanted = [mask for mask in wanted if mask.any()]
            assert len(wanted) == len(items)
            for mask, item in zip(wanted, drawn(items), strict=True):
                np.testing.assert_array_equal(mask, item)
        lost = {item.reason: item.count for item in example.unused}
        assert lost.get(findings.EMPTY_SEGMENT, 0) == len(listed - present)
        assert lost.get(findings.UNLISTED_SEGMENT, 0) == len(present - listed)


@FUZZ
@given(panoptic_files(), st.data())
def test_one_odd_value_in_a_panoptic_file_is_refused_or_harmless(made, data):
    def change(content):
        path = data.draw(st.sampled_from(places(content)))
        return replaced(content, path, data.draw(ODD_VALUES))

    def damage(png):
        at = data.draw(st.integers(0, len(png) - 1))
        cut = data.draw(st.sampled_from([None, at]))
        return png[:cut] if cut is not None else png[:at] + bytes([png[at] ^ 255]) + png[at + 1 :]

    kept = data.draw(st.booleans())
    with (
        panoptic_folder(
            *made, change if kept else lambda content: content, (lambda p: p) if kept else damage
        ) as root,
        contextlib.suppress(DataError),
    ):
        report = check.check(open_source("coco", root, "train", UNION))
        for line in (*report.broken, *report.unused):
            line.encode("utf-8")


@st.composite
def sa1b_files(draw):
    """SA-1B's JSON of one image."""
    annotations = [
        {
            "id": n,
            "segmentation": draw(segmentations()),
            "predicted_iou": draw(st.floats(0, 1)),
            "stability_score": draw(st.floats(0, 1)),
        }
        for n in range(draw(st.integers(0, 5)))
    ]
    image = {"image_id": 1, "file_name": "sa_1.jpg", "height": HEIGHT, "width": WIDTH}
    return {"image": image, "annotations": annotations}


@contextlib.contextmanager
def sa1b_folder(content):
    with tempfile.TemporaryDirectory() as name:
        root = pathlib.Path(name)
        (root / "sa_1.jpg").write_bytes(jpeg())
        (root / "sa_1.json").write_text(json.dumps(content))
        yield root


@FUZZ
@given(sa1b_files())
def test_segment_anything_files_are_read_as_pycocotools_reads_them(content):
    with sa1b_folder(content) as root:
        example = open_source("sa1b", root, "train", build_vocabulary([]))[0]
        naive = COCO()
        naive.imgs = {1: content["image"]}
        rows = [row | {"image_id": 1} for row in content["annotations"]]
        in_pixels = [row for row in rows if not is_in_fractions(row)]
        masks = [mask for mask in map(naive.annToMask, in_pixels) if mask.any()]
        assert_equal(drawn(example.instances), masks)
        lost = sum(item.count for item in example.unused)
        assert len(example.instances) + lost == len(rows)


@FUZZ
@given(sa1b_files(), st.data())
def test_one_odd_value_in_a_segment_anything_file_is_refused_or_harmless(content, data):
    path = data.draw(st.sampled_from(places(content)))
    with sa1b_folder(replaced(content, path, data.draw(ODD_VALUES))) as root:
        report = check.check(open_source("sa1b", root, "train", build_vocabulary([])))
        assert report.num_examples + len(report.broken) == 1
        for line in (*report.broken, *report.unused):
            line.encode("utf-8")


@FUZZ
@given(st.binary(max_size=40), st.data(), st.sampled_from(["JPEG", "PNG"]))
def test_damaged_images_raise_data_errors_alone(noise, data, kind):
    image = custom_data.image(data.draw(st.integers(1, 8)), kind)
    at = data.draw(st.integers(0, len(image)))
    bent = image[:at] + noise + image[at + data.draw(st.integers(0, 40)) :]
    for look in (
        lambda: decode.read_header(bent),
        lambda: decode.check_header(bent, where="t", size_hw=custom_data.SIZE_HW),
        lambda: decode.decode_image(bent, where="t", is_displayed=True),
    ):
        with contextlib.suppress(DataError):
            look()
