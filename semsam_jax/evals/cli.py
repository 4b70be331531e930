"""python -m semsam_jax evaluate and calibrate: evaluate a model on annotated data."""

import argparse

from semsam_jax.core.errors import ConfigError
from semsam_jax.evals.options import (
    CANVASES,
    PROTOCOLS,
    SUITE_NAMES,
    VIEWS,
    EvalOptions,
    parse_suites,
)

_DEFAULT = EvalOptions()
_SUITES_ONLY = {
    "--suite": "suite",
    "--protocol": "protocol",
    "--data.root": "root",
    "--data.dataset": "dataset",
    "--data.view": "view",
    "--data.short-side": "short_side",
    "--data.canvas": "canvas",
    "--prompts-per-call": "prompts_per_call",
    "--images-per-device": "images_per_device",
    "--points-per-side": "points_per_side",
}
"""Options of the suites that the evaluation of a folder does not use, and their names in `args`."""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the parser of `evaluate`."""
    parser = commands.add_parser(
        "evaluate",
        help="evaluate a model on annotated data",
        description="Writes SUITE.md, SUITE.json, one row per mask (one_click.csv), plots, a "
        "gallery of the best, median and worst clicks, and results.md with the results of all "
        "suites. Without --data.root the embedded sample is scored, which checks that everything "
        "works but is not a benchmark. An interrupted evaluation resumes where it stopped.",
    )
    parser.add_argument(
        "folder",
        nargs="?",
        default="",
        metavar="FOLDER",
        help="a dataset with masks, or a folder of several: scores a click and a box for each "
        "mask at the original resolution and writes sources.md, .json and .csv; takes "
        "--checkpoint, --out, --data.split, --data.limit and --data.image-size",
    )
    parser.add_argument(
        "--suite",
        metavar="NAMES",
        help=f"what to measure, separated by commas: {', '.join(SUITE_NAMES)} "
        f"(default: {','.join(_DEFAULT.suites)})",
    )
    group = add_arguments(parser)
    _add_number(
        group,
        "--points-per-side",
        _DEFAULT.points_per_side,
        "clicks per side of the grid of the suites proposals, everything and otq",
    )


def add_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Adds what `evaluate` and `calibrate` have in common; returns the group of the model."""
    parser.add_argument(
        "--checkpoint",
        metavar="DIR",
        default="",
        help="folder of a model or training run, swin_t or swin_l (the original's releases, "
        "downloaded once), hf://OWNER/NAME, or last (the training run that finished last) "
        "(default: lite, the packaged model)",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        default="",
        help="default: CHECKPOINT/evaluation/DATASET, or ./evaluation/DATASET for the packaged "
        "model",
    )
    parser.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        help="square: the square canvas of training; released_v1: short side 800, long side at "
        "most 1333, scored at that size; original_size: prompts are scored at the original "
        "resolution (default: released_v1 for released weights, else square)",
    )
    data = parser.add_argument_group("data")
    add = data.add_argument
    add(
        "--data.root",
        dest="root",
        metavar="DIR",
        default="",
        help="folder with one subfolder per dataset",
    )
    add(
        "--data.dataset",
        dest="dataset",
        metavar="NAME",
        help=f"(default: {_DEFAULT.dataset})",
    )
    add("--data.split", dest="split", default=_DEFAULT.split, metavar="NAME", help="(default: val)")
    add(
        "--data.limit",
        dest="limit",
        type=int,
        metavar="N",
        help="number of images, evenly spaced (default: all)",
    )
    add(
        "--data.view",
        dest="view",
        choices=VIEWS,
        help=f"which masks are prompted (default: {_DEFAULT.view})",
    )
    add(
        "--data.image-size",
        dest="image_size",
        type=int,
        metavar="PX",
        help="side of the canvas, a multiple of 32 (default: as in training; 1344 for released_v1)",
    )
    add(
        "--data.short-side",
        dest="short_side",
        type=int,
        metavar="PX",
        help="resize the short side to this, as far as the long side fits (default: the long "
        "side fills the canvas; 800 for released_v1)",
    )
    add(
        "--data.canvas",
        dest="canvas",
        choices=CANVASES,
        help="tight pads each image to multiples of 32 only (default: square; tight for "
        "released_v1)",
    )
    model = parser.add_argument_group("model")
    for flag, default, help_text in (
        ("--prompts-per-call", _DEFAULT.prompts_per_call, "prompts of an image decoded together"),
        ("--images-per-device", _DEFAULT.images_per_device, "images processed together per device"),
    ):
        _add_number(model, flag, default, help_text)
    return model


def _add_number(group: argparse._ArgumentGroup, flag: str, default: int, help_text: str) -> None:
    group.add_argument(flag, type=int, metavar="N", help=f"{help_text} (default: {default})")


def run(args: argparse.Namespace) -> int:
    """Evaluates and writes the results; returns 0."""
    if not args.folder:
        suites = _DEFAULT.suites if args.suite is None else parse_suites(args.suite)
        return run_options(options_of(args, suites=suites))
    idle = [flag for flag, name in _SUITES_ONLY.items() if getattr(args, name) not in (None, "")]
    if idle:
        raise ConfigError(
            f"{', '.join(idle)}: no effect on a folder of sources ({args.folder}), which has "
            "measures of its own; leave out one or the other."
        )
    return run_options(options_of(args))


def options_of(args: argparse.Namespace, **values: object) -> EvalOptions:
    """Converts the parsed command line to options; `values` are added."""
    for flag in ("limit", "image_size", "short_side"):
        value = getattr(args, flag)
        if value is not None and value < 1:  # 0 is the default of the options, not a choice
            raise ConfigError(f"--data.{flag.replace('_', '-')} {value}: expected at least 1.")
    names = EvalOptions.__dataclass_fields__
    given = {k: v for k, v in vars(args).items() if k in names and v is not None}
    return EvalOptions(**given, **values)


def run_options(options: EvalOptions) -> int:
    """Joins the other processes of a distributed evaluation, if any, and evaluates."""
    from semsam_jax.core.compilation import use_compilation_cache
    from semsam_jax.evals.extra import load_suites
    from semsam_jax.parallel import distributed

    load_suites()
    from semsam_jax.evals.run import evaluate, evaluate_folder

    distributed.initialize()
    use_compilation_cache()
    if options.folder:
        evaluate_folder(options)
    else:
        evaluate(options)
    return 0
