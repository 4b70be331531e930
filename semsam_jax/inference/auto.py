"""python -m semsam_jax auto IMAGE|FOLDER: every mask, in the format of SA-1B."""

import argparse
import sys
from pathlib import Path

from semsam_jax.core.console import hides_progress
from semsam_jax.core.errors import DataError, SemSamError
from semsam_jax.inference import arguments

_SETTINGS = (
    ("points_per_side", int, 32, "clicks along each side of the grid"),
    ("points_per_batch", int, 1024, "clicks decoded together; bounds the memory"),
    ("pred_iou_thresh", float, 0.88, "smallest predicted IoU"),
    ("stability_score_thresh", float, 0.92, "smallest stability"),
    ("box_nms_thresh", float, 0.7, "box IoU above which the worse mask goes"),
    ("crop_n_layers", int, 0, "also look at 4**i crops in each layer i"),
    ("min_mask_region_area", int, 10, "smaller holes and islands are removed, pixels"),
)


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the parser of `auto`."""
    parser = commands.add_parser(
        "auto",
        help="segment everything in an image or a folder",
        description="Writes NAME.json in the format of SA-1B with NAME.jpg beside it (a hard link "
        "where possible), so that the folder is training data, and overlays/NAME.jpg. An "
        "interrupted folder goes on where it stopped; broken files are skipped and reported.",
    )
    parser.add_argument("image", metavar="IMAGE|FOLDER", help="an image, or a folder of images")
    for name, kind, default, text in _SETTINGS:
        parser.add_argument(
            "--" + name.replace("_", "-"), type=kind, default=default, help=f"{text} ({default})"
        )
    parser.add_argument(
        "--level", default="all", metavar="1..6|all", help="1 coarsest, 6 finest (all)"
    )
    parser.add_argument("--overwrite", action="store_true", help="process finished images again")
    arguments.add_labels_argument(parser)
    arguments.add_model_arguments(parser)
    arguments.add_size_argument(parser)
    parser.add_argument(
        "--out", metavar="DIR", help="default: NAME_segments beside the image or folder"
    )


def run(args: argparse.Namespace) -> int:
    """Segments the images; 0 unless every one of them was broken."""
    from semsam_jax.inference.images import IMAGE_SUFFIXES

    source = Path(args.image)
    if source.is_dir():
        images = sorted(p for p in source.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        if not images:
            raise DataError(f"{source}: no images in this folder; wanted {IMAGE_SUFFIXES}.")
    elif source.exists():
        images = [source]
    else:
        raise DataError(f"{source}: no such file or folder; check the path.")
    out = arguments.output_folder(args.out, source)
    if out.resolve() == (source if source.is_dir() else source.parent).resolve():
        raise DataError(f"--out {out}: holds the images themselves; choose another folder.")
    settings = {name: getattr(args, name) for name, *_ in _SETTINGS}
    settings |= {"level": args.level, "size": arguments.parse_size(args.size)}
    model = arguments.load_from_args(args, args.pad_to_multiple)
    return _segment_all(model, images, out, settings, args.labels, args.overwrite)


def _segment_all(model, images: list, out: Path, settings: dict, labels, overwrite: bool) -> int:
    from tqdm import tqdm

    from semsam_jax.inference import files
    from semsam_jax.inference.mask_generator import MaskGenerator

    generator = MaskGenerator(model, **settings, labels=labels, output_mode="coco_rle")
    files.make_folder(out)
    names = result_names(images)
    files.make_folder(out / "overlays")
    stamp = settings | {"labels": labels, "prompt_preset": model.prompt_preset}
    stamp |= {"pad_to_multiple": model.pad_to_multiple, "model": model.fingerprint()}
    failures: dict[str, str] = {}
    num_masks = num_done = num_old = 0
    progress = tqdm(images, unit="image", disable=hides_progress())
    for image_id, image in enumerate(progress, start=1):
        progress.set_postfix_str(image.name, refresh=False)
        target = out / f"{names[image]}.json"
        if not overwrite and _is_finished(target, stamp):
            num_old += 1
            continue
        try:
            num_masks += _segment_one(generator, image, image_id, target, stamp)
            num_done += 1
        except DataError as error:
            failures[image.name] = str(error)
    progress.close()
    for message in failures.values():
        print(f"skipped: {' '.join(message.split())}", file=sys.stderr)
    finished = f", {num_old} images were finished before" if num_old else ""
    print(f"{num_masks} masks of {num_done} images in {out}{finished}, {len(failures)} skipped")
    if num_done and not num_masks:
        print(
            f"No mask reached --pred-iou-thresh {settings['pred_iou_thresh']} and "
            f"--stability-score-thresh {settings['stability_score_thresh']}. A model that was "
            f"trained for minutes is less sure of itself: try 0.15 and 0.5.",
            file=sys.stderr,
        )
    if failures and not num_done and not num_old:
        raise SemSamError(f"{len(failures)} of {len(images)} images could not be read; see above.")
    return 0


def _segment_one(generator, path: Path, image_id: int, target: Path, stamp: dict) -> int:
    from semsam_jax.inference import convert_results, files, visualize
    from semsam_jax.inference.images import load_image

    image = load_image(path)
    records = generator.generate(image)
    small = visualize.display_size(image)
    masks = [visualize.shrink_mask(files.decode_rle(r["segmentation"]), small) for r in records]
    colours = visualize.distinct_colours(len(masks))
    names = [convert_results.record_name(record) or "" for record in records]
    overlay = visualize.overlay_masks(small, masks, colours)
    overlay = visualize.write_labels(overlay, masks, names, colours)
    copy = target.with_name(f"{target.name.removesuffix('.json')}.jpg")
    files.write_picture(target.parent / "overlays" / copy.name, overlay)
    files.link_jpeg(path, image, copy)
    annotations = [{"id": i, **record} for i, record in enumerate(records, start=1)]
    height, width = image.shape[:2]
    content = {
        "image": {
            "image_id": image_id,
            "width": width,
            "height": height,
            "file_name": copy.name,
            "source": path.name,
        },
        "annotations": annotations,
        "settings": stamp,
    }
    files.write_json(target, content)  # last: its presence says that the image is finished
    return len(records)


def result_names(images: list[Path]) -> dict[Path, str]:
    """Name of the result of each image: the stem, or the whole name where stems collide."""
    stems = [image.stem for image in images]
    return {p: p.stem if stems.count(p.stem) == 1 else p.name for p in images}


def _is_finished(target: Path, stamp: dict) -> bool:
    import json

    if not target.exists():
        return False
    try:
        return json.loads(target.read_text()).get("settings") == stamp
    except (OSError, ValueError):
        return False
