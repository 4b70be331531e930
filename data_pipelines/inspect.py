"""Draws training examples as the model sees them, one PNG per stream.

    semsam data inspect --config=configs/joint.py --n 16
    semsam data inspect --out /tmp/rows

The images go to runs/inspect, or to --out. Without a config the embedded sample is drawn.
Interactive rows show all prompts, then single prompts with their targets from blue (largest) to red
(smallest), pseudo targets as white outlines alone; generic rows show every instance with its label.
Grey is padding.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from absl import app, flags
from etils import epath
from ml_collections import config_flags
from PIL import Image, ImageDraw

from data_pipelines import sample
from data_pipelines.index.files import write_whole
from data_pipelines.pipeline import STREAMS, make_iterator
from data_pipelines.recipe import pipeline_config
from data_pipelines.schema import DATASETS
from data_pipelines.sources import open_source
from data_pipelines.sources.single_dataset import custom_classes, reader_options
from data_pipelines.transforms.masks import unpack_bits
from data_pipelines.vocabulary import Vocabulary, build_vocabulary
from semsam_jax.core.ending import run_command
from semsam_jax.core.errors import ConfigError, SemSamError

COMMAND = "semsam data inspect"
"""Starts every message of the command."""
PANEL_PX = 288
_BAR_PX = 16
_PADDING_GREY = 70


def draw_rows(
    batch: Mapping[str, np.ndarray],
    vocabulary: Vocabulary,
    path: str | pathlib.Path,
    *,
    num_prompts: int = 4,
    datasets: Sequence[str] = DATASETS,
) -> None:
    """Draws every row of a batch of one stream, one below the other, into a PNG.

    Args:
        batch: host arrays of `BatchShape.spec` behind a leading row axis.
        vocabulary: for the labels.
        path: the file.
        num_prompts: single prompts shown next to each row (boxes last); 0 shows the labelled
            instances only, for generic rows.
        datasets: name of each dataset number.
    """
    sheets = []
    for number in range(len(batch["image"])):
        row = {key: values[number] for key, values in batch.items()}
        name = datasets[int(row["dataset"])]
        panels = [_overview(row, vocabulary, name, show_prompts=num_prompts > 0)]
        panels += [
            _prompt_panel(row, vocabulary, prompt) for prompt in _shown_prompts(row, num_prompts)
        ]
        sheets.append(np.concatenate(panels, axis=1))
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = Image.fromarray(np.concatenate(_columns(sheets, num_prompts), axis=1))
    write_whole(path, lambda file: drawn.save(file, "PNG"))


def _columns(sheets: list[np.ndarray], num_prompts: int) -> list[np.ndarray]:
    """Puts rows that are single panels side by side."""
    width = 1 if num_prompts else 4
    blank = np.zeros_like(sheets[0])
    columns = [sheets[start::width] for start in range(min(width, len(sheets)))]
    tallest = len(columns[0])
    return [np.concatenate(c + [blank] * (tallest - len(c)), axis=0) for c in columns]


def _shown_prompts(row: Mapping[str, np.ndarray], count: int) -> list[int]:
    """Clicks first, with one box among them if there is any."""
    valid = row["prompt_valid"]
    clicks = np.flatnonzero(valid & ~row["prompt_is_box"]).tolist()
    boxes = np.flatnonzero(valid & row["prompt_is_box"]).tolist()
    num_boxes = min(len(boxes), max(1, count - len(clicks))) if count else 0
    return clicks[: count - num_boxes] + boxes[:num_boxes]


def _overview(
    row: Mapping[str, np.ndarray], vocabulary: Vocabulary, name: str, *, show_prompts: bool
) -> np.ndarray:
    picture = _image(row)
    count = int(row["instance_valid"].sum())
    colours = _distinct_colours(count)
    for slot in _large_first(row, np.arange(count)):
        _paint(picture, row, slot, colours[slot], 0.35)
    if show_prompts:
        for prompt in np.flatnonzero(row["prompt_valid"]).tolist():
            _mark_prompt(picture, row, prompt, 1)
    canvas = Image.fromarray(picture)
    pen = ImageDraw.Draw(canvas)
    if not show_prompts:
        for slot in range(count):
            x, y = (row["boxes"][slot, :2] * PANEL_PX).tolist()
            text = _label(row, vocabulary, slot)
            _write(pen, (x - 3 * len(text), y - 5), text)
    num_names = int(row["vocab_valid"].sum())
    rows, columns = row["size_hw"].tolist()
    title = f"{name}  {rows}x{columns}  {count} instances"
    return _titled(canvas, title + (f"  {num_names} names" if num_names else ""))


def _prompt_panel(row: Mapping[str, np.ndarray], vocabulary: Vocabulary, prompt: int) -> np.ndarray:
    picture = _image(row)
    targets = row["prompt_targets"][prompt]
    targets = _large_first(row, targets[targets >= 0])
    spectrum = np.linspace(0.66, 0.0, len(targets)) if len(targets) > 1 else [0.33]
    for slot, hue in zip(targets, spectrum, strict=True):
        _paint(picture, row, slot, _hue(hue), 0.5)
    pseudo = row["pseudo_targets"][prompt]
    pseudo = pseudo[pseudo >= 0].tolist()
    for slot in pseudo:
        _paint(picture, row, slot, (255, 255, 255), 0.0)
    _mark_prompt(picture, row, prompt, 2)
    kind = "box" if row["prompt_is_box"][prompt] else "click"
    # "dog, ear, nose": the whole is named once.
    labels = dict.fromkeys(
        name for slot in targets for name in _label(row, vocabulary, slot).split(": ") if name
    )
    made = f" + {len(pseudo)} pseudo" if pseudo else ""
    text = f"{kind} {prompt}: {len(targets)} targets{made}  {', '.join(labels)}"
    return _titled(Image.fromarray(picture), text)


def _image(row: Mapping[str, np.ndarray]) -> np.ndarray:
    image = row["image"].copy()
    rows, columns = row["size_hw"]
    image[rows:] = _PADDING_GREY
    image[:, columns:] = _PADDING_GREY
    return cv2.resize(image, (PANEL_PX, PANEL_PX), interpolation=cv2.INTER_AREA)


def _paint(
    picture: np.ndarray,
    row: Mapping[str, np.ndarray],
    slot: int,
    colour: tuple[int, int, int],
    opacity: float,
) -> None:
    """Draws the filled and outlined mask and a thin box."""
    if row["has_masks"]:
        mask = unpack_bits(row["mask_bits"][slot]).astype(np.uint8)
        mask = cv2.resize(mask, (PANEL_PX, PANEL_PX), interpolation=cv2.INTER_NEAREST)
        inside = mask > 0
        picture[inside] = (1 - opacity) * picture[inside] + opacity * np.array(colour)
        outlines, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, outlines, -1, colour, 1)
    else:
        cv2.rectangle(picture, *_corners(row["boxes"][slot]), colour, 1)


def _mark_prompt(
    picture: np.ndarray, row: Mapping[str, np.ndarray], prompt: int, thickness: int
) -> None:
    box = row["prompt_box"][prompt]
    if row["prompt_is_box"][prompt]:
        cv2.rectangle(picture, *_corners(box), (255, 255, 0), thickness)
        return
    centre = tuple(int(value) for value in box[:2] * PANEL_PX)
    cv2.circle(picture, centre, 2 + thickness, (0, 0, 0), -1)
    cv2.circle(picture, centre, 1 + thickness, (255, 255, 255), -1)


def _corners(box_cxcywh: np.ndarray) -> tuple[tuple[int, int], tuple[int, int]]:
    cx, cy, w, h = (float(value) * PANEL_PX for value in box_cxcywh)
    first = (int(cx - w / 2), int(cy - h / 2))
    return first, (int(np.ceil(cx + w / 2)) - 1, int(np.ceil(cy + h / 2)) - 1)


def _large_first(row: Mapping[str, np.ndarray], slots: np.ndarray) -> list[int]:
    """Slots from the largest to the smallest, by mask area or by box area."""
    if row["has_masks"]:
        area = np.bitwise_count(row["mask_bits"][slots]).sum(axis=(1, 2), dtype=np.int64)
    else:
        area = row["boxes"][slots, 2] * row["boxes"][slots, 3]
    return slots[np.argsort(-area, kind="stable")].tolist()


def _label(row: Mapping[str, np.ndarray], vocabulary: Vocabulary, slot: int) -> str:
    object_id, part_id = int(row["object_id"][slot]), int(row["part_id"][slot])
    names = [vocabulary.entry(index).text for index in (object_id, part_id) if index >= 0]
    return ": ".join(names).encode("ascii", "replace").decode()


def _distinct_colours(count: int) -> list[tuple[int, int, int]]:
    """Hues spaced by the golden ratio."""
    return [_hue((0.1 + 0.618 * number) % 1.0) for number in range(count)]


def _hue(hue: float) -> tuple[int, int, int]:
    pixel = np.array([[[int(hue * 179), 230, 255]]], np.uint8)
    red, green, blue = cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0].tolist()
    return red, green, blue


def _titled(picture: Image.Image, text: str) -> np.ndarray:
    framed = Image.new("RGB", (PANEL_PX + 2, PANEL_PX + _BAR_PX), "black")
    framed.paste(picture, (0, _BAR_PX))
    ImageDraw.Draw(framed).text((2, 2), text[: PANEL_PX // 6], fill="white")
    return np.asarray(framed)


def _write(pen: ImageDraw.ImageDraw, place: tuple[float, float], text: str) -> None:
    pen.text(place, text, fill="white", stroke_width=1, stroke_fill="black")


def sample_settings() -> dict:
    """The `data` group used without a config: all datasets of the embedded sample."""
    even = dict.fromkeys(DATASETS, 1.0)
    return {
        "root": "",
        "custom": "",
        "datasets": {**even, "objects365": 0.0},
        "granularity": {"any": 1.0, "part": 1.0},
        "generic_datasets": {**even, "sa1b": 0.0},
        "interactive_batch": 1,
        "generic_batch": 1,
        "image_size": 512,
        "mask_stride": 1,
        "max_instances": 100,
        "num_prompts": 24,
        "max_targets": 6,
        "box_share": 0.25,
        "hierarchy": True,
        "prompt_shares": {},
        "granularity_balance": 0.0,
        "center_clicks": 0.0,
        "pseudo_hierarchy": 0.0,
        "verified_classes": True,
        "subsets": {},
        "flip": 0.5,
        "scale_jitter": (0.5, 2.0),
        "sa1b_jitter": (0.99, 1.01),
        "ade20k_jitter": (0.5, 2.0),
        "num_workers": 0,
        "pascal_part_tree": False,
        "ade20k_parts": False,
    }


def inspect(
    data: Mapping, num_rows: int, out: str | pathlib.Path, *, split: str = "train", seed: int = 0
) -> list[pathlib.Path]:
    """Draws the first rows of each stream of a recipe and prints its mixture tables.

    Args:
        data: the recipe's `data` group; `sample_settings` lists the keys that are read.
        num_rows: rows drawn of each stream.
        out: folder for `interactive.png` and `generic.png`.
        split: split of the datasets.
        seed: of the input.

    Returns:
        The files written.
    """
    if not data["image_size"]:
        raise ConfigError(
            "inspect: this recipe takes image_size from its checkpoint; give the same with "
            "--config.data.image_size=N."
        )
    shares = (dict(data["datasets"]), dict(data["generic_datasets"]))
    used = [name for name in {**shares[0], **shares[1]} if any(s.get(name, 0) for s in shares)]
    own = sorted(set(used) - set(DATASETS))
    root = epath.Path(data["root"]) if data["root"] else None
    placed = {}
    if data["custom"] and "custom" in used:
        placed["custom"] = epath.Path(data["custom"])
    if root is None and set(own) - set(placed):
        raise ConfigError(
            f"inspect: {', '.join(own)} are not in the embedded sample ({', '.join(DATASETS)}); "
            f"give the folder above them as config.data.root, or that of custom "
            f"as config.data.custom."
        )
    folders = {name: root / name for name in used} if root else dict(sample.roots())
    folders |= placed
    vocabulary = build_vocabulary(
        [name for name in used if name in DATASETS],
        extra={name: custom_classes(name, folders[name], split) for name in own},
        pascal_parts="full" if data["pascal_part_tree"] else "merged",
    )
    switches = {key: data[key] for key in ("pascal_part_tree", "ade20k_parts")}
    options = reader_options(**switches)
    sources = {
        name: open_source(name, folders[name], split, vocabulary, **options.get(name, {}))
        for name in used
    }
    rows = {f"{name}_batch": num_rows if data[f"{name}_batch"] else 0 for name in STREAMS}
    config = dataclasses.replace(
        pipeline_config({**data, **rows, "num_workers": 0}, len(vocabulary)),
        num_threads=0,
        prefetch=0,
    )
    iterator = make_iterator(config, sources, vocabulary, seed=seed)
    written = []
    for note in iterator.notes:
        print(f"note: {note}")
    for name, rows in next(iterator).items():
        print(f"{name} stream\n{iterator.tables[name].format()}")
        path = pathlib.Path(out) / f"{name}.png"
        draw_rows(
            rows,
            vocabulary,
            path,
            num_prompts=4 if name == STREAMS[0] else 0,
            datasets=(*DATASETS, *own),
        )
        written.append(path)
    iterator.close()
    return written


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Runs from the command line; flags are defined here so that importing has no side effects."""
    sys.argv = [prog or sys.argv[0], *(sys.argv[1:] if arguments is None else arguments)]
    config = config_flags.DEFINE_config_file("config", None, "recipe whose `data` group is drawn")
    num_rows = flags.DEFINE_integer("n", 16, "rows drawn of each stream", lower_bound=1)
    out = flags.DEFINE_string("out", "runs/inspect", "folder for the pictures")
    split = flags.DEFINE_string("split", "train", "split of the datasets")
    seed = flags.DEFINE_integer("seed", 0, "seed of the input")
    if {"--help", "-h"} & set(sys.argv[1:]):
        shown = [
            f"  --{one.name}: {flags.FLAGS[one.name].help}"
            for one in (config, num_rows, out, split, seed)
        ]
        print("\n".join([__doc__, *shown]))
        return

    def run(arguments: Sequence[str]) -> None:
        data = config.value.data.to_dict() if config.value is not None else sample_settings()
        try:
            if len(arguments) > 1:
                raise ConfigError(
                    f"command line: unexpected {arguments[1]!r}; options start with --"
                )
            for path in inspect(
                data, num_rows.value, out.value, split=split.value, seed=seed.value
            ):
                print(path)
        except SemSamError as error:
            print(f"{COMMAND}: {error}", file=sys.stderr)
            sys.exit(2)
        except OSError as error:
            where = error.filename or out.value
            print(f"{COMMAND}: {where}: {error.strerror or error}", file=sys.stderr)
            sys.exit(2)

    def parse(argv: list[str]) -> list[str]:
        try:
            return flags.FLAGS(argv)
        except (flags.Error, KeyError, AttributeError, ImportError, OSError) as error:
            print(f"{COMMAND}: command line: {' '.join(str(error).split())}", file=sys.stderr)
            sys.exit(2)

    app.run(run, argv=sys.argv, flags_parser=parse)


if __name__ == "__main__":
    run_command(main)
