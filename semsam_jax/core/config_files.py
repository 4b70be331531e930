"""Config files on a command line: those of this package work from any folder.

A working folder may have a folder `configs` of its own. A file that is named as
`configs/NAME.py` is taken from there if it exists, else from this package; and
`import configs.common.base` in it means this package's modules in both cases.
"""

import sys
from importlib import machinery, util
from pathlib import Path

from semsam_jax.core.old_names import upgrade_option

CONFIGS = Path(__file__).parents[2] / "configs"
"""The configurations that come with this package, in a checkout as in an installation."""
_SHORT = {"--data.root": "--config.data.root"}


def expand(words: list[str]) -> list[str]:
    """Writes options out as ml_collections wants them and finds the config file.

    Args:
        words: of the command line, without the command's name.

    Returns:
        The words: `--config=FILE` with a file that exists if there is one, short options in full,
        options of earlier releases with their names of today.
    """
    words, found = list(words), []
    while words:
        word = words.pop(0)
        if word in ("--config", "-config", *_SHORT) and words:
            word = f"{word}={words.pop(0)}"
        found.append(_expanded(upgrade_option(word)))
    return found


def _expanded(word: str) -> str:
    name, equals, value = word.partition("=")
    if name in _SHORT:
        return f"{_SHORT[name]}{equals}{value}"
    if name not in ("--config", "-config") or not equals:
        return word
    path, colon, argument = value.partition(":")
    file = Path(path)
    ours = CONFIGS.joinpath(*file.parts[1:])
    if file.parts[:1] == ("configs",) and not file.exists() and ours.is_file():
        file = ours
    _offer_modules(file.resolve())
    return f"--config={file}{colon}{argument}"


def _offer_modules(file: Path) -> None:
    """Makes `import configs` in a config file mean this package's modules.

    What stands beside a user's own file, in a folder `configs` too, is found first.
    """
    own = [] if file.is_relative_to(CONFIGS) or file.parent.name != "configs" else [file.parent]
    for name in [name for name in sys.modules if name.partition(".")[0] == "configs"]:
        del sys.modules[name]
    spec = machinery.ModuleSpec("configs", None, is_package=True)
    spec.submodule_search_locations = [str(folder) for folder in (*own, CONFIGS)]
    sys.modules["configs"] = util.module_from_spec(spec)
