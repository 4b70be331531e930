"""Writes the address of the repository into the notebooks and their README.

    python -m tools.set_repository ACCOUNT/NAME

launch/colab/repository.txt holds it; without an argument what stands there is written. OWNER stands
for an account that is not known yet: the notebooks then stop in their first cell and say so.
"""

import argparse
import re
from pathlib import Path

COLAB = Path(__file__).parents[1] / "launch" / "colab"
_FILE = "repository.txt"
_NAME = r"[\w.-]+/[\w.-]+"
# What pip installs, and the pages that the badges open.
_PLACES = (
    re.compile(rf"(?<=git\+https://github\.com/){_NAME}"),
    re.compile(rf"(?<=colab\.research\.google\.com/github/){_NAME}(?=/blob/main/launch/colab/)"),
)


def main() -> None:
    """Writes the address that is given, or that of the file, everywhere."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("repository", nargs="?", metavar="ACCOUNT/NAME")
    given = parser.parse_args().repository
    if given is not None and not re.fullmatch(_NAME, given):
        parser.error(f"got {given!r}; expected ACCOUNT/NAME, as in https://github.com/ACCOUNT/NAME")
    for path in set_repository(COLAB, given):
        print(f"changed: {path}")


def set_repository(folder: Path, repository: str | None = None) -> list[Path]:
    """Writes the address everywhere; returns the files that have changed."""
    if repository is None:
        repository = (folder / _FILE).read_text().strip()
    texts = {folder / _FILE: f"{repository}\n"}
    for path in (*sorted(folder.glob("*.ipynb")), folder / "README.md"):
        text = path.read_text(encoding="utf-8")
        for place in _PLACES:
            text = place.sub(repository, text)
        texts[path] = text
    changed = [path for path, text in texts.items() if path.read_text(encoding="utf-8") != text]
    for path in changed:
        path.write_text(texts[path], encoding="utf-8")
    return changed


if __name__ == "__main__":
    main()
