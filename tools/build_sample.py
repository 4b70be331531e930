"""Builds the embedded sample: `python -m tools.build_sample --from DIR --out DIR`.

DIR holds freely licensed COCO images with COCO annotations, the same images in the SA-1B layout,
and stand-ins for the layouts whose images may not be redistributed (see `README.md` here). The
builder shrinks images and annotations together and splits by COCO id, the same way everywhere,
so that no image of `val` is ever seen in `train`.
"""

import argparse
import csv
import json
import pathlib
import shutil
from collections.abc import Iterable

import numpy as np
import scipy.io
from PIL import Image

from data_pipelines.vocabulary import class_file
from tools.shrink import Shrink, rle_area, rle_box, shrink_image, text_rle

VAL_IDS = frozenset(
    (285, 785, 872, 885, 1000, 1268, 1296, 1993, 2149, 2153, 2473, 3553, 5001, 6012, 6723, 6818,
     7281, 7511, 7574, 7991, 8021, 8762, 8844, 9483)
)  # fmt: skip
"""COCO ids of the 24 held-out images: COCO val2017 images with human masks of things and stuff."""

_MAX_MASKS = 32
_MIN_PSEUDO_AREA = 100
_STANDIN = "machine-made part masks on human object masks, for format and wiring only"
_ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe")
_ADE_EXTRA = {
    "pavement": "sidewalk", "dining table": "table", "brick wall": "wall", "stone wall": "wall",
    "tile wall": "wall", "wood wall": "wall", "wood floor": "floor", "dirt": "soil",
} | {name: "animal" for name in _ANIMALS}  # fmt: skip


def split_of(coco_id: int) -> str:
    """Returns `val` for the held-out images, else `train`."""
    return "val" if coco_id in VAL_IDS else "train"


def build_sa1b(source: pathlib.Path, out: pathlib.Path) -> None:
    """Writes all images in the SA-1B layout, human masks first, then the best pseudo-labels."""
    for file in sorted((source / "sa1b_layout_from_coco_cc" / "batch_000").glob("*.json")):
        content = json.loads(file.read_text())
        coco_id = content["image"]["image_id"]
        folder = out / "sa1b" / split_of(coco_id)
        shrink = shrink_image(file.with_suffix(".jpg"), folder / f"sa_{coco_id}.jpg", 448, 72)
        human = [a for a in content["annotations"] if a["id"] % 1000 < 500]
        pseudo = sorted(
            (a for a in content["annotations"] if a["id"] % 1000 >= 500),
            key=lambda annotation: -annotation["stability_score"],
        )
        kept: list[dict] = []
        for annotation in human + pseudo:
            is_pseudo = annotation["id"] % 1000 >= 500
            if is_pseudo and len(kept) >= _MAX_MASKS:
                break
            rle = shrink.segmentation(annotation["segmentation"])
            if rle is None or (is_pseudo and rle_area(rle) < _MIN_PSEUDO_AREA):
                continue
            kept.append(_sa1b_annotation(annotation, rle, shrink, is_pseudo))
        height, width = shrink.new_hw
        image = {"image_id": coco_id, "width": width, "height": height}
        _write_json(
            folder / f"sa_{coco_id}.json",
            {"image": image | {"file_name": f"sa_{coco_id}.jpg"}, "annotations": kept},
        )


def build_coco(source: pathlib.Path, out: pathlib.Path) -> None:
    """Writes COCO panoptic, and instances of the same images."""
    origin = source / "coco_panoptic_cc"
    shrinks: dict[int, Shrink] = {}
    panoptic = {split: {"images": [], "annotations": []} for split in ("train", "val")}
    instances = {split: {"images": [], "annotations": []} for split in ("train", "val")}
    for part in ("train", "val"):
        content = json.loads((origin / f"annotations/panoptic_{part}2017.json").read_text())
        images = {image["id"]: image for image in content["images"]}
        for record in content["annotations"]:
            coco_id = record["image_id"]
            split = split_of(coco_id)
            name = images[coco_id]["file_name"]
            shrink = shrink_image(
                origin / f"{part}2017" / name, out / "coco" / f"{split}2017" / name, 416, 74
            )
            shrinks[coco_id] = shrink
            png = origin / f"annotations/panoptic_{part}2017" / record["file_name"]
            with Image.open(png) as image:
                colours = shrink.labels(np.asarray(image.convert("RGB")))
            target = out / f"coco/annotations/panoptic_{split}2017" / record["file_name"]
            _write_png(target, colours)
            ids = colours.astype(np.int64) @ np.asarray([1, 256, 65536])
            panoptic[split]["images"].append(_sized(images[coco_id], shrink))
            panoptic[split]["annotations"].append(
                record | {"segments_info": list(_segments(record["segments_info"], ids, shrink))}
            )
        for split in panoptic:
            panoptic[split]["categories"] = content["categories"]
    for part in ("train", "val"):
        content = json.loads((origin / f"annotations/instances_{part}2017.json").read_text())
        images = {image["id"]: image for image in content["images"] if image["id"] in shrinks}
        for coco_id, image in images.items():
            instances[split_of(coco_id)]["images"].append(_sized(image, shrinks[coco_id]))
        for annotation in content["annotations"]:
            coco_id = annotation["image_id"]
            if coco_id in images:
                instances[split_of(coco_id)]["annotations"] += _shrunk(annotation, shrinks[coco_id])
        for split in instances:
            instances[split]["categories"] = content["categories"]
    for split in ("train", "val"):
        for kind, content in (("panoptic", panoptic[split]), ("instances", instances[split])):
            _write_json(out / f"coco/annotations/{kind}_{split}2017.json", content)


def build_ade20k(out: pathlib.Path, num_train: int = 10, num_val: int = 4) -> None:
    """Writes a SceneParsing stand-in from the sample's COCO images, where class names agree."""
    ade = class_file("ade20k")["objects"]
    by_text = {row["text"]: row for row in ade}
    things = [row["id"] for row in ade if row.get("is_thing", True)]
    coco_text = {row["id"]: row["text"] for row in class_file("coco")["objects"]}
    number = 0
    for split, folder, count in (("train", "training", num_train), ("val", "validation", num_val)):
        content = json.loads((out / f"coco/annotations/panoptic_{split}2017.json").read_text())
        images = {image["id"]: image for image in content["images"]}
        ranked = []
        for record in content["annotations"]:
            image = images[record["image_id"]]
            matched = []
            for segment in record["segments_info"]:
                text = coco_text[segment["category_id"]]
                row = by_text.get(_ADE_EXTRA.get(text, text))
                if row is not None and not segment["iscrowd"]:
                    matched.append((segment, row))
            area = sum(segment["area"] for segment, _ in matched)
            kinds = len({row["id"] for _, row in matched})
            ranked.append((-kinds, -area / (image["height"] * image["width"]), record, matched))
        ranked.sort(key=lambda entry: (entry[0], entry[1], entry[2]["image_id"]))
        for _, _, record, matched in ranked[:count]:
            number += 1
            image = images[record["image_id"]]
            name = f"ADE_{split}_{number:08d}"
            copy = out / "ade20k/images" / folder / f"{name}.jpg"
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(out / f"coco/{split}2017" / image["file_name"], copy)
            png = out / f"coco/annotations/panoptic_{split}2017" / record["file_name"]
            ids = np.asarray(Image.open(png)).astype(np.int64) @ np.asarray([1, 256, 65536])
            classes = np.zeros(ids.shape, np.uint8)
            instances = np.zeros((*ids.shape, 3), np.uint8)
            seen: dict[int, int] = {}
            for segment, row in matched:
                mask = ids == segment["id"]
                classes[mask] = row["id"]
                if row["id"] in things:
                    seen[row["id"]] = seen.get(row["id"], 0) + 1
                    instances[mask] = (things.index(row["id"]) + 1, seen[row["id"]], 0)
            _write_png(out / "ade20k/annotations" / folder / f"{name}.png", classes)
            _write_png(out / "ade20k/annotations_instance" / folder / f"{name}.png", instances)
            _note_id(out, f"ade20k/images/{folder}/{name}.jpg", record["image_id"])


def build_objects365(source: pathlib.Path, out: pathlib.Path) -> None:
    """Writes the Objects365 stand-in: boxes only."""
    origin = source / "layout_standins" / "objects365"
    content = json.loads((origin / "zhiyuan_objv2_standin.json").read_text())
    _write_coco_like(
        content, origin, out / "objects365", "zhiyuan_objv2_{split}.json", "{name}", 320
    )


def build_paco(source: pathlib.Path, out: pathlib.Path) -> None:
    """Writes the PACO-LVIS stand-in."""
    origin = source / "layout_standins" / "paco_lvis"
    content = json.loads((origin / "annotations/paco_lvis_v1_standin.json").read_text())
    once = {}  # the stand-in holds some objects twice
    for annotation in content["annotations"]:
        key = (annotation["image_id"], annotation["category_id"], str(annotation["segmentation"]))
        once.setdefault(key, annotation)
    content["annotations"] = list(once.values())
    _write_coco_like(
        content, origin, out / "paco", "annotations/paco_lvis_v1_{split}.json", "{split}2017/{tail}"
    )
    _write_json(
        out / "paco/PROVENANCE.json", {"objects": "human", "parts": "pseudo", "note": _STANDIN}
    )


def build_part_imagenet(source: pathlib.Path, out: pathlib.Path) -> None:
    """Writes the PartImageNet stand-in."""
    origin = source / "layout_standins" / "partimagenet"
    content = json.loads((origin / "annotations/standin.json").read_text())
    for image in content["images"]:
        image["file_name"] = f"images/standin/{image['file_name']}"
    _write_coco_like(
        content, origin, out / "part_imagenet", "annotations/{split}.json", "images/{split}/{tail}"
    )
    for split in ("train", "val"):
        file = out / f"part_imagenet/annotations/{split}.json"
        written = json.loads(file.read_text())
        for image in written["images"]:
            image["file_name"] = pathlib.PurePosixPath(image["file_name"]).name
        _write_json(file, written)
    _write_json(
        out / "part_imagenet/PROVENANCE.json",
        {"objects": "pseudo", "parts": "pseudo", "note": _STANDIN},
    )


def build_pascal_part(source: pathlib.Path, out: pathlib.Path) -> None:
    """Writes the PASCAL-Part stand-in: MATLAB files with the nesting of the original."""
    origin = source / "layout_standins" / "pascal_part"
    lists: dict[str, list[str]] = {"train": [], "val": []}
    for file in sorted((origin / "Annotations_Part").glob("*.mat")):
        name, coco_id = file.stem, int(file.stem.split("_")[1])
        shrink = shrink_image(
            origin / "JPEGImages" / f"{name}.jpg",
            out / "pascal_part/JPEGImages" / f"{name}.jpg",
            416,
            74,
        )
        anno = scipy.io.loadmat(str(file))["anno"]
        for whole in anno[0, 0]["objects"].reshape(-1):
            whole["mask"] = shrink.mask(whole["mask"])
            for part in whole["parts"].reshape(-1):
                part["mask"] = shrink.mask(part["mask"])
        target = out / "pascal_part/Annotations_Part" / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        scipy.io.savemat(str(target), {"anno": anno}, do_compression=True)
        lists[split_of(coco_id)].append(name)
        _note_id(out, f"pascal_part/JPEGImages/{name}.jpg", coco_id)
    for split, names in lists.items():
        target = out / f"pascal_part/ImageSets/Main/{split}.txt"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("".join(f"{name}\n" for name in names))
    _write_json(
        out / "pascal_part/PROVENANCE.json",
        {"objects": "human", "parts": "pseudo", "note": _STANDIN},
    )


def write_attribution(source: pathlib.Path, out: pathlib.Path) -> None:
    """Writes ATTRIBUTION.csv: one row for each image file of the sample."""
    with (source / "coco_panoptic_cc" / "ATTRIBUTION.csv").open(newline="") as file:
        licences = {int(row["coco_id"]): row for row in csv.DictReader(file)}
    noted = out / "coco_ids.tmp"
    known = dict(line.split("\t") for line in noted.read_text().splitlines())
    noted.unlink()
    with (out / "ATTRIBUTION.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ["file", "split", "coco_id", "license", "license_url", "flickr_url", "changes"]
        )
        for image in sorted(p for p in out.rglob("*") if p.suffix in (".jpg", ".JPEG")):
            path = image.relative_to(out).as_posix()
            digits = image.stem.rsplit("_", 1)[-1]
            coco_id = int(known.get(path, digits))
            row = licences[coco_id]
            writer.writerow(
                [path, split_of(coco_id), coco_id, row["license"], row["license_url"],
                 row["flickr_url"], "scaled down, re-encoded"]
            )  # fmt: skip


def _write_coco_like(
    content: dict,
    origin: pathlib.Path,
    out: pathlib.Path,
    file: str,
    image_name: str,
    side: int = 416,
) -> None:
    """Shrinks a COCO-style tree and splits it; image ids are COCO ids."""
    shrinks: dict[int, Shrink] = {}
    for image in content["images"]:
        tail = pathlib.PurePosixPath(image["file_name"]).name
        name = image_name.format(name=image["file_name"], tail=tail, split=split_of(image["id"]))
        shrinks[image["id"]] = shrink_image(origin / image["file_name"], out / name, side, 74)
        image["file_name"] = name
    shared = {k: v for k, v in content.items() if k not in ("images", "annotations", "licenses")}
    for split in ("train", "val"):
        images = [image for image in content["images"] if split_of(image["id"]) == split]
        ids = {image["id"] for image in images}
        annotations: list[dict] = []
        for annotation in content["annotations"]:
            if annotation["image_id"] in ids:
                annotations += _shrunk(annotation, shrinks[annotation["image_id"]])
        _write_json(
            out / file.format(split=split),
            shared
            | {
                "images": [_sized(image, shrinks[image["id"]]) for image in images],
                "annotations": annotations,
            },
        )


def _shrunk(annotation: dict, shrink: Shrink) -> list[dict]:
    """Returns the annotation at the small size, or nothing if it vanished."""
    if not annotation.get("segmentation"):
        x, y, width, height = shrink.box_xywh(annotation["bbox"])
        return [annotation | {"bbox": [x, y, width, height], "area": round(width * height, 2)}]
    rle = shrink.segmentation(annotation["segmentation"])
    if rle is None:
        return []
    return [annotation | {"segmentation": rle, "bbox": rle_box(rle), "area": rle_area(rle)}]


def _sa1b_annotation(annotation: dict, rle: dict, shrink: Shrink, is_pseudo: bool) -> dict:
    points = [shrink.box_xywh([x, y, 0.0, 0.0])[:2] for x, y in annotation["point_coords"]]
    height, width = shrink.new_hw
    return {
        "id": annotation["id"],
        "segmentation": rle,
        "bbox": rle_box(rle),
        "area": rle_area(rle),
        "predicted_iou": round(annotation["predicted_iou"], 4),
        "stability_score": round(annotation["stability_score"], 4),
        "point_coords": points,
        "crop_box": [0, 0, width, height],
        "is_pseudo": int(is_pseudo),
    }


def _segments(segments: list[dict], ids: np.ndarray, shrink: Shrink) -> Iterable[dict]:
    for segment in segments:
        mask = ids == segment["id"]
        if mask.any():
            rle = text_rle(mask)
            yield segment | {"bbox": rle_box(rle), "area": rle_area(rle)}


def _sized(image: dict, shrink: Shrink) -> dict:
    keys = ("id", "file_name", "license", "flickr_url", "neg_category_ids")
    height, width = shrink.new_hw
    return {key: image[key] for key in keys if key in image} | {"height": height, "width": width}


def _write_json(path: pathlib.Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, separators=(",", ":"), ensure_ascii=False) + "\n")


def _write_png(path: pathlib.Path, labels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels).save(path, optimize=True)


def _note_id(out: pathlib.Path, path: str, coco_id: int) -> None:
    with (out / "coco_ids.tmp").open("a") as file:
        file.write(f"{path}\t{coco_id}\n")


def build(source: pathlib.Path, out: pathlib.Path) -> None:
    """Builds the whole sample from `source` into the empty folder `out`."""
    build_sa1b(source, out)
    build_coco(source, out)
    build_ade20k(out)
    build_objects365(source, out)
    build_pascal_part(source, out)
    build_paco(source, out)
    build_part_imagenet(source, out)
    write_attribution(source, out)


def main() -> None:
    """Builds the sample from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--from", dest="source", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    if args.out.exists() and any(args.out.iterdir()):
        parser.error(f"--out {args.out} is not empty; give a new folder")
    args.out.mkdir(parents=True, exist_ok=True)
    build(args.source, args.out)
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    print(f"wrote {size / 1e6:.2f} MB to {args.out}")


if __name__ == "__main__":
    main()
