"""Builds the documentation site: python -m tools.build_docs [arguments of `mkdocs build`]

Gathers the pages of the repository, the README of each folder among them, in build/docs under
the same paths, so that their links work on the site as they do in the repository. Any warning is
an error. Needs `pip install -e '.[docs]'`.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "build" / "docs"
_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
_HIDDEN = (".git", "build", "site", "runs", "dist")
FIRST = (
    ("Home", "README.md"),
    ("Python API", "docs/api.md"),
    ("Fine-tuning", "docs/finetune.md"),
    ("Recipes", "docs/recipes.md"),
    ("Scale", "docs/scale.md"),
    ("Datasets", "data_pipelines/README.md"),
    ("Evaluation", "semsam_jax/evals/README.md"),
    ("Migrating", "docs/coming_from.md"),
    ("Benchmarks", "docs/benchmarks.md"),
    ("Reference", "docs/reference.md"),
    ("Design", "docs/design.md"),
    ("Changelog", "CHANGELOG.md"),
    ("Contributing", "CONTRIBUTING.md"),
)
"""What the navigation shows first, as far as it exists; other pages follow under `More`."""


def pages() -> list[Path]:
    """All Markdown pages, relative to the repository."""
    found = (path.relative_to(ROOT) for path in ROOT.rglob("*.md"))
    return sorted(
        p for p in found if p.parts[0] not in _HIDDEN and not p.parts[0].startswith((".", "tests"))
    )


def gather() -> list[Path]:
    """Copies the pages and the files that they link to; returns the pages."""
    shutil.rmtree(PAGES, ignore_errors=True)
    found = pages()
    for page in found:
        _copy(page)
        for link in _LINK.findall((ROOT / page).read_text(encoding="utf-8")):
            target = (ROOT / page.parent / link).resolve()
            if "://" not in link and target.is_file() and target.is_relative_to(ROOT):
                _copy(target.relative_to(ROOT))
    return found


def _copy(path: Path) -> None:
    (PAGES / path).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(ROOT / path, PAGES / path)


def navigation(found: list[Path]) -> list[dict]:
    """The site's navigation: `FIRST`, then the rest by path."""
    shown = [{title: path} for title, path in FIRST if Path(path) in found]
    listed = {path for _, path in FIRST}
    rest = [str(page) for page in found if str(page) not in listed]
    return [*shown, {"More": [{page.removesuffix(".md"): page} for page in rest]}]


def main(arguments: list[str]) -> int:
    """Builds; returns the exit code of mkdocs."""
    import yaml

    config = ROOT / "build" / "mkdocs.yml"
    found = gather()
    nav = yaml.safe_dump({"nav": navigation(found)}, allow_unicode=True)
    config.write_text(f"INHERIT: {ROOT / 'mkdocs.yml'}\ndocs_dir: docs\nsite_dir: ../site\n{nav}")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}  # of the theme, not of the pages
    return subprocess.run([*command, *arguments], cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
