"""Writes results: JSON, a Markdown table, and a CSV with a row per scored instance."""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from semsam_jax.evals.one_click import ClickTable
from semsam_jax.inference import files

CLASS_FIGURES = {
    "masks": "masks",
    "iou": "IoU",
    "ap": "AP",
    "ap50": "AP50",
    "name_accuracy": "name right",
}
"""Figures of a class and their titles: how many masks were clicked, and percent."""

Classes = Mapping[str, Mapping[str, float]]
"""Name of a class -> some of `CLASS_FIGURES`."""


@dataclasses.dataclass(frozen=True)
class TableRow:
    """One line of a results table.

    Attributes:
        name: what was measured.
        value: our figure, in percent unless the name says otherwise; nan is written as "-".
        published: the paper's figure for comparison, as text; empty if there is none.
        note: what differs from the published setting.
    """

    name: str
    value: float
    published: str = ""
    note: str = ""


def write_json(
    path: Path,
    meta: Mapping,
    notes: Mapping[str, str],
    rows: Sequence[TableRow],
    scalars: Mapping[str, float],
    classes: Classes,
) -> None:
    """Writes meta, notes, the rows of the table, the scores and the figures of each class; nan
    becomes null, so that any reader takes it, and is left out of the figures of classes.
    """
    content = {
        "meta": dict(meta),
        "notes": dict(notes),
        "rows": [vars(row) | {"value": _number(row.value)} for row in rows],
        "scores": {name: _number(value) for name, value in scalars.items()},
        "classes": {
            text: {name: _number(v) for name, v in figures.items() if not math.isnan(v)}
            for text, figures in classes.items()
        },
    }
    text = json.dumps(content, indent=1, default=_plain)
    files.write_text(path, text + "\n")


def write_summary(path: Path, folder: Path, meta: Mapping) -> None:
    """Writes one table of all suites in `folder` that were measured with the same `meta`."""
    rows: list[TableRow] = []
    classes: dict[str, dict[str, float]] = {}
    for file in sorted(folder.glob("*.json")):
        content = _results(file)
        if content.get("meta") == json.loads(json.dumps(dict(meta), default=_plain)):
            for row in content["rows"]:
                value = math.nan if row["value"] is None else row["value"]
                rows.append(TableRow(row["name"], value, row["published"], row["note"]))
            for text, figures in content.get("classes", {}).items():
                classes.setdefault(text, {}).update(figures)
    write_markdown(path, "Evaluation: all suites", rows, meta, classes)


def write_markdown(
    path: Path,
    title: str,
    rows: Sequence[TableRow],
    about: Mapping[str, str],
    classes: Classes,
) -> None:
    """Writes a table with the published figures next to ours, what it was measured on, and the
    figures of each class.
    """
    files.write_text(path, markdown(title, rows, about, classes))


def markdown(
    title: str, rows: Sequence[TableRow], about: Mapping[str, str], classes: Classes
) -> str:
    """The text of `write_markdown`."""
    lines = [f"# {title}", ""]
    lines += [f"- {name}: {value}" for name, value in about.items()]
    lines += ["", "| measure | value | published | note |", "|---|---:|---:|---|"]
    for row in rows:
        value = "-" if math.isnan(row.value) else f"{row.value:.1f}"
        lines.append(f"| {row.name} | {value} | {row.published} | {row.note} |")
    if classes:
        head, *table = class_cells(classes)
        lines += ["", "| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
        lines += ["| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in table]
    return "\n".join(lines) + "\n"


def class_cells(classes: Classes) -> list[list[str]]:
    """Head and rows of the table of classes, without columns that no class has a figure for."""
    columns = [key for key in CLASS_FIGURES if any(key in row for row in classes.values())]
    table = [["class", *(CLASS_FIGURES[key] for key in columns)]]
    for text, figures in classes.items():
        digits = {key: 0 if key == "masks" else 1 for key in columns}
        cells = (f"{figures[k]:.{n}f}" if k in figures else "-" for k, n in digits.items())
        table.append([text, *cells])
    return table


def write_click_table(path: Path, table: ClickTable) -> None:
    """Writes one CSV line per scored instance: who, where, and IoU and quality per token."""
    num_tokens = table.iou.shape[1] if len(table) else 0
    tokens = range(num_tokens)
    head = ["dataset", "image_id", "instance_id", "is_thing", "x", "y", "area_px"]
    head += ["iou_max", "iou_oracle", "chosen"]
    head += [f"{name}_{k}" for name in ("iou", "pred_iou", "pred_area") for k in tokens]
    rows = [head]
    chosen, best, most = table.chosen, table.iou_max, table.iou_oracle
    for i in range(len(table)):
        row = [table.dataset[i], table.image_id[i], int(table.instance_id[i])]
        row += [int(table.is_thing[i]), *map(int, table.click_xy[i])]
        row += [f"{table.area_px[i]:.1f}", f"{best[i]:.4f}", f"{most[i]:.4f}", int(chosen[i])]
        for values in (table.iou, table.pred_iou):
            row += [f"{float(v):.4f}" for v in values[i]]
        row += [f"{float(v):.4g}" for v in table.pred_area[i]]  # of one pixel, too
        rows.append(row)
    write_csv(path, rows)


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Writes a table, its head first."""
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows(rows)
    files.write_text(path, stream.getvalue())


def _results(file: Path) -> dict:
    """Content of a JSON file that `write_json` wrote; empty for any other file of the folder."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) and "rows" in content else {}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 6)


def _plain(value: object) -> object:
    """NumPy values as JSON."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    return str(value)
