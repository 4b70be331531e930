"""Images that are read window by window: arrays, files, and TIFF files of any size."""

import abc
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8
from PIL import Image, TiffImagePlugin

from semsam_jax.core.errors import DataError
from semsam_jax.inference.images import DARK, ImageLike, load_image, warn_of_dark
from semsam_jax.inference.visualize import display_size

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

_TIFF = (".tif", ".tiff")
_ORIENTATION = 0x0112
MAX_LARGE_PIXELS = 1 << 31  # what an RLE can count


class LargeImage(abc.ABC):
    """An image that is read window by window; a context manager.

    Attributes:
        image_hw: height and width.
    """

    image_hw: tuple[int, int]

    @abc.abstractmethod
    def read(self, x0: int, y0: int, x1: int, y1: int) -> UInt8[np.ndarray, "h w 3"]:
        """Pixels of a window as RGB."""

    @abc.abstractmethod
    def overview(self, max_side: int) -> UInt8[np.ndarray, "h w 3"]:
        """The whole image, no side longer than this."""

    @abc.abstractmethod
    def close(self) -> None:
        """Releases the file."""

    def __enter__(self) -> "LargeImage":
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_large(image: ImageLike) -> LargeImage:
    """Opens an image of any size.

    A TIFF file is read window by window where `rasterio` is installed (the extra `geo`), and keeps
    its georeference. Everything else is decoded as a whole, three bytes for each pixel, also a TIFF
    file that is displayed rotated.

    Raises:
        DataError: not readable, or more than 2**31 pixels.
    """
    if isinstance(image, str | os.PathLike) and Path(image).suffix.lower() in _TIFF:
        dataset = _open_raster(Path(image))
        if dataset is not None:
            raster = RasterImage(dataset)
            is_upright = dataset.driver == "GTiff" and not _is_rotated(Path(image))
            if raster.is_georeferenced or is_upright:
                return raster
            raster.close()
    return _WholeImage(image)


class RasterImage(LargeImage):
    """A TIFF file through rasterio.

    Args:
        dataset: an open one, with one band (grey, or the indices of a palette), three (RGB) or more
            (the first three). Transparent pixels of an alpha band are white, as in `load_image`.
    """

    def __init__(self, dataset: "DatasetReader"):
        self.dataset = dataset
        self.image_hw = (dataset.height, dataset.width)
        if dataset.height * dataset.width >= MAX_LARGE_PIXELS:
            raise DataError(f"{dataset.name}: more than 2**31 pixels; cut it into pieces.")
        if dataset.dtypes[0] not in ("uint8", "uint16"):
            raise DataError(
                f"{dataset.name}: values are {dataset.dtypes[0]}; expected 8 or 16 bits, so scale "
                f"them first."
            )
        kinds = [kind.name for kind in dataset.colorinterp]
        self._alpha = [kinds.index("alpha") + 1] if "alpha" in kinds[1:] else []
        colours = dataset.count - len(self._alpha)
        self._bands = ([1, 1, 1] if colours < 3 else [1, 2, 3]) + self._alpha
        self._palette = _palette(dataset) if dataset.count == 1 else None
        self._is_negative = dataset.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES"
        self._highest = 0  # of the 16-bit values that were read

    @property
    def is_georeferenced(self) -> bool:
        """Whether pixels have geographic coordinates."""
        return self.dataset.crs is not None and not self.dataset.transform.is_identity

    def read(self, x0: int, y0: int, x1: int, y1: int) -> UInt8[np.ndarray, "h w 3"]:
        """Pixels of a window; 16-bit values keep their high byte, see `load_image`."""
        import rasterio

        try:
            bands = self.dataset.read(self._bands, window=((y0, y1), (x0, x1)))
        except rasterio.errors.RasterioError as error:
            raise DataError(f"{self.dataset.name}: cannot be read ({error}).") from error
        return self._pixels(bands)

    def overview(self, max_side: int) -> UInt8[np.ndarray, "h w 3"]:
        """A small copy, decoded at its size where the file has overviews."""
        scale = min(1.0, max_side / max(self.image_hw))
        shape = [max(1, round(side * scale)) for side in self.image_hw]
        bands = self.dataset.read(self._bands, out_shape=(len(self._bands), *shape))
        return self._pixels(bands)

    def close(self) -> None:
        """Closes the file, and warns if all 16-bit values that were read are dark."""
        if 0 < self._highest < DARK:
            warn_of_dark(self.dataset.name)
        self.dataset.close()

    def _pixels(self, bands: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
        if self._palette is not None:
            return self._palette[bands[0]]
        if self._is_negative:
            bands = np.iinfo(bands.dtype).max - bands
        if bands.dtype == np.uint16:
            self._highest = max(self._highest, int(bands[:3].max()))
        pixels = np.ascontiguousarray(_eight_bits(bands).transpose(1, 2, 0))
        return load_image(pixels) if self._alpha else pixels


class WatchedImage(LargeImage):
    """An image that says when a window of it is read, so that long work can show how far it is.

    Args:
        image: an open one.
        on_read: called after each window.
    """

    def __init__(self, image: LargeImage, on_read: Callable[[], object]):
        self.image, self.image_hw = image, image.image_hw
        self._on_read = on_read

    def read(self, x0: int, y0: int, x1: int, y1: int) -> UInt8[np.ndarray, "h w 3"]:
        """Pixels of a window as RGB."""
        pixels = self.image.read(x0, y0, x1, y1)
        self._on_read()
        return pixels

    def overview(self, max_side: int) -> UInt8[np.ndarray, "h w 3"]:
        """The whole image, no side longer than this."""
        return self.image.overview(max_side)

    def close(self) -> None:
        """Closes the image."""
        self.image.close()


class _WholeImage(LargeImage):
    """An image in memory."""

    def __init__(self, image: ImageLike):
        self._pixels = _decode(image)
        self.image_hw = self._pixels.shape[:2]

    def read(self, x0: int, y0: int, x1: int, y1: int) -> UInt8[np.ndarray, "h w 3"]:
        return np.ascontiguousarray(self._pixels[y0:y1, x0:x1])

    def overview(self, max_side: int) -> UInt8[np.ndarray, "h w 3"]:
        return display_size(self._pixels, max_side)

    def close(self) -> None:
        self._pixels = np.zeros((0, 0, 3), np.uint8)


def _palette(dataset: "DatasetReader") -> UInt8[np.ndarray, "n 3"] | None:
    """Colours of the values of a file with a palette, None without one."""
    try:
        colours = dataset.colormap(1)
    except ValueError:  # it has none
        return None
    palette = np.zeros((np.iinfo(dataset.dtypes[0]).max + 1, 3), np.uint8)
    for value, colour in colours.items():
        palette[value] = colour[:3]
    return palette


def _is_rotated(path: Path) -> bool:
    """Whether a viewer turns or mirrors a TIFF file, which `rasterio` does not."""
    with path.open("rb") as file:
        start = file.read(8)
        if start[2:4] in (b"+\0", b"\0+"):  # BigTIFF
            start += file.read(8)
        tags = TiffImagePlugin.ImageFileDirectory_v2(start)
        file.seek(tags.next)
        tags.load(file)
        return tags.get(_ORIENTATION, 1) != 1


def _eight_bits(bands: np.ndarray) -> UInt8[np.ndarray, "bands h w"]:
    """The high byte of 16-bit values."""
    return bands if bands.dtype == np.uint8 else (bands >> 8).astype(np.uint8)


def _decode(image: ImageLike) -> UInt8[np.ndarray, "h w 3"]:
    if isinstance(image, np.ndarray):
        is_plain = image.ndim == 3 and image.shape[-1] == 3 and image.dtype == np.uint8
        if not is_plain:
            return load_image(image)
        if image.shape[0] * image.shape[1] >= MAX_LARGE_PIXELS:
            raise DataError("image: more than 2**31 pixels; cut it into pieces.")
        return image
    if not isinstance(image, str | os.PathLike):
        return load_image(image)
    # The user has asked for tiles, and so for an image of this size: no bomb.
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        return load_image(image, max_pixels=MAX_LARGE_PIXELS)
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _open_raster(path: Path) -> "DatasetReader | None":
    try:
        import rasterio
    except ImportError:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            return rasterio.open(path)
    except rasterio.errors.RasterioError as error:
        raise DataError(f"{path}: not a readable TIFF file ({error}).") from error
