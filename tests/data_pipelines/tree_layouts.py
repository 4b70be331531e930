"""Made-up scenes and how each dataset stores them; `testing` says what to write with them."""

import dataclasses
import io
import json
import pathlib
import tarfile

import numpy as np
import scipy.io
from PIL import Image

from data_pipelines.vocabulary import class_file
from semsam_jax.core.rle import encode_mask

CLASSES: dict[str, tuple[str, str, str]] = {
    "sa1b": ("thing", "stuff", ""),
    "coco": ("person", "sky-other-merged", ""),
    "ade20k": ("person, individual, someone, somebody, mortal, soul", "sky", ""),
    "objects365": ("Person", "Car", ""),
    "pascal_part": ("person", "car", "head"),
    "paco": ("mug", "chair", "handle"),
    "part_imagenet": ("Bird", "Car", "Head"),
    "coco_folder": ("cat", "snow ☃", "ear"),
}
"""Dataset -> (object class, second object class, part of the first or "")."""


@dataclasses.dataclass(frozen=True)
class SceneInstance:
    """A mask bool [h,w], its native class, part name ("" for a whole) and index of its whole."""

    mask: np.ndarray
    whole: str
    part: str = ""
    parent: int | None = None
    is_crowd: bool = False


@dataclasses.dataclass(frozen=True)
class Scene:
    """An image (encoded JPEG) with instances; `number` names its files."""

    number: int
    image: bytes
    size_hw: tuple[int, int]
    instances: tuple[SceneInstance, ...]


def write_scenes(dataset: str, root: pathlib.Path, split: str, scenes: list[Scene]) -> None:
    """Writes scenes in a dataset's native layout (ADE20k: SceneParsing)."""
    writers = {
        "sa1b": _write_sa1b,
        "coco": _write_coco,
        "ade20k": _write_ade20k,
        "objects365": _write_objects365,
        "pascal_part": _write_pascal_part,
        "paco": _write_paco,
        "part_imagenet": _write_part_imagenet,
        "coco_folder": _write_coco_folder,
    }
    writers[dataset](root, split, scenes)


def write_ade20k_full(root: pathlib.Path, split: str, scenes: list[Scene], year: int) -> None:
    """Writes scenes in ADE20k's full layout of 2017 or 2021."""
    folder = root / _ADE_FOLDER[split] / "street"
    for scene in scenes:
        name = f"ADE_{split}_{scene.number:08d}"
        _bytes(folder / f"{name}.jpg", scene.image)
        seg = np.zeros((*scene.size_hw, 3), np.uint8)
        rows, objects = [], []
        for index, instance in enumerate(scene.instances, start=1):
            seg[instance.mask] = (10 * (index // 256), index % 256, 12 * index)
            rows.append(f'{index:03d} # 0 # 0 # {instance.whole} # {instance.whole} # ""')
            file = f"{name}/instance_{index:03d}_{name}.png"
            objects.append(
                {
                    "id": index,
                    "name": instance.whole,
                    "parts": {"part_level": 0},
                    "instance_mask": file,
                }
            )
            if year == 2021:
                _png(folder / file, instance.mask.astype(np.uint8) * 255)
        _png(folder / f"{name}_seg.png", seg)
        if year == 2021:
            _json(folder / f"{name}.json", {"annotation": {"object": objects}})
        else:
            (folder / f"{name}_atr.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")


def write_sa1b_archives(root: pathlib.Path, scenes: list[Scene], per_archive: int) -> None:
    """Writes scenes as SA-1B's official archives, whose members are in no special order."""
    root.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, len(scenes), per_archive)):
        with tarfile.open(root / f"sa_{number:06d}.tar", "w") as tar:
            for scene in reversed(scenes[start : start + per_archive]):
                text = json.dumps(_sa1b_content(scene)).encode("utf-8")
                for kind, data in (("jpg", scene.image), ("json", text)):
                    member = tarfile.TarInfo(f"./sa_{scene.number}.{kind}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def example_id(dataset: str, number: int, split: str = "train") -> str:
    """Returns the example id that the reader gives to scene `number`."""
    return {
        "sa1b": f"sa_{number}",
        "ade20k": f"ADE_{split}_{number:08d}",
        "pascal_part": f"2010_{number:06d}",
        "part_imagenet": f"n00000001_{number}",
    }.get(dataset, str(number))


_ADE_FOLDER = {"train": "training", "val": "validation"}


def _write_sa1b(root: pathlib.Path, split: str, scenes: list[Scene]) -> None:
    for scene in scenes:
        name = f"sa_{scene.number}"
        _bytes(root / split / f"{name}.jpg", scene.image)
        _json(root / split / f"{name}.json", _sa1b_content(scene))


def _sa1b_content(scene: Scene) -> dict:
    annotations = [
        _annotation(scene, index, 0)
        | {"predicted_iou": 0.9, "stability_score": 0.95, "point_coords": [[1.0, 1.0]]}
        for index in range(len(scene.instances))
    ]
    image = {"image_id": scene.number, "file_name": f"sa_{scene.number}.jpg"} | _size(scene)
    return {"image": image, "annotations": annotations}


def _write_coco(root: pathlib.Path, split: str, scenes: list[Scene]) -> None:
    ids = {row["name"]: row["id"] for row in class_file("coco")["objects"]}
    categories = [{"id": number, "name": name, "isthing": 1} for name, number in ids.items()]
    images, records, outlines = [], [], []
    for scene in scenes:
        name = f"{scene.number:012d}"
        _bytes(root / f"{split}2017/{name}.jpg", scene.image)
        images.append({"id": scene.number, "file_name": f"{name}.jpg"} | _size(scene))
        colours = np.zeros((*scene.size_hw, 3), np.uint8)
        segments = []
        for index, instance in enumerate(scene.instances):
            colour = (index + 1, scene.number % 256, 1)
            colours[instance.mask] = colour
            segments.append(
                {
                    "id": colour[0] + 256 * colour[1] + 65536 * colour[2],
                    "category_id": ids[instance.whole],
                    "iscrowd": int(instance.is_crowd),
                }
            )
            if instance.whole == CLASSES["coco"][0]:
                outlines.append(_annotation(scene, index, ids[instance.whole]))
        _png(root / f"annotations/panoptic_{split}2017/{name}.png", colours)
        records.append(
            {"image_id": scene.number, "file_name": f"{name}.png", "segments_info": segments}
        )
    for kind, annotations in (("panoptic", records), ("instances", outlines)):
        _json(
            root / f"annotations/{kind}_{split}2017.json",
            {"images": images, "annotations": annotations, "categories": categories},
        )


def _write_ade20k(root: pathlib.Path, split: str, scenes: list[Scene]) -> None:
    rows = class_file("ade20k")["objects"]
    things = [row["name"] for row in rows if row.get("is_thing", True)]
    numbers = {row["name"]: row["id"] for row in rows}
    folder = _ADE_FOLDER[split]
    for scene in scenes:
        name = f"ADE_{split}_{scene.number:08d}"
        _bytes(root / "images" / folder / f"{name}.jpg", scene.image)
        classes = np.zeros(scene.size_hw, np.uint8)
        pairs = np.zeros((*scene.size_hw, 3), np.uint8)
        for index, instance in enumerate(scene.instances, start=1):
            classes[instance.mask] = numbers[instance.whole]
            if instance.whole in things:
                pairs[instance.mask] = (things.index(instance.whole) + 1, index, 0)
        _png(root / "annotations" / folder / f"{name}.png", classes)
        _png(root / "annotations_instance" / folder / f"{name}.png", pairs)


def _write_objects365(root: pathlib.Path, split: str, scenes: list[Scene]) -> None:
    names = [row["name"] for row in class_file("objects365")["objects"]]
    _write_coco_json(
        root, root / f"zhiyuan_objv2_{split}.json", scenes, names,
        "images/v2/patch0/objects365_v2_{number:08d}.jpg", outlines=False,
    )  # fmt: skip


def _write_paco(root: pathlib.Path, split: str, scenes: list[Scene]) -> None:
    classes = class_file("paco")
    names = [row["name"] for row in classes["objects"]] + classes["pairs"]
    _write_coco_json(
        root, root / f"annotations/paco_lvis_v1_{split}.json", scenes, names,
        f"{split}2017/{{number:012d}}.jpg",
    )  # fmt: skip


def _write_part_imagenet(root: pathlib.Path, split: str, scenes: list[Scene]) -> None:
    # The data set has parts only; a whole becomes the part Body.
    names = [pair.replace(":", " ") for pair in class_file("part_imagenet")["pairs"]]
    as_parts = [
        dataclasses.replace(
            scene,
            instances=tuple(
                dataclasses.replace(i, whole=f"{i.whole} {i.part or 'Body'}", part="", parent=None)
                for i in scene.instances
            ),
        )
        for scene in scenes
    ]
    _write_coco_json(
        root, root / f"annotations/{split}.json", as_parts, names,
        f"images/{split}/n00000001_{{number}}.JPEG",
    )  # fmt: skip
    content = json.loads((root / f"annotations/{split}.json").read_text(encoding="utf-8"))
    for image in content["images"]:
        image["file_name"] = pathlib.PurePosixPath(image["file_name"]).name
    _json(root / f"annotations/{split}.json", content)


def _write_coco_folder(root: pathlib.Path, split: str, scenes: list[Scene]) -> None:
    first, second, part = CLASSES["coco_folder"]
    names = [first, second, f"{first}:{part}"]
    _write_coco_json(
        root, root / f"annotations/{split}.json", scenes, names, f"{split}/Straße {{number}}.jpg"
    )
    content = json.loads((root / f"annotations/{split}.json").read_text(encoding="utf-8"))
    for image in content["images"]:
        image["file_name"] = pathlib.PurePosixPath(image["file_name"]).name
    content["categories"].append({"id": 77})  # a class without a name
    _json(root / f"annotations/{split}.json", content)


def _write_coco_json(
    root: pathlib.Path,
    file: pathlib.Path,
    scenes: list[Scene],
    names: list[str],
    image: str,
    outlines: bool = True,
) -> None:
    ids = {name: number for number, name in enumerate(names, start=1)}
    images, annotations = [], []
    for scene in scenes:
        name = image.format(number=scene.number)
        _bytes(root / name, scene.image)
        images.append({"id": scene.number, "file_name": name} | _size(scene))
        for index, instance in enumerate(scene.instances):
            native = f"{instance.whole}:{instance.part}" if instance.part else instance.whole
            annotation = _annotation(scene, index, ids[native])
            if instance.parent is not None:
                annotation["obj_ann_id"] = _annotation_id(scene, instance.parent)
            if not outlines:
                del annotation["segmentation"]
            annotations.append(annotation)
    categories = [{"id": number, "name": name} for name, number in ids.items()]
    _json(file, {"images": images, "annotations": annotations, "categories": categories})


def _write_pascal_part(root: pathlib.Path, split: str, scenes: list[Scene]) -> None:
    names = []
    for scene in scenes:
        name = example_id("pascal_part", scene.number)
        names.append(name)
        _bytes(root / "JPEGImages" / f"{name}.jpg", scene.image)
        wholes = [(i, o) for i, o in enumerate(scene.instances) if not o.part]
        objects = np.empty(
            (1, len(wholes)), [(k, "O") for k in ("class", "class_ind", "mask", "parts")]
        )
        for column, (index, whole) in enumerate(wholes):
            inside = [o for o in scene.instances if o.part and o.parent == index]
            parts = np.empty((1, len(inside)), [("part_name", "O"), ("mask", "O")])
            for place, part in enumerate(inside):
                parts[0, place] = (part.part, part.mask.astype(np.uint8))
            shown = parts if inside else np.empty((0, 0))
            objects[0, column] = (whole.whole, 1.0, whole.mask.astype(np.uint8), shown)
        anno = np.empty((1, 1), [("imname", "O"), ("objects", "O")])
        anno[0, 0] = (name, objects)
        target = root / "Annotations_Part" / f"{name}.mat"
        target.parent.mkdir(parents=True, exist_ok=True)
        scipy.io.savemat(str(target), {"anno": anno}, do_compression=True)
    listed = root / "ImageSets" / "Main" / f"{split}.txt"
    listed.parent.mkdir(parents=True, exist_ok=True)
    listed.write_text("".join(f"{name}  1\n" for name in [*names, "2010_999999"]))


def _annotation_id(scene: Scene, index: int) -> int:
    return scene.number * 1000 + index


def _annotation(scene: Scene, index: int, category: int) -> dict:
    instance = scene.instances[index]
    rle = encode_mask(instance.mask)
    ys, xs = np.nonzero(instance.mask)
    box = (
        [int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1]
        if len(xs)
        else [5, 5, 0, 0]
    )
    return {
        "id": _annotation_id(scene, index),
        "image_id": scene.number,
        "category_id": category,
        "iscrowd": int(instance.is_crowd),
        "bbox": box,
        "area": int(instance.mask.sum()),
        "segmentation": {"size": list(scene.size_hw), "counts": rle["counts"].decode("ascii")},
    }


def _size(scene: Scene) -> dict[str, int]:
    return {"height": scene.size_hw[0], "width": scene.size_hw[1]}


def _bytes(path: pathlib.Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _json(path: pathlib.Path, content: dict) -> None:
    _bytes(path, json.dumps(content, ensure_ascii=False).encode("utf-8"))


def _png(path: pathlib.Path, labels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels).save(path)
