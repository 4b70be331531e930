"""Tiles: where they are, masks joined across seams, georeferenced files."""

import itertools
import json

import numpy as np
import pytest
from PIL import Image

from semsam_jax.core import rle
from semsam_jax.core.errors import DataError, PromptError
from semsam_jax.inference import auto
from semsam_jax.inference.found import FoundMask
from semsam_jax.inference.geojson import to_geojson
from semsam_jax.inference.images import load_image
from semsam_jax.inference.large_images import open_large
from semsam_jax.inference.mask_generator import MaskGenerator
from semsam_jax.inference.mask_selection import inclusive_box
from semsam_jax.inference.results import Records
from semsam_jax.inference.tiles import SeamMerger, join_pieces, tile_boxes

HW = (300, 420)
TILE, OVERLAP = 128, 32


def disc(x, y, radius):
    rows, columns = np.mgrid[: HW[0], : HW[1]]
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius**2


def seen_in(mask, tile, token):
    """What a perfect model finds of a mask in a tile."""
    x0, y0, x1, y1 = tile
    part = mask[y0:y1, x0:x1]
    box = inclusive_box(part)
    return FoundMask(
        runs=rle.run_lengths(part, (0, 0), part.shape), area=int(part.sum()), clean_box=box,
        changed=False, box=box, iou=0.9, stability=0.9, point=(float(box[0]), float(box[1])),
        token=token, crop=(0, 0, x1 - x0, y1 - y0), object=None, part=None,
    )  # fmt: skip


def merged(masks):
    """Joined masks of (mask, token) pairs that every tile sees."""
    merger = SeamMerger()
    for tile in tile_boxes(HW, TILE, OVERLAP):
        x0, y0, x1, y1 = tile
        seen = [(mask, token) for mask, token in masks if mask[y0:y1, x0:x1].any()]
        merger.add(tile, [seen_in(mask, tile, token) for mask, token in seen])
    return [join_pieces(group, HW) for group in merger.groups()]


def as_mask(found):
    return rle.decode(rle.compress(found.runs, HW))


def test_tiles_cover_the_image_and_have_one_size():
    boxes = tile_boxes(HW, TILE, OVERLAP)
    covered = np.zeros(HW, bool)
    for x0, y0, x1, y1 in boxes:
        assert (x1 - x0, y1 - y0) == (TILE, TILE)
        covered[y0:y1, x0:x1] = True
    assert covered.all()
    rows = sorted({box[1] for box in boxes})
    assert all(a + TILE - b >= OVERLAP for a, b in itertools.pairwise(rows))
    assert tile_boxes((50, 500), TILE, OVERLAP)[0] == (0, 0, 128, 50)
    assert tile_boxes((50, 60), TILE, OVERLAP) == [(0, 0, 60, 50)]


def test_objects_are_whole_and_none_comes_twice():
    """Large, small, in a corner of four tiles, in one strip, and one inside another."""
    whole, part = disc(210, 150, 110), disc(205, 145, 30)
    others = [disc(112, 112, 15), disc(112, 40, 8), disc(30, 250, 20), disc(400, 10, 30)]
    masks = [(whole, 0), (part, 3), *((mask, 1) for mask in others)]
    found = merged(masks)
    assert len(found) == len(masks)
    for mask, token in masks:
        (one,) = [f for f in found if f.token == token and (as_mask(f) & mask).any()
                  and (as_mask(f) == mask).all()]  # fmt: skip
        assert one.area == mask.sum()
        assert one.clean_box.tolist() == inclusive_box(mask).tolist()
        x, y = one.point
        assert mask[int(y) : int(y) + 200, int(x) : int(x) + 200].any()


def test_what_does_not_agree_stays_apart():
    left, right = np.zeros((2, *HW), bool)
    left[50:60, 10:128] = True  # both reach into the strip, in different rows
    right[80:90, 96:200] = True
    assert len(merged([(left, 1), (right, 1)])) == 2
    merger = SeamMerger()
    tiles = tile_boxes(HW, TILE, OVERLAP)
    merger.add(tiles[0], [seen_in(disc(112, 60, 12), tiles[0], 1)])
    merger.add(tiles[1], [seen_in(disc(112, 60, 6), tiles[1], 1)])  # a quarter of its area
    assert len(list(merger.groups())) == 2


def test_a_mask_larger_than_a_slab_is_joined(monkeypatch):
    monkeypatch.setattr("semsam_jax.inference.tiles._SLAB", 50)
    mask = disc(210, 150, 120)
    (found,) = merged([(mask, 2)])
    assert (as_mask(found) == mask).all()


def test_the_generator_takes_images_in_tiles(tiny_model):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (*HW, 3), np.uint8)
    loose = {"pred_iou_thresh": -10.0, "stability_score_thresh": 0.0, "output_mode": "coco_rle"}
    few = MaskGenerator(tiny_model, 2, level=1, tile=256, tile_overlap=32, **loose)
    records = few.generate(image)
    assert records
    assert records.image_hw == HW
    for record in records:
        assert record["segmentation"]["size"] == list(HW)
        assert rle.decode(record["segmentation"]).sum() == record["area"]
    # One tile that holds the whole image is the whole image.
    whole = MaskGenerator(tiny_model, 2, level=1, **loose).generate(image[:256, :256])
    one = MaskGenerator(tiny_model, 2, level=1, tile=256, **loose).generate(image[:256, :256])
    assert [r["segmentation"] for r in one] == [r["segmentation"] for r in whole]
    assert MaskGenerator(tiny_model, tile=200).tile_overlap == 100  # half a tile at most
    for wrong in ({"tile": 64}, {"tile": 256, "tile_overlap": 200}, {"tile_overlap": 64}):
        with pytest.raises(PromptError, match="tile"):
            MaskGenerator(tiny_model, **wrong)


def test_a_georeferenced_file_gives_places_on_the_ground(tmp_path, monkeypatch):
    rasterio = pytest.importorskip("rasterio", reason="pip install rasterio")
    from rasterio.transform import from_origin

    path, out = tmp_path / "field.tif", tmp_path / "out"
    pixels = np.random.default_rng(0).integers(0, 255, (3, *HW), np.uint8)
    about = {"width": HW[1], "height": HW[0], "count": 3, "dtype": "uint8", "crs": "EPSG:32633"}
    with rasterio.open(path, "w", transform=from_origin(5e5, 5e6, 10, 10), **about) as file:
        file.write(pixels)
    with open_large(path) as source:
        assert source.is_georeferenced
        assert (source.read(10, 20, 60, 50) == pixels[:, 20:50, 10:60].transpose(1, 2, 0)).all()
        assert source.overview(100).shape == (71, 100, 3)
    mask = disc(100, 100, 40) & ~disc(100, 100, 10)
    record = {"segmentation": rle.encode(mask), "area": int(mask.sum()), "score": 0.5, "level": 2}
    record |= {"bbox": [60.0, 60.0, 80.0, 80.0], "predicted_iou": 0.5}

    seen = []

    class Generator:
        tile, tile_overlap = 128, 32

        def generate(self, source):
            seen.append(source.read(0, 0, 20, 10).shape)
            return Records([record], HW)

    monkeypatch.setattr(auto, "rle", rle)
    (out / "overlays").mkdir(parents=True)
    assert auto._segment_one(Generator(), path, 1, out / "field.json", {}) == 1
    assert seen == [(10, 20, 3)]
    (feature,) = json.loads((out / "field.geojson").read_text())["features"]
    assert feature["properties"] == {"name": "", "score": 0.5, "level": 2, "area_px": mask.sum()}
    (polygon,) = feature["geometry"]["coordinates"]
    assert len(polygon) == 2  # the outline and its hole
    lon, lat = np.array(polygon[0]).T
    # Zone 33 north: 15 degrees east at its middle, which is x = 500 km.
    assert 15 + 600 / 78_800 < lon.min() < lon.max() < 15 + 1400 / 78_800 * 1.01
    assert np.ptp(lat) == pytest.approx(81 * 10 / 111_130, rel=0.02)
    assert json.loads((out / "field.json").read_text())["image"]["width"] == HW[1]
    with pytest.raises(DataError, match="TIFF"):
        open_large(_broken(tmp_path))
    with rasterio.open(path, "w", **about | {"dtype": "uint16"}) as file:
        file.write(pixels.astype(np.uint16) << 4)
    with (
        pytest.warns(UserWarning, match=r"field\.tif: an image of 16 bits"),
        open_large(path) as source,
    ):
        source.read(0, 0, 20, 10)


@pytest.mark.parametrize(
    "kind", ["grey", "palette", "black and white", "negative", "rotated", "RGBA", "LA"]
)
def test_a_file_read_in_windows_looks_as_displayed(tmp_path, kind):
    pytest.importorskip("rasterio", reason="pip install rasterio")
    pixels = np.random.default_rng(0).integers(0, 255, (30, 40), np.uint8)
    image, options = Image.fromarray(pixels), {}
    if kind == "palette":
        image = Image.fromarray(np.stack([pixels, 255 - pixels, pixels // 2], -1)).quantize(16)
    elif kind == "black and white":
        image = image.convert("1")
    elif kind == "negative":
        options["tiffinfo"] = {262: 0}  # white is zero
    elif kind == "rotated":
        options["tiffinfo"] = {274: 6}  # the camera was turned by 90 degrees
    elif kind in ("RGBA", "LA"):  # a mosaic with transparent pixels
        image = image.convert(kind)
        image.putalpha(Image.fromarray(pixels.T.reshape(pixels.shape)))
    image.save(tmp_path / "a.tif", **options)
    displayed = load_image(tmp_path / "a.tif")
    with open_large(tmp_path / "a.tif") as source:
        assert source.image_hw == displayed.shape[:2]
        assert (source.read(5, 10, 25, 28) == displayed[10:28, 5:25]).all()


def test_the_copy_of_a_file_has_the_pixels_that_were_segmented(tmp_path):
    rasterio = pytest.importorskip("rasterio", reason="pip install rasterio")
    from rasterio.transform import from_origin

    # Pillow reads no colours of 16 bits that lie band by band, and turns what GDAL does not.
    path, out = tmp_path / "field.tif", tmp_path / "out"
    pixels = np.broadcast_to(np.arange(256, dtype=np.uint16) << 8, (5, 200, 256))
    about = {"width": 256, "height": 200, "count": 5, "dtype": "uint16", "crs": "EPSG:32633"}
    with rasterio.open(path, "w", transform=from_origin(5e5, 5e6, 10, 10), **about) as file:
        file.write(pixels)

    class Generator:
        tile, tile_overlap = 128, 32

        def generate(self, source):
            return Records([], source.image_hw)

    (out / "overlays").mkdir(parents=True)
    auto._segment_one(Generator(), path, 1, out / "field.json", {"tile": 128})
    copy = np.asarray(Image.open(out / "field.jpg")).astype(int)
    assert copy.shape == (200, 256, 3)
    assert np.abs(copy - np.arange(256)[None, :, None]).max() < 5


def test_places_of_an_earlier_run_do_not_stay(tmp_path):
    path, out = tmp_path / "a.png", tmp_path / "out"
    Image.new("RGB", (40, 30)).save(path)

    class Generator:
        tile = None

        def generate(self, image):
            return Records([], image.shape[:2])

    (out / "overlays").mkdir(parents=True)
    for settings, stays in (({"tile": None}, True), ({"tile": 128}, False)):
        (out / "a.json").write_text(json.dumps({"settings": settings}))
        (out / "a.geojson").write_text("{}")
        auto._segment_one(Generator(), path, 1, out / "a.json", {})
        assert (out / "a.geojson").exists() == stays  # a file of the user's own is left alone


def test_no_ring_of_a_place_touches_itself():
    pytest.importorskip("rasterio", reason="pip install rasterio")
    from rasterio.crs import CRS
    from rasterio.transform import from_origin

    mask = np.random.default_rng(0).random((12, 12)) < 0.5
    records = [{"segmentation": rle.encode(mask)}]
    found = to_geojson(records, from_origin(10, 50, 0.1, 0.1), CRS.from_epsg(4326))
    (feature,) = found["features"]
    for ring in (ring for polygon in feature["geometry"]["coordinates"] for ring in polygon):
        corners = [tuple(corner) for corner in ring[:-1]]
        assert len(set(corners)) == len(corners)


def _broken(folder):
    path = folder / "broken.tif"
    path.write_bytes(b"II*\0" + b"\xff" * 50)
    return path
