"""Command-line arguments, checked before any data is read."""

import argparse
import json
import pathlib
from collections.abc import Callable
from typing import Any

from data_pipelines.schema import DATASETS
from data_pipelines.sources.values import is_storable


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that select a dataset, except the split."""
    parser.add_argument(
        "--dataset",
        required=True,
        metavar="NAME",
        help=f"one of {', '.join(DATASETS)}, cocotree, or any other name for a custom dataset",
    )
    root = parser.add_mutually_exclusive_group(required=True)
    root.add_argument("--root", metavar="DIR", type=pathlib.Path, help="folder of the dataset")
    root.add_argument(
        "--data.root", dest="data_root", metavar="DIR", type=pathlib.Path,
        help="folder of all datasets, as in training; the dataset is in DIR/NAME",
    )  # fmt: skip
    parser.add_argument(
        "--options", default={}, type=options, metavar="JSON", help="options of the reader"
    )


def dataset_folder(args: argparse.Namespace) -> pathlib.Path:
    """The folder that --root or --data.root names."""
    return args.root if args.data_root is None else args.data_root / args.dataset


def options(text: str) -> dict[str, Any]:
    """A JSON object, such as {"parts": true}."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f'{text!r} is not a JSON object such as {{"parts": true}}')
    return value


def at_least(lowest: int) -> Callable[[str], int]:
    """An integer of at least `lowest`."""

    def number(text: str) -> int:
        value = int(text)
        if value < lowest:
            raise argparse.ArgumentTypeError(f"{value}; expected {lowest} or more")
        return value

    return number


def share(text: str) -> float:
    """A number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{value}; expected a share from 0 to 1")
    return value


def out_folder(text: str) -> str:
    """A folder or a bucket to write to."""
    if not text.strip() or not is_storable(text):
        raise argparse.ArgumentTypeError(f"{text!a}; expected a folder or a bucket (gs://...)")
    return text


def png_file(text: str) -> pathlib.Path:
    """A PNG file in a folder that exists."""
    path = pathlib.Path(text)
    if path.suffix.lower() != ".png" or not path.parent.is_dir() or not is_storable(text):
        raise argparse.ArgumentTypeError(f"{text!r}; expected a .png in a folder that exists")
    return path
