"""The READMEs are there, and what they name exists."""

import importlib.util
import re

import pytest

from tests.packaging.conftest import ROOT

FOLDERS = [
    *sorted(p.parent for p in (ROOT / "semsam_jax").glob("*/__init__.py")),
    *(
        ROOT / name
        for name in ("semsam_jax", "data_pipelines", "configs", "benchmarks", "launch", "tools")
    ),
    *(ROOT / "launch" / name for name in ("tpu", "gpu", "colab")),
    ROOT / "tests",
    ROOT,
]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "configs/*.md", "benchmarks/*.md", "launch/**/*.md",
                    "semsam_jax/**/*.md", "data_pipelines/**/*.md", "tests/*.md", "tools/*.md")
    for path in ROOT.glob(pattern)
)  # fmt: skip
FILE = re.compile(r"`([\w./-]+\.(?:py|md|js|sh|yaml|sbatch|ipynb|txt|csv))`")
MODULE = re.compile(r"python3? -m ((?:semsam_jax|data_pipelines|benchmarks|tools)[\w.]*)")
ANCHOR = re.compile(r"\]\(([^)#\s]*)#([^)\s]+)\)")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
# Written by a run, brought by the user, or of another project.
ELSEWHERE = {
    "data.yaml",
    "SUITE.md",
    "results.md",
    "one_click.csv",
    "parameters.txt",
    "mixture.txt",
    "config.txt",
    "WORKDIR/config.txt",
    "sources.md",
    "sources.csv",
    "demo.py",
    "train_net.py",
}
ELSEWHERE |= {"demo_auto_generation.py", "scripts/amg.py", "scripts/export_onnx_model.py"}
SOURCES = [
    f"/{path.relative_to(ROOT).as_posix()}"
    for name in (
        "semsam_jax",
        "data_pipelines",
        "configs",
        "benchmarks",
        "launch",
        "tests",
        "tools",
        "docs",
    )
    for path in (ROOT / name).rglob("*")
]


def relative(path):
    return str(path.relative_to(ROOT))


def anchors(page):
    """The headings of a page as GitHub links to them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("folder", FOLDERS, ids=relative)
def test_each_folder_has_a_readme(folder):
    text = (folder / "README.md").read_text()
    assert text.startswith("# ")
    assert len(text) > 300


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_what_a_page_names_exists(page):
    text = page.read_text()
    for name in set(FILE.findall(text)) - ELSEWHERE:
        is_here = (ROOT / name).exists() or any(path.endswith(f"/{name}") for path in SOURCES)
        assert is_here, f"{name}: no such file"
    for name in set(MODULE.findall(text)) - {"benchmarks.NAME"}:
        assert importlib.util.find_spec(name) is not None, name
    for target in LINK.findall(text):
        if "://" not in target and "=" not in target:
            assert (page.parent / target).exists(), f"{target}: broken link"
    for target, anchor in ANCHOR.findall(text):
        aimed = page.parent / target if target else page
        if "://" not in target and aimed.suffix == ".md":
            assert anchor in anchors(aimed), f"{target}#{anchor}: no such heading"


LISTS = [page for page in PAGES if re.search(r"^\| (file|name|program) \|", page.read_text(), re.M)]


@pytest.mark.parametrize("page", [p for p in LISTS if p.name == "README.md"], ids=relative)
def test_a_table_of_files_lists_every_file(page):
    listed = set(re.findall(r"`(?:python -m \w+\.)?(\w+)(?:\.py)?\b", page.read_text()))
    files = {path.stem for path in page.parent.glob("*.py") if not path.name.startswith("_")}
    assert not files - listed


def test_printed_commands_of_full_recipes_say_where_the_weights_come_from():
    """Those that start at a Swin; a command goes on behind a backslash."""
    found = []
    launchers = (p for p in ROOT.glob("launch/**/*") if p.is_file() and p.suffix != ".ipynb")
    for file in (*PAGES, *launchers):
        text = re.sub(r"\\\n[# ]*", " ", file.read_text(encoding="utf-8"))
        found += [
            (file.name, line)
            for line in text.splitlines()
            if re.search(r"(main|train|semsam_jax|sbatch) .*configs/(joint|sa1b)\.py:swin", line)
            and not line.startswith("|")
        ]
    assert len(found) > 6
    known = ("warm_start=", "backbone_weights=", "--compile_only")
    assert not [one for one in found if not any(flag in one[1] for flag in known)]
