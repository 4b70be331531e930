import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from data_pipelines import inspect
from data_pipelines.mixture import Mixture
from data_pipelines.pipeline import StreamConfig
from semsam_jax.core.errors import ConfigError
from tests.data_pipelines.fake_source import VOCABULARY
from tests.data_pipelines.test_pipeline import CONFIG, build
from tests.data_pipelines.trees import write_tree

PANEL = (inspect.PANEL_PX + 2, inspect.PANEL_PX + 16)


def rows(dataset, view="any"):
    stream = StreamConfig(3, Mixture({dataset: 1.0}, {view: 1.0}, cycle=1))
    off = StreamConfig(0, Mixture({}))
    return next(build(dataclasses.replace(CONFIG, interactive=stream, generic=off)))["interactive"]


def test_interactive_rows_become_a_sheet_of_panels(tmp_path):
    path = tmp_path / "new" / "interactive.png"
    inspect.draw_rows(rows("paco", "part"), VOCABULARY, path, num_prompts=3)
    assert Image.open(path).size == (4 * PANEL[0], 3 * PANEL[1])


def test_generic_rows_lie_side_by_side(tmp_path):
    inspect.draw_rows(rows("objects365"), VOCABULARY, tmp_path / "generic.png", num_prompts=0)
    assert Image.open(tmp_path / "generic.png").size == (3 * PANEL[0], PANEL[1])


def test_targets_prompts_and_padding_are_drawn(tmp_path):
    batch = rows("sa1b")
    grown = {key: value[:1].copy() for key, value in batch.items()}
    grown["image"][:] = 0
    grown["size_hw"][:] = (32, 16)
    grown["mask_bits"][:] = 0
    grown["mask_bits"][0, 0, 8:16, 0] = 255  # columns 0..7 of rows 8..15
    grown["prompt_targets"][:] = -1
    grown["prompt_targets"][0, :, 0] = 0
    grown["prompt_box"][0, 0] = (4 / 32, 12 / 32, 6 / 32, 6 / 32)
    grown["prompt_is_box"][:] = False
    inspect.draw_rows(grown, VOCABULARY, tmp_path / "one.png", num_prompts=1)
    panel = np.asarray(Image.open(tmp_path / "one.png"))[16:, PANEL[0] : 2 * PANEL[0] - 2]
    cell = inspect.PANEL_PX // 32
    centre = panel[12 * cell, 4 * cell]
    assert centre.tolist() == [255, 255, 255]  # the click
    assert panel[9 * cell, 2 * cell].any()  # the mask
    assert not panel[20 * cell, 2 * cell].any()  # the image
    assert panel[20 * cell, 20 * cell].tolist() == [70, 70, 70]  # the padding


def test_custom_datasets_need_a_root(tmp_path):
    data = {**inspect.sample_settings(), "datasets": {"mine": 1.0}, "generic_datasets": {}}
    data |= {"granularity": {"any": 1.0}, "generic_batch": 0, "image_size": 64}
    with pytest.raises(ConfigError, match=r"mine are not in the embedded sample.*config.data.root"):
        inspect.inspect(data, 1, tmp_path)
    write_tree("coco_folder", tmp_path / "root/mine")
    (path,) = inspect.inspect({**data, "root": str(tmp_path / "root")}, 2, tmp_path)
    assert Image.open(path).size[1] == 2 * PANEL[1]


def test_command_line_draws_the_embedded_sample_and_a_recipe(tmp_path):
    for options in ([], ["--config=configs/joint.py"]):
        out = tmp_path / f"run{len(options)}"
        command = [sys.executable, "-m", "data_pipelines.inspect", *options]
        done = subprocess.run(
            [*command, f"--out={out}", "--n=2"], capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, done.stderr
        assert (out / "interactive.png").stat().st_size > 10_000
        assert (out / "generic.png").stat().st_size > 10_000
        assert "interactive stream" in done.stdout
