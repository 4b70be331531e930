"""Figures of masks: overlays, level strips and labelled panoptic views."""

import colorsys
import functools
import warnings
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Int, UInt8
from PIL import Image, ImageDraw, ImageFont

from semsam_jax.core.distance import innermost_pixel

RGB = tuple[int, int, int]
Mark = tuple[float | int, float | int, bool]  # x, y, is_positive
Box = tuple[float | int, float | int, float | int, float | int]  # x0, y0, x1, y1
_GOLDEN = 0.61803398875
_STRIP_PANEL_PX = 420
_MAX_SIDE_PX = 2048
_INSTALLED_FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc")
_NO_LETTER = "\uffff"


def distinct_colours(num: int, start: float = 0.58) -> list[RGB]:
    """Returns colours whose neighbours in the list differ clearly in hue and brightness."""
    colours = []
    for i in range(num):
        saturation = (0.85, 0.62, 0.95)[i % 3]
        value = (0.98, 0.90, 0.78)[(i // 3) % 3]
        r, g, b = colorsys.hsv_to_rgb((start + i * _GOLDEN) % 1.0, saturation, value)
        colours.append((round(r * 255), round(g * 255), round(b * 255)))
    return colours


def overlay_masks(
    image: UInt8[np.ndarray, "h w 3"],
    masks: Sequence[Bool[np.ndarray, "h w"]],
    colours: Sequence[RGB] | None = None,
    *,
    opacity: float = 0.5,
    points: Sequence[Mark] = (),
    boxes: Sequence[Box] = (),
) -> UInt8[np.ndarray, "h w 3"]:
    """Paints masks over an image, large ones first, each with an outline.

    Args:
        image: RGB.
        masks: at the image's size.
        colours: one for each mask; None gives distinct ones.
        opacity: of the fill, 0..1.
        points: x, y, is_positive of the clicks to mark.
        boxes: x0, y0, x1, y1 of the boxes to mark.
    """
    colours = distinct_colours(len(masks)) if colours is None else colours
    canvas = image.copy()
    for i in sorted(range(len(masks)), key=lambda i: -int(masks[i].sum())):
        _paint(canvas, masks[i], colours[i], opacity)
    line = _line_width(image.shape[:2])
    for mask, colour in zip(masks, colours, strict=True):
        _outline(canvas, mask, colour, line)
    for box in boxes:
        corners = [round(v) for v in box]
        cv2.rectangle(canvas, corners[:2], corners[2:], (0, 0, 0), line + 2, cv2.LINE_AA)
        cv2.rectangle(canvas, corners[:2], corners[2:], (255, 255, 255), line, cv2.LINE_AA)
    for x, y, is_positive in points:
        _mark(canvas, (x, y), is_positive, line)
    return canvas


def level_strip(
    image: UInt8[np.ndarray, "h w 3"],
    masks: Sequence[Bool[np.ndarray, "h w"]],
    captions: Sequence[str],
    *,
    points: Sequence[Mark] = (),
    boxes: Sequence[Box] = (),
) -> UInt8[np.ndarray, "sh sw 3"]:
    """Returns one row of panels, a mask and its caption in each (levels 1..6 of a click)."""
    height, width = image.shape[:2]
    scale = min(1.0, _STRIP_PANEL_PX / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    marks = [(x * scale, y * scale, good) for x, y, good in points]
    frames = [tuple(v * scale for v in box) for box in boxes]
    font = _font(max(13, round(min(size[0] / 16, 22))))
    bar, gap = round(font.size * 1.9), 6
    panel_width = max(size[0], 140)
    strip = Image.new(
        "RGB",
        (len(masks) * (panel_width + gap) + gap, size[1] + bar + 2 * gap),
        (24, 26, 30),
    )
    draw = ImageDraw.Draw(strip)
    colours = distinct_colours(len(masks))
    for i, (mask, caption) in enumerate(zip(masks, captions, strict=True)):
        resized = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) >= 0.5
        dimmed = _dim_outside(small, resized)
        panel = overlay_masks(
            dimmed, [resized], [colours[i]], opacity=0.35, points=marks, boxes=frames
        )
        x = gap + i * (panel_width + gap)
        strip.paste(Image.fromarray(panel), (x + (panel_width - size[0]) // 2, gap + bar))
        draw.rectangle((x, gap, x + panel_width - 1, gap + bar - 1), fill=colours[i])
        own = _font(font.size, caption)
        draw.text(
            (x + panel_width / 2, gap + bar / 2),
            _shorten(draw, caption, own, panel_width - 8),
            fill=_ink(colours[i]),
            font=own,
            anchor="mm",
        )
    return np.asarray(strip)


def side_by_side(
    image: UInt8[np.ndarray, "h w 3"],
    panels: Sequence[tuple[str, Sequence[Bool[np.ndarray, "h w"]], Sequence[str]]],
    *,
    height: int = _STRIP_PANEL_PX,
) -> UInt8[np.ndarray, "sh sw 3"]:
    """Returns one row of panels, each with a title and all of its masks and their texts.

    Masks at the same place of their lists have the same colour in all panels.

    Args:
        image: RGB.
        panels: title, masks and a text for each mask ("" for none).
        height: of the row, title included, in pixels.
    """
    bar, gap = 30, 6
    scale = max(1, height - bar - 2 * gap) / image.shape[0]
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    base = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    row = Image.new("RGB", (len(panels) * (size[0] + gap) + gap, height), (24, 26, 30))
    draw = ImageDraw.Draw(row)
    for i, (title, masks, texts) in enumerate(panels):
        small = [
            cv2.resize(m.astype(np.float32), size, interpolation=cv2.INTER_LINEAR) >= 0.5
            for m in masks
        ]
        colours = distinct_colours(len(small))
        picture = overlay_masks(base, small, colours, opacity=0.4)
        picture = write_labels(picture, small, texts, colours)
        x = gap + i * (size[0] + gap)
        row.paste(Image.fromarray(picture), (x, gap + bar))
        font = _font(16, title)
        text = _shorten(draw, title, font, size[0] - 8)
        draw.text((x + size[0] / 2, gap + bar / 2), text, (235, 235, 240), font, anchor="mm")
    return np.asarray(row)


def panoptic_view(
    image: UInt8[np.ndarray, "h w 3"],
    segment_map: Int[np.ndarray, "h w"],
    names: dict[int, str],
    *,
    opacity: float = 0.55,
) -> UInt8[np.ndarray, "h w 3"]:
    """Paints every segment and writes its name inside it.

    Args:
        image: RGB.
        segment_map: segment id of each pixel, 0 for none.
        names: the text of each segment id.
        opacity: of the fill, 0..1.
    """
    ids = list(names)
    colours = distinct_colours(len(ids), start=0.33)
    masks = [segment_map == i for i in ids]
    canvas = overlay_masks(image, masks, colours, opacity=opacity)
    return write_labels(canvas, masks, [names[i] for i in ids], colours)


def write_labels(
    picture: UInt8[np.ndarray, "h w 3"],
    masks: Sequence[Bool[np.ndarray, "h w"]],
    texts: Sequence[str],
    colours: Sequence[RGB],
) -> UInt8[np.ndarray, "h w 3"]:
    """Writes a text at the innermost point of each mask, large masks first, without overlap.

    Letters that Pillow's own font lacks are taken from DejaVu or Noto fonts if these are installed;
    a warning names a text that then still has letters without a glyph.
    """
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    height, width = picture.shape[:2]
    font_size = int(np.clip(max(height, width) / 48, 11, 40))
    taken: list[tuple[float, float, float, float]] = []
    for i in sorted(range(len(masks)), key=lambda i: -int(masks[i].sum())):
        place = innermost_pixel(masks[i]) if texts[i] else None
        if place is None:
            continue
        font = _font(font_size, texts[i])
        left, top, right, bottom = draw.textbbox(place, texts[i], font=font, anchor="mm")
        pad = font.size * 0.25
        dx = max(pad - left, 0) - max(right + pad - width, 0)
        dy = max(pad - top, 0) - max(bottom + pad - height, 0)
        box = (left - pad + dx, top - pad + dy, right + pad + dx, bottom + pad + dy)
        if any(_overlap(box, other) for other in taken):
            continue
        taken.append(box)
        draw.rounded_rectangle(box, radius=pad * 1.2, fill=(20, 20, 24), outline=colours[i])
        draw.text(
            (place[0] + dx, place[1] + dy), texts[i], fill=(255, 255, 255), font=font, anchor="mm"
        )
    return np.asarray(image)


def display_size(
    image: UInt8[np.ndarray, "h w 3"], max_side: int = _MAX_SIDE_PX
) -> UInt8[np.ndarray, "dh dw 3"]:
    """Returns an image whose long side is at most `max_side`, for pictures to look at."""
    scale = max_side / max(image.shape[:2])
    if scale >= 1:
        return image
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def shrink_mask(mask: Bool[np.ndarray, "h w"], like: np.ndarray) -> Bool[np.ndarray, "dh dw"]:
    """Resizes a mask to the height and width of a smaller picture, by area."""
    if mask.shape == like.shape[:2]:
        return mask
    size = (like.shape[1], like.shape[0])
    return cv2.resize(mask.astype(np.uint8) * 255, size, interpolation=cv2.INTER_AREA) >= 128


def _paint(canvas: np.ndarray, mask: np.ndarray, colour: RGB, opacity: float) -> None:
    under = canvas[mask].astype(np.float32)
    canvas[mask] = np.rint(under + (np.array(colour, np.float32) - under) * opacity)


def _outline(canvas: np.ndarray, mask: np.ndarray, colour: RGB, line: int) -> None:
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    light = tuple(int(c + (255 - c) * 0.65) for c in colour)
    cv2.drawContours(canvas, contours, -1, light, line, cv2.LINE_AA)


def _dim_outside(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    grey = image.mean(-1, keepdims=True) * 0.35 + image * 0.25
    return np.where(mask[..., None], image, np.rint(grey).astype(np.uint8))


def _mark(
    canvas: np.ndarray, xy: tuple[float | int, float | int], is_positive: bool, line: int
) -> None:
    centre = (round(xy[0]), round(xy[1]))
    radius = 3 * line + 2
    colour = (40, 200, 80) if is_positive else (230, 50, 50)
    cv2.circle(canvas, centre, radius + line, (255, 255, 255), -1, cv2.LINE_AA)
    cv2.circle(canvas, centre, radius, colour, -1, cv2.LINE_AA)
    arm = max(2, radius // 2)
    white = (255, 255, 255)
    cv2.line(canvas, (centre[0] - arm, centre[1]), (centre[0] + arm, centre[1]), white, line)
    if is_positive:
        cv2.line(canvas, (centre[0], centre[1] - arm), (centre[0], centre[1] + arm), white, line)


def _line_width(hw: tuple[int, int]) -> int:
    return max(1, round(max(hw) / 700))


def _font(size: float | int, text: str = "") -> ImageFont.FreeTypeFont:
    """The font for a text: Pillow's own, or the installed one that lacks the fewest letters."""
    letters = {letter for letter in text if not letter.isascii() and not letter.isspace()}
    if not letters:
        return ImageFont.load_default(size=size)
    names = [None, *(name for name in _INSTALLED_FONTS if _loaded(name))]
    lacking = [sum(not _has_glyph(name, letter) for letter in letters) for name in names]
    best = lacking.index(min(lacking))
    if lacking[best]:
        warnings.warn(
            f"the picture shows boxes for letters of {text[:40]!r}: no font with them was found; "
            f"install the Noto fonts ({', '.join(_INSTALLED_FONTS[1:])}).",
            stacklevel=3,
        )
    return _open(names[best], size)


def _open(name: str | None, size: float | int) -> ImageFont.FreeTypeFont:
    if name is None:
        return ImageFont.load_default(size=size)
    return ImageFont.truetype(name, size)  # searches the system's folders of fonts


@functools.cache
def _loaded(name: str | None) -> ImageFont.FreeTypeFont | None:
    """A font at a small size, None if it is not installed."""
    try:
        return _open(name, 16)
    except OSError:
        return None


@functools.lru_cache(4096)
def _has_glyph(name: str | None, letter: str) -> bool:
    """Whether an installed font draws a letter otherwise than one that no font has."""
    font = _loaded(name)
    return bytes(font.getmask(letter)) != bytes(font.getmask(_NO_LETTER))


def _ink(colour: RGB) -> RGB:
    brightness = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    return (0, 0, 0) if brightness > 140 else (255, 255, 255)


def _shorten(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    if draw.textlength(text, font=font) <= width:
        return text
    while text and draw.textlength(text + "…", font=font) > width:
        text = text[:-1]
    return text + "…"


def _overlap(a: tuple, b: tuple) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
