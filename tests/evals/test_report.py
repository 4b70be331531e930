"""Tables, plots and gallery: right numbers in the files, pictures that can be opened."""

import csv
import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from semsam_jax.evals import gallery, plots, report
from semsam_jax.evals.generic import evaluate_generic
from semsam_jax.evals.interactive import evaluate_interactive
from semsam_jax.evals.one_click import evaluate_one_click
from semsam_jax.evals.prompt_runner import PromptRunner
from tests.evals.fakes import ReadingGeneric, ReadingModel, reading_sample
from tests.evals.test_generic import CLASSES, TEXT, labelled
from tests.evals.test_one_click import SEGMENTS

SAMPLE = reading_sample(SEGMENTS, dataset="d")


@pytest.fixture(scope="module")
def table():
    return evaluate_one_click(ReadingModel(), {}, [SAMPLE]).table


def is_picture(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("L")).std() > 5


def test_json_writes_nan_as_null(tmp_path):
    path = tmp_path / "a.json"
    rows = [report.TableRow("PQ", float("nan"))]
    scores = {"a": 1.5, "b": float("nan")}
    about, classes = (
        {"x": np.float32(2), "y": np.arange(2)},
        {"cat": {"ap": float("nan"), "iou": 2.5}},
    )
    report.write_json(path, about, {"n": "m"}, rows, scores, classes)
    content = json.loads(path.read_text())
    assert content["scores"] == {"a": 1.5, "b": None}
    assert content["rows"] == [{"name": "PQ", "value": None, "published": "", "note": ""}]
    assert content["meta"] == {"x": 2.0, "y": [0, 1]}
    assert content["classes"] == {"cat": {"iou": 2.5}}


def test_summary_joins_suites_of_one_setting(tmp_path):
    nan = float("nan")
    for name, step, value, classes in (
        ("a", "1", 10.0, {"cat": {"ap": 12.34}, "a|b": {"ap": nan}}),
        ("b", "1", nan, {"cat": {"name_accuracy": 50.0}}),
        ("c", "2", 30.0, {"dog": {"ap": 1.0}}),
    ):
        row = report.TableRow(f"row {name}", value)
        report.write_json(tmp_path / f"{name}.json", {"step": step}, {}, [row], {}, classes)
    # The user's own files, and one that another command has not finished.
    for number, content in enumerate(("[1, 2]", '{"meta": {"step": "1"}}', "5", '{"rows": [', "")):
        (tmp_path / f"own{number}.json").write_text(content)
    report.write_summary(tmp_path / "results.md", tmp_path, {"step": "1"})
    text = (tmp_path / "results.md").read_text()
    assert "| row a | 10.0 |" in text
    assert "| row b | - |" in text
    assert "row c" not in text
    table = text[text.index("| class ") :].splitlines()
    assert table == [
        "| class | AP | name right |",
        "|---|---:|---:|",
        "| cat | 12.3 | 50.0 |",
        "| a\\|b | - | - |",
    ]


def test_markdown_has_a_line_per_row():
    rows = [report.TableRow("IoU", 54.321, "54.5", "note"), report.TableRow("PQ", float("nan"))]
    text = report.markdown("Title", rows, {"data": "coco"}, {})
    assert text.startswith("# Title\n\n- data: coco\n")
    assert "| IoU | 54.3 | 54.5 | note |" in text
    assert "| PQ | - |  |  |" in text


def test_click_table_has_a_line_per_instance(table, tmp_path):
    areas = table.pred_area.copy()
    areas[2, 2] = 1.23456e-6  # a pixel of a large image
    table = dataclasses.replace(table, pred_area=areas)
    report.write_click_table(tmp_path / "t.csv", table)
    with (tmp_path / "t.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 3
    assert float(rows[0]["iou_max"]) == pytest.approx(27 / 72, abs=1e-4)
    assert {row["chosen"] for row in rows} == {"1"}
    assert float(rows[2]["iou_2"]) == pytest.approx(table.iou[2, 2], abs=1e-4)
    assert rows[2]["pred_area_2"] == "1.235e-06"


def test_plots_of_clicks(table, tmp_path):
    plots.plot_iou_by_size(tmp_path / "a.png", table)
    plots.plot_levels(tmp_path / "b.png", table, (2, 1, 0))
    plots.plot_reliability(tmp_path / "c.png", table)
    plots.plot_clicks(tmp_path / "d.png", evaluate_interactive(ReadingModel(), {}, [SAMPLE]))
    assert all(is_picture(tmp_path / f"{name}.png") for name in "abcd")


def test_plots_of_classes(tmp_path):
    result = evaluate_generic(ReadingGeneric(), {}, TEXT, [labelled()], CLASSES)
    names = ["cat", "dog", "sky"]
    plots.plot_class_quality(tmp_path / "a.png", result.panoptic, names)
    plots.plot_precision_recall(tmp_path / "b.png", result.mask_ap, names)
    assert all(is_picture(tmp_path / f"{name}.png") for name in "ab")


def test_groups_of_the_gallery_do_not_overlap(table):
    groups = gallery.pick_rows(table, 1)
    assert groups["best"].tolist() == [2]
    assert groups["worst"].tolist() == [0]
    assert groups["median"].tolist() == [1]
    few = gallery.pick_rows(table, 4)
    assert sum(len(rows) for rows in few.values()) == 3


def test_gallery_is_drawn(table, tmp_path):
    runner = PromptRunner(ReadingModel(), {}, prompts_per_call=1)
    gallery.draw_gallery(tmp_path / "g.png", runner, {("d", "a"): SAMPLE}, table, count=1)
    assert is_picture(tmp_path / "g.png")
    with Image.open(tmp_path / "g.png") as picture:
        assert picture.width == 4 * 246
