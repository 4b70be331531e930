"""Checks a dataset before training.

    semsam data check --dataset coco --root /data/coco --contact-sheet coco.png

Prints counts, the classes found, what is not used and why, and every broken record, and draws a
contact sheet: images with their masks in colour (parts brighter, with a white edge) and the boxes
of boxes-only data.
Exits with 1 if a record is broken, with 2 if the folder cannot be read at all.
"""

import argparse
import collections
import dataclasses
import sys

import numpy as np
from PIL import Image, ImageDraw

from data_pipelines.arguments import add_source_arguments, at_least, dataset_folder, png_file
from data_pipelines.decode import decode_image
from data_pipelines.findings import Findings
from data_pipelines.index.files import write_whole
from data_pipelines.index.scan import BROKEN, read_entry
from data_pipelines.names import name_notes
from data_pipelines.schema import DATASETS, RawExample
from data_pipelines.sources import Source
from data_pipelines.sources.single_dataset import has_split, open_single_dataset
from data_pipelines.sources.subset import spread
from data_pipelines.vocabulary import Vocabulary
from semsam_jax.core.ending import run_command
from semsam_jax.core.errors import DataError, SemSamError
from semsam_jax.core.rle import decode

COMMAND = "semsam data check"
"""Starts every message of the command."""

_TITLES = {
    "num_examples": "images",
    "num_empty": "images without labels",
    "num_instances": "instances",
    "num_parts": "parts",
    "num_orphan_parts": "parts without a whole",
    "num_stuff": "stuff",
    "num_pseudo": "machine-made",
    "num_crowds": "crowd regions",
}
"""Counts of a `DatasetReport`, and how they are printed."""


@dataclasses.dataclass
class DatasetReport:
    """Contents of a dataset.

    Attributes:
        num_examples: readable examples.
        num_empty: examples among them without any instance.
        num_instances, num_parts, num_orphan_parts, num_stuff, num_pseudo: instance counts; an
            orphan part has no whole in its image.
        num_crowds: crowd regions, which are ignored.
        masks_per_image: 0, 25, 50, 75 and 100 % quantiles.
        classes: class text -> number of instances, most frequent first.
        broken: messages of the records that cannot be trained on.
        unused: what is not used and why, and names that training mixes up; one sentence each.
    """

    num_examples: int = 0
    num_empty: int = 0
    num_instances: int = 0
    num_parts: int = 0
    num_orphan_parts: int = 0
    num_stuff: int = 0
    num_pseudo: int = 0
    num_crowds: int = 0
    masks_per_image: tuple[int, ...] = ()
    classes: dict[str, int] = dataclasses.field(default_factory=dict)
    broken: list[str] = dataclasses.field(default_factory=list)
    unused: list[str] = dataclasses.field(default_factory=list)


def check(source: Source, limit: int | None = None, *, decode: bool = True) -> DatasetReport:
    """Reads the examples of a source and counts their contents.

    Args:
        source: an open reader.
        limit: read at most this many examples, evenly spaced; None reads all.
        decode: also decode every image, which finds truncated files.
    """
    report = DatasetReport()
    counts: list[int] = []
    findings = Findings()
    findings.add(source.unused)
    for position in spread(len(source), limit):
        entry, example = read_entry(source, position)
        findings.add(entry.unused)
        problem = entry.message if entry.reason in BROKEN else ""
        if example is not None and decode and not problem:
            try:
                decode_example(example)
            except DataError as error:
                problem = str(error)
        if example is None or problem:
            report.broken.append(problem)
            continue
        report.num_examples += 1
        report.num_empty += not example.instances
        report.num_crowds += len(example.ignored)
        counts.append(len(example.instances))
        for instance in example.instances:
            report.num_parts += instance.kind == "part"
            report.num_orphan_parts += instance.part_id >= 0 and instance.parent < 0
            report.num_stuff += not instance.is_thing
            report.num_pseudo += instance.is_pseudo
            text = source.vocabulary.label_text(instance.object_id, instance.part_id)
            findings.add_class(text, instances=1)
        for crowd in example.ignored:
            text = source.vocabulary.label_text(crowd.object_id, crowd.part_id)
            findings.add_class(text, crowds=1)
    report.num_instances = sum(counts)
    if counts:
        quantiles = np.quantile(counts, [0, 0.25, 0.5, 0.75, 1])
        report.masks_per_image = tuple(int(value) for value in quantiles)
    found = {text: count for text, (count, _) in findings.classes.items() if count}
    report.classes = dict(collections.Counter(found).most_common())
    report.unused = findings.lines() + name_notes(source.vocabulary, source.vocabulary.datasets)
    return report


def decode_example(example: RawExample) -> np.ndarray:
    """Decodes an image as RGB [h,w,3] in the frame of its masks.

    Raises:
        DataError: the file is truncated or damaged.
    """
    return decode_image(
        example.image,
        where=f"{example.dataset} example {example.example_id!r}",
        size_hw=(example.height, example.width),
        is_displayed=example.is_displayed,
    )


def draw(example: RawExample, vocabulary: Vocabulary, height: int = 240) -> Image.Image:
    """Draws one image with its masks and its name, `height` pixels high."""
    image = decode_example(example).astype(np.float32)
    colours = np.random.default_rng(7).integers(60, 255, (max(1, len(example.instances)), 3))
    order = sorted(
        range(len(example.instances)),
        key=lambda i: (example.instances[i].part_id >= 0, -_box_area(example.instances[i].box)),
    )
    for index in order:
        rle = example.instances[index].rle
        if rle is None:
            continue
        inside = decode(rle)
        image[inside] = 0.45 * image[inside] + 0.55 * colours[index]
        image[inside & ~_eroded(inside)] = 255 if example.instances[index].part_id >= 0 else 0
    picture = Image.fromarray(image.astype(np.uint8))
    scale = height / picture.height
    picture = picture.resize((max(1, round(picture.width * scale)), height))
    pen = ImageDraw.Draw(picture)
    for index in order:
        instance = example.instances[index]
        x0, y0, x1, y1 = (value * scale for value in instance.box)
        if instance.rle is None:
            pen.rectangle((x0, y0, x1 - 1, y1 - 1), outline=tuple(colours[index].tolist()), width=2)
        if instance.object_id >= 0:
            text = vocabulary.label_text(instance.object_id, instance.part_id)
            text = text.split(": ")[-1].encode("ascii", "replace").decode()
            pen.text(((x0 + x1) / 2 - 3 * len(text), (y0 + y1) / 2 - 5), text, fill="white",
                     stroke_width=1, stroke_fill="black")  # fmt: skip
    name = example.example_id.encode("ascii", "replace").decode()
    pen.text((3, 2), name[-40:], fill="yellow", stroke_width=1, stroke_fill="black")
    return picture


def contact_sheet(source: Source, count: int = 12, width: int = 1600) -> Image.Image:
    """Draws up to `count` readable examples of a source, evenly spread, in rows."""
    pictures = []
    for position in spread(len(source), count):
        try:
            pictures.append(draw(source[position], source.vocabulary))
        except DataError:
            continue  # `check` lists the broken ones
    rows: list[list[Image.Image]] = [[]]
    for picture in pictures:
        if rows[-1] and sum(p.width + 4 for p in rows[-1]) + picture.width > width:
            rows.append([])
        rows[-1].append(picture)
    sheet = Image.new("RGB", (width, max(1, len(rows)) * 244), "black")
    for row, line in enumerate(rows):
        x = 0
        for picture in line:
            sheet.paste(picture, (x, row * 244))
            x += picture.width + 4
    return sheet


def _eroded(mask: np.ndarray) -> np.ndarray:
    inner = mask.copy()
    inner[1:] &= mask[:-1]
    inner[:-1] &= mask[1:]
    inner[:, 1:] &= mask[:, :-1]
    inner[:, :-1] &= mask[:, 1:]
    return inner


def _box_area(box: tuple[float, float, float, float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def main(arguments: list[str] | None = None, prog: str = COMMAND) -> int:
    """Runs the check from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog, description=__doc__.splitlines()[0])
    add_source_arguments(parser)
    parser.add_argument(
        "--split", default="train", metavar="NAME", help="such as train or val (default: train)"
    )
    parser.add_argument(
        "--limit",
        type=at_least(1),
        metavar="N",
        help="read at most this many records, evenly spaced",
    )
    parser.add_argument(
        "--contact-sheet", type=png_file, metavar="FILE.png", help="write a contact sheet here"
    )
    parser.add_argument(
        "--count",
        type=at_least(1),
        default=12,
        metavar="N",
        help="images on the contact sheet (default: %(default)s)",
    )
    args = parser.parse_args(arguments)
    try:
        source = open_single_dataset(args.dataset, dataset_folder(args), args.split, args.options)
        report = check(source, args.limit)
    except (SemSamError, OSError) as error:
        print(f"{COMMAND}: {error}", file=sys.stderr)
        return 2
    for name, title in _TITLES.items():
        print(f"{title:<22} {getattr(report, name)}")
    if report.masks_per_image:
        spread_out = ", ".join(map(str, report.masks_per_image))
        print(f"{'instances per image':<22} {spread_out} (minimum, quartiles, maximum)")
    print(f"{'classes':<22} {len(report.classes)}")
    for text, number in list(report.classes.items())[:40]:
        print(f"  {number:7} {text}")
    for line in report.unused:
        print(f"note: {line}")
    print(f"{'broken records':<22} {len(report.broken)}")
    for message in report.broken[:40]:
        print(f"  {message}")
    if args.contact_sheet is not None:
        sheet = contact_sheet(source, args.count)
        try:
            write_whole(args.contact_sheet, lambda file: sheet.save(file, "PNG"))
        except OSError as error:
            message = f"{args.contact_sheet}: {error.strerror or error}"
            print(f"{COMMAND}: {message}", file=sys.stderr)
            return 2
        print(f"contact sheet: {args.contact_sheet}")
    others = [] if args.dataset in DATASETS else [s for s in ("train", "val") if s != args.split]
    for split in others:
        try:
            if has_split(dataset_folder(args), split):
                print(f"not checked: split {split} (use --split {split})")
        except DataError as error:
            print(f"{COMMAND}: {error}", file=sys.stderr)
            return 1
    return 1 if report.broken else 0


if __name__ == "__main__":
    run_command(main)
