"""python -m semsam_jax calibrate: measures which token is which level and stores the order."""

import argparse

from semsam_jax.evals import cli


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the parser of `calibrate`."""
    parser = commands.add_parser(
        "calibrate",
        help="measure the order of a model's levels",
        description="Clicks every mask of the given images, orders the tokens by the mean area "
        "of their masks, level 1 the coarsest, writes the order into the checkpoint's meta, and "
        "reports how well the levels are ordered (Kendall's tau) and which sizes of masks each "
        "level is best at. It also measures and writes the thresholds that suit the checkpoint: "
        "predicted IoU and stability of segment everything, and the scores from which names "
        "count as sure.",
    )
    parser.add_argument(
        "--names",
        action="store_true",
        help="only the scores from which names count as sure, on images with names: prints top-1, "
        "top-5 and how reliable the scores are, and leaves levels and masks as they are",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="only report, do not change the checkpoint"
    )
    cli.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Measures, writes what was measured into the checkpoint; returns 0."""
    written = {"write_names" if args.names else "write_levels": not args.dry_run}
    suites = ("names",) if args.names else ("levels",)
    return cli.run_options(cli.options_of(args, suites=suites, **written))
