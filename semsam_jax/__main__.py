"""python -m semsam_jax segment | auto | evaluate | calibrate | convert | export | demo.

Each command lives in a module with `add_parser(commands)`, which adds its parser, and
`run(args) -> int | None`; only the module of the command that is asked for is imported.
"""

import argparse
import gc
import importlib
import os
import sys
from typing import NoReturn

from semsam_jax import __version__
from semsam_jax.core.errors import SemSamError

_COMMANDS = {
    "segment": ("semsam_jax.inference.segment", "masks of a photo from clicks, boxes or names"),
    "auto": ("semsam_jax.inference.auto", "all masks of a photo or of a folder of photos"),
    "evaluate": ("semsam_jax.evals.cli", "scores of a checkpoint on annotated data"),
    "calibrate": ("semsam_jax.evals.calibrate", "the order of a checkpoint's levels, measured"),
    "convert": ("semsam_jax.convert.cli", "released PyTorch weights to a checkpoint and back"),
    "export": ("semsam_jax.inference.export", "a checkpoint as self-contained compiled programs"),
    "demo": ("semsam_jax.demo.cli", "a web page to click on photos"),
}
_EPILOG = """\
examples:
  python -m semsam_jax segment photo.jpg --point 320,200 --labels "dog,cat;head,leg"
  python -m semsam_jax auto FOLDER --out masks
  python -m semsam_jax evaluate --suite one_click
  python -m semsam_jax convert swint_only_sam_many2many.pth --out released
  python -m semsam_jax demo

`python -m semsam_jax COMMAND --help` explains a command. Without --checkpoint the last training
run is used. Training: `python -m semsam_jax.main --help`. Data: `python -m data_pipelines.check`,
`data_pipelines.build` and `data_pipelines.inspect`, each with --help."""
_AFTER_CTRL_C = {
    "auto": "finished photos are kept; the same command goes on with the others",
    "segment": "nothing is half written; the same command starts again",
    "convert": "nothing is half written; the same command starts again",
    "export": "nothing is half written; the same command starts again",
}


class _OneLineParser(argparse.ArgumentParser):
    """Reports a wrong command line in one line, like every other error."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(message.split())} (see {self.prog} --help)\n")


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit code (2 for an error that the user can repair)."""
    argv = sys.argv[1:] if argv is None else argv
    parser = _OneLineParser(
        prog="python -m semsam_jax",
        description="Segment and recognise anything at any granularity.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, parser_class=_OneLineParser
    )
    asked = next((word for word in argv if not word.startswith("-")), None)
    run = None
    for name, (module_name, summary) in _COMMANDS.items():
        if name == asked:
            module = importlib.import_module(module_name)
            module.add_parser(commands)
            run = module.run
        else:
            commands.add_parser(name, help=summary)
        commands.choices[name].add_argument(
            "--traceback", action="store_true", help="show the whole traceback of an error"
        )
    args = parser.parse_args(argv)
    try:
        code = run(args) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Whoever read the output has closed it (`| head`): end quietly, like other commands.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except SemSamError as error:
        if args.traceback:
            raise
        print(f"semsam_jax {args.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        hint = _AFTER_CTRL_C.get(args.command)
        print(
            f"semsam_jax {args.command}: interrupted{f'; {hint}' if hint else ''}", file=sys.stderr
        )
        return 130


if __name__ == "__main__":
    # Imports make some 100,000 objects that stay. Python's default looks through them 400 times
    # while a command starts and twice more at its end, together half a second.
    gc.set_threshold(20_000)
    code = main()
    gc.freeze()
    sys.exit(code)
