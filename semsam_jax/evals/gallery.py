"""Gallery of the best, median and worst clicks: image, ground truth, chosen and best mask."""

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from semsam_jax.evals.clicks import click_boxes
from semsam_jax.evals.one_click import ClickProtocol, ClickTable
from semsam_jax.evals.prompt_runner import PromptQuery, PromptRunner
from semsam_jax.evals.samples import EvalSample

_TILE = 240
_COLOURS = {"truth": (60, 200, 90), "chosen": (60, 120, 230), "best": (235, 140, 40)}
_GAP, _CAPTION = 6, 22


def pick_rows(table: ClickTable, count: int = 4) -> dict[str, np.ndarray]:
    """Row indices of the best, the median and the worst clicks by IoU of the chosen mask.

    Ties go to the larger instance; a row appears in one group only, so small tables give fewer.
    """
    order = np.lexsort((-table.area, -table.iou_max))
    best, rest = order[:count], order[count:]
    worst = rest[np.lexsort((-table.area[rest], table.iou_max[rest]))][:count]
    rest = rest[~np.isin(rest, worst)]
    middle = max(0, (len(rest) - count) // 2)
    return {"best": best, "median": rest[middle : middle + count], "worst": worst}


def draw_gallery(
    path: Path,
    runner: PromptRunner,
    samples: Mapping[tuple[str, str], EvalSample],
    table: ClickTable,
    *,
    count: int = 4,
    protocol: ClickProtocol | None = None,
) -> None:
    """Writes one PNG: a row of pictures per click, a band per group.

    Args:
        path: file to write.
        runner: the model.
        samples: (dataset, image_id) -> sample, for the picked rows.
        table: result of the 1-click evaluation.
        count: clicks per group.
        protocol: the one that `table` was made with.
    """
    protocol = protocol or ClickProtocol()
    bands = []
    for group, rows in pick_rows(table, count).items():
        for row in rows:
            sample = samples[table.dataset[row], table.image_id[row]]
            bands.append(_draw_row(group, runner, sample, table, int(row), protocol))
    if bands:
        picture = np.concatenate(bands, axis=0)
        cv2.imwrite(str(path), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))


def _draw_row(
    group: str,
    runner: PromptRunner,
    sample: EvalSample,
    table: ClickTable,
    row: int,
    protocol: ClickProtocol,
) -> np.ndarray:
    click = table.click_xy[row]
    boxes = click_boxes(click[None], sample.image.shape[:2], protocol.click_box_px)
    types = np.full(1, protocol.point_type)
    answer = runner.query(sample, PromptQuery(boxes, types))
    chosen, best = int(table.chosen[row]), int(table.iou[row].argmax())
    index = int(np.flatnonzero(sample.ids() == table.instance_id[row])[0])
    h, w = sample.size_hw
    image = sample.image[:h, :w]
    tiles = [
        _tile(image, None, None, click, f"{group}: {sample.image_id}"),
        _tile(image, sample.truth_mask(index), "truth", click, f"truth {table.instance_id[row]}"),
        _tile(
            image,
            answer.masks[0, chosen],
            "chosen",
            click,
            f"chosen, token {chosen}: IoU {table.iou[row, chosen]:.2f}",
        ),
        _tile(
            image,
            answer.masks[0, best],
            "best",
            click,
            f"best, token {best}: IoU {table.iou[row, best]:.2f}",
        ),
    ]
    return np.concatenate(tiles, axis=1)


def _tile(
    image: np.ndarray,
    mask: np.ndarray | None,
    kind: str | None,
    click: np.ndarray,
    caption: str,
) -> np.ndarray:
    """One picture with its caption, on white."""
    h, w = image.shape[:2]
    scale = _TILE / max(h, w)
    size = (max(1, round(w * scale)), max(1, round(h * scale)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    if mask is not None:
        shape = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        inside = shape.astype(bool)
        small[inside] = (0.5 * small[inside] + 0.5 * np.asarray(_COLOURS[kind])).astype(np.uint8)
        outlines, _ = cv2.findContours(shape, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(small, outlines, -1, _COLOURS[kind], 1)
    x, y = (int((c + 0.5) * scale) for c in click)
    cv2.circle(small, (x, y), 4, (255, 255, 255), -1)
    cv2.circle(small, (x, y), 3, (220, 20, 20), -1)
    tile = np.full((size[1] + _CAPTION + _GAP, _TILE + _GAP, 3), 255, np.uint8)
    tile[_CAPTION : _CAPTION + size[1], : size[0]] = small
    font = cv2.FONT_HERSHEY_SIMPLEX
    cv2.putText(tile, caption[:38], (2, 15), font, 0.4, (20, 20, 20), 1, cv2.LINE_AA)
    return tile
