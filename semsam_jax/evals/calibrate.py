"""semsam calibrate: measures levels and thresholds of a model, and stores them with it."""

import argparse

from semsam_jax.evals import cli


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the parser of `calibrate`."""
    parser = commands.add_parser(
        "calibrate",
        help="measure and store the levels and thresholds of a model",
        description="Clicks every mask of the given images and orders the tokens by the mean area "
        "of their masks (level 1 is the coarsest). Writes the order and the mean size of each "
        "level into the checkpoint, and reports how well the levels are ordered (Kendall's tau) "
        "and at which mask sizes each level is best. Also measures and writes the thresholds of "
        "the checkpoint: predicted IoU and stability for segmenting everything, and the minimum "
        "scores of names. The packaged model is never changed: give --checkpoint, or --dry-run to "
        "only report.",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--levels",
        action="store_true",
        help="only the order and the sizes of the levels; leave all thresholds unchanged",
    )
    what.add_argument(
        "--names",
        action="store_true",
        help="only the minimum scores of names, on images with class names: prints top-1, top-5 "
        "and the calibration of the scores; leaves levels and mask thresholds unchanged",
    )
    what.add_argument(
        "--panoptic",
        action="store_true",
        help="only what labels whole images (panoptic_source): the generic branch or named masks "
        "of a grid of clicks, whichever has the higher PQ on images with class names",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="only report, do not change the checkpoint"
    )
    cli.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Measures, writes what was measured into the checkpoint; returns 0."""
    if args.panoptic:
        from semsam_jax.inference.whole_image import POINTS_PER_SIDE

        options = cli.options_of(
            args,
            suites=("generic", "everything"),
            points_per_side=POINTS_PER_SIDE,
            write_panoptic=not args.dry_run,
        )
        return cli.run_options(options)
    is_all = not (args.names or args.levels)
    written = {"write_levels": is_all or args.levels, "write_masks": is_all}
    written["write_names"] = is_all or args.names
    if args.dry_run:
        written = dict.fromkeys(written, False)
    suites = ("names",) if args.names else ("levels",)
    return cli.run_options(cli.options_of(args, suites=suites, **written))
