"""Small synthetic datasets in native layouts, for tests: pleasant ones and ugly ones.

A `Scene` is a made-up image with masks; `write_scenes` writes scenes in the layout of any dataset
and `write_ugly_tree` adds what real folders hold: grey, CMYK and rotated images, crowd regions,
empty masks, boxes without area, parts without a whole, wrong sizes and files that are cut off.
"""

import dataclasses
import io
import pathlib

import numpy as np
from PIL import Image

from tests.data_pipelines.tree_layouts import (
    CLASSES,
    Scene,
    SceneInstance,
    example_id,
    write_ade20k_full,
    write_sa1b_archives,
    write_scenes,
)

__all__ = [
    "CLASSES",
    "Scene",
    "SceneInstance",
    "UglyTree",
    "example_id",
    "make_image",
    "make_scene",
    "truncate",
    "write_ade20k_full",
    "write_sa1b_archives",
    "write_scenes",
    "write_tree",
    "write_ugly_tree",
]


def make_image(
    size_hw: tuple[int, int], seed: int, mode: str = "RGB", orientation: int = 1
) -> bytes:
    """Returns a JPEG of smooth noise: mode RGB, L or CMYK, with an EXIF orientation 1..8."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 255, (4, 6, 3), np.uint8)
    image = Image.fromarray(small).resize(size_hw[::-1], Image.Resampling.BICUBIC).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90, exif=exif)
    return buffer.getvalue()


def make_scene(dataset: str, number: int, size_hw: tuple[int, int] = (48, 64)) -> Scene:
    """Returns a scene with two wholes that do not overlap and, where there are parts, one part."""
    rng = np.random.default_rng(number)
    height, width = size_hw
    first, second, part = CLASSES[dataset]
    x, y = (int(rng.integers(2, side // 4)) for side in (width, height))
    whole = _rectangle(size_hw, x, y, width // 3, height // 2)
    instances = [
        SceneInstance(whole, first),
        SceneInstance(_rectangle(size_hw, width * 2 // 3, 1, width // 4, height // 3), second),
    ]
    if part:
        inner = _rectangle(size_hw, x + 1, y + 1, width // 6, height // 5)
        instances.append(SceneInstance(inner, first, part, parent=0))
    return Scene(number, make_image(size_hw, number), size_hw, tuple(instances))


def write_tree(dataset: str, root: pathlib.Path, num_train: int = 4, num_val: int = 2) -> None:
    """Writes a pleasant tree with both splits."""
    numbers = range(1, num_train + num_val + 1)
    scenes = [make_scene(dataset, n, (48, 64) if n % 2 else (64, 48)) for n in numbers]
    write_scenes(dataset, root, "train", scenes[:num_train])
    write_scenes(dataset, root, "val", scenes[num_train:])


@dataclasses.dataclass(frozen=True)
class UglyTree:
    """What `write_ugly_tree` made, split `train`.

    Attributes:
        readable: example id -> number of instances that a reader must deliver.
        broken: example ids that a reader must refuse with DataError.
        undecodable: ids among `readable` whose image is cut off behind its header.
        crowded: ids among `readable` with one crowd region (30..40, 40..50) beside.
    """

    readable: dict[str, int]
    broken: frozenset[str]
    undecodable: frozenset[str]
    crowded: frozenset[str]


def write_ugly_tree(dataset: str, root: pathlib.Path) -> UglyTree:
    """Writes a tree (split `train`) full of what goes wrong in real folders."""
    tall = (64, 48)
    plain = [make_scene(dataset, number, tall) for number in range(1, 10)]
    # PartImageNet has three parts there, and the reader makes two wholes of them.
    expected = 5 if dataset == "part_imagenet" else len(plain[0].instances)
    nothing = np.zeros(tall, np.bool_)
    crowd = SceneInstance(_rectangle(tall, 30, 40, 10, 10), CLASSES[dataset][0], is_crowd=True)
    empty = SceneInstance(nothing, CLASSES[dataset][0])
    scenes = [
        dataclasses.replace(plain[0], image=make_image(tall, 1, "L")),
        dataclasses.replace(plain[1], image=make_image(tall, 2, "CMYK")),
        dataclasses.replace(plain[2], image=make_image(tall, 3, orientation=6)),
        dataclasses.replace(plain[3], instances=(*plain[3].instances, empty)),
        dataclasses.replace(plain[4], image=make_image((64, 50), 5)),  # another size: broken
        dataclasses.replace(plain[5], image=plain[5].image[: len(plain[5].image) * 2 // 3]),
        dataclasses.replace(plain[6], image=b""),  # broken
        dataclasses.replace(plain[7], image=b"not an image at all"),  # broken
    ]
    has_crowd = dataset in ("coco", "paco", "objects365", "coco_folder")
    if has_crowd:
        scenes[3] = dataclasses.replace(scenes[3], instances=(*scenes[3].instances, crowd))
    counts = {1: expected, 2: expected, 3: expected, 4: expected, 6: expected}
    broken = {5, 7, 8}
    orphan = CLASSES[dataset][2] and dataset in ("paco", "coco_folder")
    if orphan:  # a part whose whole is not in the image
        parts = tuple(i for i in plain[8].instances if i.part)
        scenes.append(
            dataclasses.replace(plain[8], instances=(dataclasses.replace(parts[0], parent=None),))
        )
        counts[9] = 1
    write_scenes(dataset, root, "train", scenes)
    names = {number: example_id(dataset, number) for number in range(1, 10)}
    return UglyTree(
        readable={names[number]: count for number, count in counts.items()},
        broken=frozenset(names[number] for number in broken),
        undecodable=frozenset({names[6]}),
        crowded=frozenset({names[4]} if has_crowd else ()),
    )


def truncate(path: pathlib.Path, share: float = 0.5) -> None:
    """Cuts a file off after a share of its bytes, as an interrupted download does."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def _rectangle(size_hw: tuple[int, int], x: int, y: int, width: int, height: int) -> np.ndarray:
    mask = np.zeros(size_hw, np.bool_)
    mask[y : y + height, x : x + width] = True
    return mask
