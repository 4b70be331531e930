"""Builds records: sharded ArrayRecord files that training reads instead of the native layout.

    semsam data build --dataset coco --root /data/coco --split train val --out /records

One process reads, or the workers of a Beam runner:

    ... --runner=DirectRunner --beam-options=direct_num_workers=8,direct_running_mode=multi_processing
    ... --runner=DataflowRunner --beam-options=project=P,region=R,temp_location=gs://B/tmp

The records go to OUT/NAME/SPLIT/1.0.0. An interrupted build is resumed by the same command. Exits
with 2 if the folder cannot be read or too many records are broken.
"""  # noqa: E501

import argparse
import sys

from absl import logging

from data_pipelines.arguments import (
    add_source_arguments,
    at_least,
    dataset_folder,
    out_folder,
    share,
)
from data_pipelines.builders.tfds_builder import RecordsBuilder, beam_config
from semsam_jax.core.ending import run_command
from semsam_jax.core.errors import SemSamError

COMMAND = "semsam data build"
"""Starts every message of the command."""


def main(arguments: list[str] | None = None, prog: str = COMMAND) -> int:
    """Runs the build from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog, description=__doc__.splitlines()[0])
    add_source_arguments(parser)
    parser.add_argument(
        "--out",
        required=True,
        type=out_folder,
        metavar="DIR",
        help="folder or bucket (gs://...) for the records of all datasets",
    )
    parser.add_argument(
        "--split", nargs="+", default=["train"], metavar="NAME", help="(default: train)"
    )
    parser.add_argument(
        "--shard-records",
        type=at_least(1),
        default=1000,
        metavar="N",
        help="images per file (default: %(default)s)",
    )
    parser.add_argument(
        "--max-broken",
        type=share,
        default=0.01,
        metavar="SHARE",
        help="tolerated share of broken records (default: %(default)s)",
    )
    parser.add_argument(
        "--threads",
        type=at_least(1),
        default=4,
        metavar="N",
        help="reader threads without --runner (default: %(default)s)",
    )
    parser.add_argument("--verify", action="store_true", help="verify hashes of finished files")
    parser.add_argument(
        "--retry-broken", action="store_true", help="rebuild shards with broken records"
    )
    parser.add_argument(
        "--runner", metavar="NAME", help="Beam runner, such as DirectRunner or DataflowRunner"
    )
    parser.add_argument(
        "--beam-options", default="", metavar="NAME=VALUE,...", help="options of the Beam runner"
    )
    args = parser.parse_args(arguments)
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # TFDS warns about datasets that it does not know
    try:
        for split in args.split:
            builder = RecordsBuilder(
                args.dataset,
                dataset_folder(args),
                split,
                args.out,
                options=args.options,
                shard_records=args.shard_records,
                max_broken_share=args.max_broken,
                num_threads=args.threads,
            )
            report = builder.download_and_prepare(
                download_config=beam_config(args.runner, args.beam_options),
                verify=args.verify,
                retry_broken=args.retry_broken,
            )
            print(f"{builder.plan.folder}: {report.examples} examples of {report.records} records")
            for line in report.lines():
                print(f"  {line}")
    except (SemSamError, ImportError) as error:  # a bucket's file system says what to install
        print(f"{COMMAND}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        where = error.filename or args.out
        print(
            f"{COMMAND}: {where}: {error.strerror or error}; finished files are kept, the same "
            "command resumes",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print(
            f"{COMMAND}: interrupted; finished files are kept, the same command resumes",
            file=sys.stderr,
        )
        return 130
    finally:
        logging.set_verbosity(verbosity)
    return 0


if __name__ == "__main__":
    run_command(main)
