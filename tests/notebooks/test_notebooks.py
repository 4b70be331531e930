"""The notebooks of launch/colab, run from a fresh environment with small sizes.

    SEMSAM_JAX_KEEP_NOTEBOOKS=launch/colab \\
        python -m pytest tests/notebooks -k run -m 'nightly or not nightly'

runs them at their own sizes with the model of the package, and keeps them with their outputs in
that folder; convert_and_check keeps none, as it runs on random weights here.
"""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from semsam_jax.core import checkpoint_io
from tests.convert.test_cli import DATA
from tests.e2e.runs import SMALL
from tools.set_repository import set_repository

pytestmark = pytest.mark.timeout(1800)
COLAB = Path(__file__).parents[2] / "launch" / "colab"
NOTEBOOKS = sorted(COLAB.glob("*.ipynb"))
MAX_CELLS = 15
MAX_BYTES = 1_500_000
# In the layout of the released files, with random weights.
RELEASED = DATA / "tiny_ref.pth"
KEEP = os.environ.get("SEMSAM_JAX_KEEP_NOTEBOOKS")
HOME = f"git+https://github.com/{(COLAB / 'repository.txt').read_text().strip()}"
UNSET = "git+https://github.com/OWNER/semsam_jax"
# The packaged model does not fit the small one.
TRAIN = [
    "--config.model.warm_start=",
    *(f"--config.{key}={value}" for key, value in SMALL.items() if key != "steps"),
]


def read(path):
    return nbformat.read(path, as_version=4)


def parameters_of(name, checkpoint):
    """Small sizes for each notebook; set in its first cell, like a visitor would."""
    small = {
        "clicks_and_levels": {"CHECKPOINT": str(checkpoint)},
        "everything_with_names": {"POINTS_PER_SIDE": 4},
        "train_and_fine_tune": {"STEPS": SMALL["steps"], "FINE_TUNE_STEPS": 2, "MORE_FLAGS": TRAIN},
        "convert_and_check": {"FILE": RELEASED.name},
    }[name]
    return small if not KEEP or name == "convert_and_check" else {}


def with_parameters(notebook, values):
    """Replaces the assignments of the parameters cell."""
    lines = notebook.cells[0].source.splitlines()
    for name, value in values.items():
        (at,) = [i for i, line in enumerate(lines) if line.startswith(f"{name} = ")]
        lines[at] = f"{name} = {value!r}"
    notebook.cells[0].source = "\n".join(lines)


def keep(notebook, original, target, folder):
    """Writes the outputs under the cells as they were, without what only this run knows."""
    for output in [o for cell in notebook.cells for o in cell.get("outputs", ())]:
        if output.output_type == "stream":
            output.text = output.text.replace(f"{folder}/", "")
            output.text = re.sub(r"\S+/semsam_jax/weights/", "", output.text)
    for cell, old in zip(notebook.cells, original.cells, strict=True):
        if target.stem == "convert_and_check":
            cell.update({"outputs": [], "execution_count": None} if "outputs" in cell else {})
        cell.source = old.source
        cell.metadata = old.metadata
    notebook.metadata = original.metadata
    nbformat.write(notebook, target)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_short_and_start_with_the_installation(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert len(notebook.cells) <= MAX_CELLS
    assert "%pip install" in notebook.cells[0].source
    assert notebook.cells[0].metadata["tags"] == ["parameters"]
    assert any(cell.source.startswith("# ") for cell in notebook.cells if cell.cell_type != "code")
    assert f'SOURCE = "{HOME}"' in notebook.cells[0].source
    page = HOME.removeprefix("git+https://") + f"/blob/main/launch/colab/{path.name}"
    page = page.replace("github.com/", "github/")
    assert f"(https://colab.research.google.com/{page})" in notebook.cells[1].source
    assert path.stat().st_size < MAX_BYTES
    for cell in notebook.cells:
        assert len(cell.source.splitlines()) <= 25
        assert "/work/" not in cell.source
    for name in parameters_of(path.stem, ""):
        assert f"\n{name} = " in notebook.cells[0].source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_first_cell_names_what_is_not_set_and_picks_the_extra_of_the_chip(path, monkeypatch):
    def prepared(source, has_gpu):
        """What the cell has found when pip would start."""
        notebook, found = read(path), {}
        with_parameters(notebook, {"SOURCE": source})
        code, _, pip = notebook.cells[0].source.partition("%pip install ")
        assert pip == '-q "semsam-jax[{extras}] @ {SOURCE}"'
        monkeypatch.setattr(shutil, "which", lambda name: "/x" if has_gpu else None)
        monkeypatch.setattr(os.path, "exists", lambda path: False)
        exec(code, found)
        return found["extras"]

    first = "train" if path.stem == "train_and_fine_tune" else ""
    assert prepared("file:///wheel", has_gpu=False) == first
    assert prepared("file:///wheel", has_gpu=True) == f"{first},cuda".lstrip(",")
    with pytest.raises(ValueError, match="put the account that hosts semsam_jax in the place of"):
        prepared(UNSET, has_gpu=False)


def test_one_command_sets_the_address_everywhere(tmp_path):
    folder = shutil.copytree(COLAB, tmp_path / "colab")
    assert set_repository(folder) == []
    set_repository(folder, "some-one/my.fork")
    for path in (*folder.glob("*.ipynb"), folder / "README.md"):
        text = path.read_text()
        assert "some-one/my.fork/blob/main/launch/colab/" in text
        assert "OWNER/semsam_jax" not in text
    assert "UX-Decoder/Semantic-SAM/releases" in (folder / "convert_and_check.ipynb").read_text()
    assert (folder / "repository.txt").read_text() == "some-one/my.fork\n"
    assert set_repository(folder) == []


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(
            path,
            id=path.stem,
            marks=[] if path.stem == "clicks_and_levels" else pytest.mark.nightly,
        )
        for path in NOTEBOOKS
    ],
)
def test_notebooks_run(path, fresh, checkpoint, tmp_path, monkeypatch):
    kernel = tmp_path / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    argv = [str(fresh.python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": "Python 3", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    for name in list(os.environ):
        if name.startswith(("PYTHON", "SEMSAM_JAX_CACHE")):
            monkeypatch.delenv(name)
    for name, value in fresh.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("SEMSAM_JAX_CACHE", str(fresh.folder / f"cache_{path.stem}"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    notebook = read(path)
    values = parameters_of(path.stem, checkpoint)
    with_parameters(notebook, {"SOURCE": fresh.wheel.as_uri(), **values})
    folder = tmp_path / "cwd"
    folder.mkdir()
    shutil.copy(RELEASED, folder)
    client = NotebookClient(
        notebook,
        timeout=1500,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        coalesce_streams=True,
    )
    client.execute()
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "image/jpeg" in output.get("data", {})
    ]
    assert pictures
    if not values:  # at its own size nothing is empty
        assert not re.search(r"\b0 (masks|annotations|outlines)", nbformat.writes(notebook))
    assert len(nbformat.writes(notebook)) < MAX_BYTES
    assert sys.executable not in nbformat.writes(notebook)
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", ())]
    assert not [o for o in outputs if o.output_type == "error"]
    if KEEP:
        keep(notebook, read(path), Path(KEEP) / path.name, folder)
    if path.stem == "train_and_fine_tune":  # what commands take that are given no checkpoint
        assert checkpoint_io.last_run() == (folder / "runs" / "mine").resolve()
