"""python -m semsam_jax calibrate: measures order and sizes of the levels, and stores them."""

import argparse

from semsam_jax.evals import cli


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the parser of `calibrate`."""
    parser = commands.add_parser(
        "calibrate",
        help="measure the order of a model's levels",
        description="Clicks every mask of the given images, orders the tokens by the mean area "
        "of their masks, level 1 the coarsest, writes the order and the mean size of each level "
        "into the checkpoint's meta, and reports how well the levels are ordered (Kendall's tau) "
        "and which sizes of masks each level is best at. It also measures and writes the "
        "thresholds that suit the checkpoint: predicted IoU and stability of segment everything, "
        "and the scores from which names count as sure.",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--levels",
        action="store_true",
        help="only the order and the sizes of the levels; all thresholds stay as they are",
    )
    what.add_argument(
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
    is_all = not (args.names or args.levels)
    written = {"write_levels": is_all or args.levels, "write_masks": is_all}
    written["write_names"] = is_all or args.names
    if args.dry_run:
        written = dict.fromkeys(written, False)
    suites = ("names",) if args.names else ("levels",)
    return cli.run_options(cli.options_of(args, suites=suites, **written))
