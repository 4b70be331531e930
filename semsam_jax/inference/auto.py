"""python -m semsam_jax auto IMAGE|FOLDER: every mask, in the format of SA-1B."""

import argparse
import dataclasses
import sys
import warnings
from pathlib import Path

from semsam_jax.core import rle
from semsam_jax.core.console import hides_progress
from semsam_jax.core.errors import DataError, PromptError, SemSamError
from semsam_jax.inference import arguments
from semsam_jax.inference.auto_places import (
    file_digest,
    image_number,
    is_finished,
    read_result,
    result_file,
    result_names,
    usual_names,
)

_MAX_LISTED = 10
_AS_STORED = "stored in the checkpoint"
_OVERVIEW_PX = 1024
_MAX_DRAWN = 500
_SETTINGS = (
    ("points_per_side", int, 32, "clicks along each side of the grid"),
    ("points_per_batch", int, 1024, "clicks decoded together; limits memory"),
    (
        "pred_iou_thresh",
        float,
        None,
        "minimum predicted IoU of a mask, at most 1",
    ),
    ("stability_score_thresh", float, None, "minimum stability of a mask, 0..1"),
    (
        "box_nms_thresh",
        float,
        0.7,
        "of two masks with a larger box IoU, 0..1, drop the worse",
    ),
    ("crop_n_layers", int, 0, "also segment 4**i crops in each layer i"),
    ("min_mask_region_area", int, 10, "remove smaller holes and islands, in pixels"),
    ("tile", int, None, "process square tiles of this side, for images of any size"),
    ("tile_overlap", int, None, "overlap of neighbouring tiles in pixels"),
)
_SHOWN = {"tile": "the whole image", "tile_overlap": "128, at most half a tile"}
"""Defaults that the help does not take from `_SETTINGS`."""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the parser of `auto`."""
    parser = commands.add_parser(
        "auto",
        help="segment everything in an image or a folder",
        description="Writes NAME.json in SA-1B format with a copy of the image, NAME.jpg, so "
        "that the output folder can be used for training, and overlays/NAME.jpg. An interrupted "
        "command resumes where it stopped: images whose content was already segmented with the "
        "same settings are skipped. Images of the same name get separate results. Broken files "
        "are skipped and reported; files of other types and subfolders are listed. --tile handles "
        "images of any size: those above 178 million pixels get no copy, and a georeferenced TIFF "
        "also gives NAME.geojson if rasterio is installed (the extra geo).",
    )
    parser.add_argument("image", metavar="IMAGE|FOLDER", help="an image, or a folder of images")
    for name, kind, default, text in _SETTINGS:
        shown = _SHOWN.get(name, _AS_STORED if default is None else default)
        parser.add_argument(
            "--" + name.replace("_", "-"),
            type=kind,
            default=default,
            metavar="N" if kind is int else "X",
            help=f"{text} (default: {shown})",
        )
    parser.add_argument(
        "--level", default="all", metavar="1..6|all", help="1 coarsest, 6 finest (default: all)"
    )
    arguments.add_granularity_argument(parser)
    parser.add_argument(
        "--overlap",
        choices=("all", "none"),
        default="all",
        help="none: every pixel belongs to at most one mask, small masks on top (default: all)",
    )
    parser.add_argument(
        "--tree",
        action="store_true",
        help="record the parent and depth of each mask, and add a tree in which parts lie inside "
        "their wholes and siblings do not overlap",
    )
    parser.add_argument(
        "--coco",
        action="store_true",
        help="also write annotations/train.json: the trees of all images in COCO format, for "
        "training with --config.data.custom (implies --tree)",
    )
    parser.add_argument("--overwrite", action="store_true", help="process finished images again")
    arguments.add_labels_argument(parser)
    arguments.add_model_arguments(parser)
    arguments.add_size_argument(parser)
    parser.add_argument(
        "--out", metavar="DIR", help="default: NAME_segments next to the image or folder"
    )


def run(args: argparse.Namespace) -> int:
    """Segments the images; returns 0 unless every one of them was unreadable."""
    from semsam_jax.inference.images import IMAGE_SUFFIXES

    _check_thresholds(args)
    source = Path(args.image)
    others: list[str] = []
    if source.is_dir():
        entries = sorted(p for p in source.iterdir() if not p.name.startswith("."))
        images = [p for p in entries if p.suffix.lower() in IMAGE_SUFFIXES and not p.is_dir()]
        others = [p.name + "/" * p.is_dir() for p in entries if p not in images]
        if not images:
            found = f" (found: {_listed(others)})" if others else ""
            raise DataError(
                f"{source}: no images in this folder{found}; expected {', '.join(IMAGE_SUFFIXES)}."
            )
    elif source.exists():
        images = [source]
    else:
        raise DataError(f"{source}: no such file or folder; check the path.")
    out = arguments.output_folder(args.out, source)
    if out.resolve() == (source if source.is_dir() else source.parent).resolve():
        raise DataError(f"--out {out}: holds the images themselves; choose another folder.")
    settings = {name: getattr(args, name) for name, *_ in _SETTINGS}
    settings |= {"level": args.level, "size": arguments.parse_size(args.size)}
    settings |= {"overlap": args.overlap, "tree": args.tree or args.coco}
    if args.granularity is not None:
        settings["granularity"] = arguments.parse_granularities(args.granularity)
    model = arguments.load_from_args(args, args.pad_to_multiple)
    if others:
        print(
            f"ignored, because they are not images of a supported format: {_listed(others)}",
            file=sys.stderr,
        )
    done = _segment_all(model, images, out, settings, args.labels, args.overwrite)
    if args.coco:
        _write_coco(out, done)
    return 0


def _check_thresholds(args: argparse.Namespace) -> None:
    """Raises PromptError for a threshold above 1, which no mask reaches, or without meaning."""
    for name in ("pred_iou_thresh", "stability_score_thresh", "box_nms_thresh"):
        value, is_free = getattr(args, name), name == "pred_iou_thresh"
        if value is not None and not (value <= 1 and (is_free or value >= 0)):
            flag, wanted = "--" + name.replace("_", "-"), "at most 1" if is_free else "0..1"
            raise PromptError(f"{flag} {value:g}: expected a number, {wanted}.")


def _write_coco(out: Path, results: list[Path]) -> None:
    """Writes the trees of all images as one file in COCO format."""
    from semsam_jax.inference import files
    from semsam_jax.inference.tree import trees_to_coco

    trees = []
    for target in results:
        content = read_result(target)
        image = content["image"]
        trees.append((content["tree"], image["file_name"], image["height"], image["width"]))
    files.make_folder(out / "annotations")
    files.write_json(out / "annotations" / "train.json", trees_to_coco(trees))
    print(f"trees of {len(trees)} images in {out / 'annotations' / 'train.json'}")


def _segment_all(
    model, images: list, out: Path, settings: dict, labels, overwrite: bool
) -> list[Path]:
    """Segments what is not finished yet; returns the results of all images."""
    from tqdm import tqdm

    from semsam_jax.inference import files
    from semsam_jax.inference.mask_generator import MaskGenerator

    generator = MaskGenerator(model, **settings, labels=labels, output_mode="coco_rle")
    suited = dataclasses.asdict(generator.filters)
    settings |= {name: suited[name] for name in ("pred_iou_thresh", "stability_score_thresh")}
    settings["tile_overlap"] = generator.tile_overlap
    files.make_folder(out)
    names = result_names(images)
    for folder in (out, files.make_folder(out / "overlays")):
        files.remove_partial(folder)
    stamp = settings | {"labels": labels, "prompt_preset": model.prompt_preset}
    stamp |= {"pad_to_multiple": model.pad_to_multiple, "model": model.fingerprint()}
    stamp["dtype"] = model.dtype
    failures: dict[str, str] = {}
    clashes: dict[str, str] = {}
    results: list[Path] = []
    num_masks = num_done = num_old = 0
    progress = tqdm(images, unit="image", disable=hides_progress())
    for image in progress:
        progress.set_postfix_str(image.name, refresh=False)
        try:
            source = {"name": image.name, "sha256": file_digest(image)}
            own_stamp = stamp | {"source": source}
            target = result_file(out, names[image], image, own_stamp)
            if not overwrite and is_finished(target, own_stamp):
                num_old += 1
                results.append(target)
                continue
            if target.stem not in usual_names(names[image], image):
                clashes[image.name] = target.name
            number = image_number(target, source["sha256"])
            num_masks += _segment_one(generator, image, number, target, own_stamp)
            num_done += 1
            results.append(target)
        except files.OutputError:
            progress.close()
            raise
        except DataError as error:
            failures[image.name] = str(error)
    progress.close()
    for name, result in list(clashes.items())[:_MAX_LISTED]:
        print(
            f"{name}: {out} already contains results of another image of that name; wrote {result}",
            file=sys.stderr,
        )
    if len(clashes) > _MAX_LISTED:
        print(f"... and {len(clashes) - _MAX_LISTED} more images of the same name", file=sys.stderr)
    for message in failures.values():
        print(f"skipped: {' '.join(message.split())}", file=sys.stderr)
    finished = f", {num_old} already finished" if num_old else ""
    count = f"{num_done} image{'' if num_done == 1 else 's'}"
    print(f"{num_masks} masks of {count} in {out}{finished}, {len(failures)} skipped")
    if num_done and not num_masks:
        print(
            f"No mask reached --pred-iou-thresh {settings['pred_iou_thresh']} and "
            f"--stability-score-thresh {settings['stability_score_thresh']}. A barely "
            f"trained model has low scores: try 0.15 and 0.5.",
            file=sys.stderr,
        )
    if failures and not num_done and not num_old:
        raise SemSamError(f"{len(failures)} of {len(images)} images could not be read; see above.")
    return list(dict.fromkeys(results))


def _segment_one(generator, path: Path, image_id: int, target: Path, stamp: dict) -> int:
    from semsam_jax.inference import files
    from semsam_jax.inference.geojson import to_geojson
    from semsam_jax.inference.images import MAX_PIXELS, load_image
    from semsam_jax.inference.large_images import RasterImage, open_large

    copy = target.with_name(f"{target.name.removesuffix('.json')}.jpg")
    geojson = None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "no mask reached")  # said once for all, at the end
        if generator.tile is None:
            image = load_image(path)
            records, (height, width) = generator.generate(image), image.shape[:2]
            overlay = _overlay(image, records)
        else:
            with open_large(path) as source:
                records, (height, width) = _in_tiles(generator, source), source.image_hw
                overlay = _small_overlay(source.overview(_OVERVIEW_PX), records)
                if isinstance(source, RasterImage) and source.is_georeferenced:
                    dataset = source.dataset
                    geojson = to_geojson(records, dataset.transform, dataset.crs)
                # The pixels that were segmented: another reader may turn the file, or refuse it.
                is_small = height * width <= MAX_PIXELS
                image = source.read(0, 0, width, height) if is_small else None
    files.write_picture(target.parent / "overlays" / copy.name, overlay)
    if image is not None:
        files.write_bytes(copy, files.jpeg_copy(path, image))
    if geojson is not None:
        files.write_json(target.with_suffix(".geojson"), geojson)
    elif (read_result(target).get("settings") or {}).get("tile"):  # of an earlier run in tiles
        target.with_suffix(".geojson").unlink(missing_ok=True)
    annotations = [{"id": i, **_by_id(record)} for i, record in enumerate(records, start=1)]
    content = {
        "image": {
            "image_id": image_id,
            "width": width,
            "height": height,
            "file_name": path.name if image is None else copy.name,
            "source": path.name,
        },
        "annotations": annotations,
        "settings": stamp,
    }
    if records.tree is not None:
        content["tree"] = records.tree.records()
    files.write_json(target, content)  # last: its presence says that the image is finished
    return len(records)


def _in_tiles(generator, source):
    """Records of a large image, with a bar of its tiles: there may be hundreds."""
    from tqdm import tqdm

    from semsam_jax.inference.large_images import WatchedImage
    from semsam_jax.inference.tiles import tile_boxes

    count = len(tile_boxes(source.image_hw, generator.tile, generator.tile_overlap))
    with tqdm(total=count, unit="tile", leave=False, disable=hides_progress()) as progress:
        return generator.generate(WatchedImage(source, progress.update))


def _overlay(image, records):
    from semsam_jax.inference import convert_results, visualize

    small = visualize.display_size(image)
    masks = [visualize.shrink_mask(rle.decode(r["segmentation"]), small) for r in records]
    colours = visualize.distinct_colours(len(masks))
    overlay = visualize.overlay_masks(small, masks, colours)
    names = [convert_results.record_caption(record) for record in records]
    return visualize.write_labels(overlay, masks, names, colours)


def _small_overlay(small, records):
    """The largest masks over a small copy; each is decoded within its box only."""
    import cv2
    import numpy as np

    from semsam_jax.inference import convert_results, visualize

    shown = sorted(records, key=lambda record: -record["area"])[:_MAX_DRAWN]
    masks = []
    for record in shown:
        height, width = record["segmentation"]["size"]
        fx, fy = small.shape[1] / width, small.shape[0] / height
        x, y, w, h = (int(v) for v in record["bbox"])
        window = rle.decode_window(record["segmentation"], x, y, x + w + 1, y + h + 1)
        x0, y0 = int(x * fx), int(y * fy)
        size = (max(1, round(window.shape[1] * fx)), max(1, round(window.shape[0] * fy)))
        part = cv2.resize(window.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
        mask = np.zeros(small.shape[:2], bool)
        part = part[: mask.shape[0] - y0, : mask.shape[1] - x0]
        mask[y0 : y0 + part.shape[0], x0 : x0 + part.shape[1]] = part
        masks.append(mask)
    colours = visualize.distinct_colours(len(masks))
    names = [convert_results.record_caption(record) for record in shown]
    overlay = visualize.overlay_masks(small, masks, colours)
    return visualize.write_labels(overlay, masks, names, colours)


def _by_id(record: dict) -> dict:
    """A record whose parent, a position from 0, is the id of an annotation, from 1."""
    parent = record.get("parent")
    return record if parent is None else record | {"parent": parent + 1}


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return ", ".join(names[:_MAX_LISTED]) + more
