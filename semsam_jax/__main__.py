"""The command `semsam`, also as `python -m semsam_jax`: train, segment, auto, evaluate, ...

Each command lives in a module with `add_parser(commands)`, which adds its parser, and
`run(args) -> int | None`; only the module of the given command is imported. `train` and `data` pass
their command line on.
"""

import argparse
import importlib
import os
import sys
from typing import NoReturn

from semsam_jax import __version__
from semsam_jax.core import console
from semsam_jax.core.ending import INTERRUPTED, run_command
from semsam_jax.core.errors import SemSamError

_COMMANDS = {
    "segment": (
        "semsam_jax.inference.segment",
        "segment an image from clicks or boxes, or label all of it",
    ),
    "auto": ("semsam_jax.inference.auto", "segment everything in an image or a folder"),
    "evaluate": ("semsam_jax.evals.cli", "evaluate a model on annotated data"),
    "calibrate": (
        "semsam_jax.evals.calibrate",
        "measure and store the levels and thresholds of a model",
    ),
    "convert": (
        "semsam_jax.convert.cli",
        "convert released PyTorch weights to this format and back",
    ),
    "push": ("semsam_jax.convert.push", "upload a model to a Hugging Face repository"),
    "export": ("semsam_jax.inference.export", "export a model as self-contained programs"),
    "demo": ("semsam_jax.demo.cli", "serve the web page, HTTP API and annotation backends"),
    "env": ("semsam_jax.core.environment", "print versions and devices for bug reports"),
}
_TRAIN = "train a model or resume a run"
_DATA = {
    "check": "read a dataset and report its contents and broken records",
    "build": "convert a dataset to sharded records",
    "inspect": "draw training examples as the model sees them",
}
_EXTRAS = {"train": "train", "data": "data", "evaluate": "eval", "calibrate": "eval"}
"""Commands that need an extra, and its name."""
_EPILOG = """\
examples:
  semsam segment image.jpg --point 320,200 --labels "dog,cat;head,leg"
  semsam auto FOLDER --out masks
  semsam train --config=configs/joint.py --workdir=runs/first
  semsam evaluate --suite one_click
  semsam convert swint_only_sam_many2many.pth --out released
  semsam data check --dataset coco --data.root DATA
  semsam demo

Run `semsam COMMAND --help` for the options of a command."""
_AFTER_CTRL_C = {
    "auto": "finished images are kept, the same command resumes",
    "segment": "no partial files are left; run the same command again",
    "convert": "no partial files are left; run the same command again",
    "export": "no partial files are left; run the same command again",
}


class _OneLineParser(argparse.ArgumentParser):
    """Reports usage errors in one line, like every other error."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(message.split())} (see {self.prog} --help)\n")


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit code (2 for an error that the user can fix)."""
    argv = sys.argv[1:] if argv is None else argv
    asked = next((word for word in argv if not word.startswith("-")), None)
    try:
        if asked == "train" and argv[0] == asked:
            from semsam_jax import main as training

            return training.run_command_line(["semsam train", *argv[1:]])
        if asked == "data" and argv[0] == asked:
            return _data(argv[1:])
        return _run(argv, asked)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if asked not in _EXTRAS or package in ("", "semsam_jax", "data_pipelines", "configs"):
            raise
        extra = f"pip install 'semsam-jax[{_EXTRAS[asked]}]'"
        print(f"semsam {asked}: {package} is not installed; run `{extra}`.", file=sys.stderr)
        return 2
    except ImportError as error:
        if error.name is not None:
            raise
        # A bucket's file system says what to install.
        print(f"semsam {asked}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader of the output has closed it (`| head`): exit quietly, like other commands.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except SemSamError as error:
        if "--traceback" in argv:
            raise
        print(f"semsam {asked}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, no rights, too many open files, a name too long ...
        if "--traceback" in argv:
            raise
        print(f"semsam {asked}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        hint = _AFTER_CTRL_C.get(asked or "")
        print(f"semsam {asked}: interrupted{f'; {hint}' if hint else ''}", file=sys.stderr)
        return INTERRUPTED


def _run(argv: list[str], asked: str | None) -> int:
    """Runs a command whose module has its own parser."""
    parser = _OneLineParser(
        prog="semsam",
        description="Segment and recognize anything at any granularity.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"semsam_jax {__version__}")
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, parser_class=_OneLineParser
    )
    run = None
    commands.add_parser("train", help=_TRAIN)
    for name, (module_name, summary) in _COMMANDS.items():
        if name == asked:
            module = importlib.import_module(module_name)
            module.add_parser(commands)
            run = module.run
        else:
            commands.add_parser(name, help=summary)
        _add_common(commands.choices[name])
    commands.add_parser("data", help=f"{', '.join(_DATA)}: inspect and prepare datasets")
    args = parser.parse_args(argv)
    with console.verbosity(args.verbose, args.quiet):
        code = run(args) or 0
        sys.stdout.flush()
    return code


def _add_common(parser: argparse.ArgumentParser) -> None:
    """Adds the options of every command."""
    volume = parser.add_mutually_exclusive_group()
    volume.add_argument("--verbose", action="store_true", help="also print log messages")
    volume.add_argument("--quiet", action="store_true", help="print errors only")
    parser.add_argument(
        "--traceback", action="store_true", help="show the full traceback of an error"
    )


def _data(argv: list[str]) -> int:
    """Runs `semsam data check|build|inspect`, each with its own options."""
    parser = _OneLineParser(prog="semsam data", description="Inspects and prepares datasets.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_OneLineParser)
    for name, summary in _DATA.items():
        commands.add_parser(name, help=summary)
    if not argv or argv[0] not in _DATA:
        parser.parse_args(argv)
    from semsam_jax.core import config_files

    module = importlib.import_module(f"data_pipelines.{argv[0]}")
    words = config_files.expand(argv[1:]) if argv[0] == "inspect" else argv[1:]
    return module.main(words, prog=f"semsam data {argv[0]}") or 0


def run_script() -> NoReturn:
    """Runs the command line of this process and ends it."""
    run_command(main)


if __name__ == "__main__":
    run_script()
