"""Finds the config files of a command line; those of this package work from any folder.

The working folder may have its own `configs/`. `configs/NAME.py` is taken from there if it exists,
else from this package; `import configs.common.base` inside it means this package's modules in both
cases.
"""

import sys
from importlib import machinery, util
from pathlib import Path

from semsam_jax.core.old_names import upgrade_option

CONFIGS = Path(__file__).parents[2] / "configs"
"""The configurations of this package, in a checkout or an installation."""
_SHORT = {"--data.root": "--config.data.root"}


def expand(words: list[str]) -> list[str]:
    """Expands options to the form of ml_collections and finds the config file.

    Args:
        words: command-line arguments, without the program's name.

    Returns:
        The arguments, with the path of the config file if it exists, short options in full and
        renamed options under their current names.
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
    """Makes `import configs` in a config file find this package's modules.

    Modules next to the user's file, also in a folder `configs`, are found first.
    """
    own = [] if file.is_relative_to(CONFIGS) or file.parent.name != "configs" else [file.parent]
    for name in [name for name in sys.modules if name.partition(".")[0] == "configs"]:
        del sys.modules[name]
    spec = machinery.ModuleSpec("configs", None, is_package=True)
    spec.submodule_search_locations = [str(folder) for folder in (*own, CONFIGS)]
    sys.modules["configs"] = util.module_from_spec(spec)
