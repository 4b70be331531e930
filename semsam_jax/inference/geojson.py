"""Masks of a georeferenced image as GeoJSON: polygons in longitude and latitude (RFC 7946)."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from semsam_jax.core import rle
from semsam_jax.core.errors import DataError
from semsam_jax.inference.convert_results import (
    Record,
    checked_records,
    record_mask,
    record_name,
    record_score,
)

if TYPE_CHECKING:
    from affine import Affine
    from rasterio.crs import CRS

_DECIMALS = 8  # about a millimetre
_WGS84 = "EPSG:4326"


def to_geojson(records: Sequence[Record], transform: "Affine", crs: "CRS") -> dict:
    """A feature for each mask, with holes; `name`, `score`, `level` and `area_px` as properties.

    Args:
        records: the masks.
        transform: of the image: from column and row to its coordinates.
        crs: of the image.

    Raises:
        DataError: `rasterio` is not installed.
    """
    try:
        import rasterio.features
        import rasterio.warp
        import rasterio.windows
    except ImportError as error:
        raise DataError(
            "geojson: rasterio is not installed; run `pip install 'semsam-jax[geo]'`."
        ) from error
    features = []
    for number, record in enumerate(checked_records(records), start=1):
        packed = record["segmentation"]
        if not isinstance(packed, Mapping):
            packed = rle.encode(record_mask(record))
        left, top, w, h = (int(v) for v in rle.mask_boxes([_compressed(packed)])[0])
        if not w or not h:
            continue
        window = rle.decode_window(packed, left, top, left + w, top + h)
        place = rasterio.windows.transform(rasterio.windows.Window(left, top, w, h), transform)
        # Connected by edges: with corners, rings would touch themselves, which is not valid.
        found = rasterio.features.shapes(window.astype("uint8"), window, 4, place)
        polygons = [shape["coordinates"] for shape, _ in found]
        shape = {"type": "MultiPolygon", "coordinates": polygons}
        shape = rasterio.warp.transform_geom(crs, _WGS84, shape, precision=_DECIMALS)
        about = {
            "name": record_name(record) or "",
            "score": round(record_score(record), 4),
            "level": record.get("level"),
            "area_px": int(window.sum()),
        }
        features.append({"type": "Feature", "id": number, "geometry": shape, "properties": about})
    return {"type": "FeatureCollection", "features": features}


def _compressed(packed: Mapping) -> dict:
    """RLE whose counts are text, as pycocotools takes it."""
    return rle.compress(rle.runs_of(packed), tuple(packed["size"]))
