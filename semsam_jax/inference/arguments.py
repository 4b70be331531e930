"""Command-line arguments that `segment`, `auto` and `export` share. Imports no JAX."""

import argparse
import math
import re
from pathlib import Path

from semsam_jax.core.errors import PromptError


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --checkpoint, --model-config, --prompt-preset and --dtype."""
    parser.add_argument(
        "--checkpoint",
        metavar="DIR",
        help="folder of a model or training run, .pth file of the original, swin_t or swin_l "
        "(the original's releases, downloaded once), hf://OWNER/NAME, or last (the training run "
        "that finished last) (default: lite, the packaged model)",
    )
    parser.add_argument(
        "--model-config",
        metavar="FILE.json",
        help="model sizes of a file that matches no preset",
    )
    parser.add_argument(
        "--prompt-preset",
        choices=("default", "released_v1"),
        help="how clicks are encoded (default: stored in the checkpoint)",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="compute precision (default: %(default)s)",
    )


def add_size_argument(parser: argparse.ArgumentParser) -> None:
    """Adds --size and --pad-to-multiple."""
    parser.add_argument(
        "--size",
        metavar="native|N",
        help="side in pixels to which the image is resized: the short side for released "
        "weights, else the long side; native only pads (default: as in training)",
    )
    parser.add_argument(
        "--pad-to-multiple",
        type=int,
        default=32,
        metavar="N",
        help="pad images to multiples of N; 32 is exact, 128 or 256 compiles fewer programs "
        "for images of many shapes but changes the masks (default: %(default)s)",
    )


def add_labels_argument(parser: argparse.ArgumentParser) -> None:
    """Adds --labels."""
    parser.add_argument(
        "--labels",
        metavar="NAMES",
        help='class names, "dog,cat;head,leg" (objects;parts), or the name of a '
        "built-in vocabulary such as coco or ade20k",
    )


def add_granularity_argument(parser: argparse.ArgumentParser) -> None:
    """Adds --granularity."""
    parser.add_argument(
        "--granularity",
        metavar="G[,G...]",
        help="instead of --level: a continuous scale from 0 (the finest part) to 1 (the whole)",
    )


def parse_granularities(text: str | None) -> list[float] | None:
    """Reads --granularity; the numbers are checked where they are used."""
    if text is None:
        return None
    return parse_numbers(text, text.count(",") + 1, "--granularity")


def load_from_args(args: argparse.Namespace, pad_to_multiple: int = 32):
    """Loads the model that the arguments name; returns a `LoadedModel`."""
    from semsam_jax.inference.loading import load_model

    return load_model(
        args.checkpoint,
        model_config=args.model_config,
        dtype=args.dtype,
        prompt_preset=args.prompt_preset,
        pad_to_multiple=pad_to_multiple,
    )


def parse_size(text: str | None) -> int | str | None:
    """Reads --size."""
    if text is None or text == "native":
        return text
    if not re.fullmatch("[0-9]{1,9}", text):
        raise PromptError(f"--size {text}: expected native or a number of pixels.")
    return int(text)


def parse_numbers(text: str, count: int, flag: str) -> list[float]:
    """Reads `count` finite numbers separated by commas."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != count:
        raise PromptError(f"{flag} {text}: expected {count} numbers separated by commas.")
    if not all(math.isfinite(value) for value in values):
        raise PromptError(f"{flag} {text}: expected finite numbers.")
    return values


def output_folder(out: str | None, image: Path) -> Path:
    """Folder for the results: --out, or NAME_segments next to the image."""
    if out:
        return Path(out)
    if image.name in ("", ".."):  # . and .. have no name of their own
        image = image.resolve()
    if not image.name:
        raise PromptError(f"--out: missing, and {image} has no name to make one of.")
    return image.with_name(f"{image.stem}_segments")
