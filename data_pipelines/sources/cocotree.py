"""COCOTree: trees of objects, parts and their parts, with open names, on images of COCO 2017.

Layout: `root/annotations/instance_nodes.jsonl` as published (one mask a line), images of COCO at
`root/train2017/000000000001.jpg` (or `val2017`, or below another folder: `images`). The set has no
official split; where `root/splits/cocotree_1k_v1.jsonl` of its benchmark lies, these images are
`val` and the others `train`, else everything is `train`.

Keys of a line that are read: `image_id`, `instance_node_id`, `parent_instance_node_id` (the root is
`n00000#1`), `final_label` or `label`, and `segmentation`, compressed COCO RLE. A root's label is
its object class; a mask below has the object class of its root and its own label as part class.
Masks labelled `others` have no class. All labels are machine-made (a language model and SAM 3), so
every instance is marked as such. An image says nothing about labels that it does not have.

Source: arXiv 2605.22068, and github.com/melonkick3090/COCOTree, benchmark/ (release v4).
"""

import array
import collections
import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Mapping

import numpy as np

from data_pipelines import findings
from data_pipelines.schema import RawExample
from data_pipelines.sources.base import Source, first_existing
from data_pipelines.sources.builder import ExampleBuilder
from data_pipelines.sources.coco_folder import check_own_name
from data_pipelines.sources.layouts import COCOTREE, find_layout, layout_error
from data_pipelines.sources.values import parse_int, short
from data_pipelines.vocabulary import Vocabulary
from semsam_jax.core.errors import DataError

NO_CLASS = "others"
_ROOTS = ("", "ROOT", "__root__", "n00000#1")


class CocoTree(Source):
    """Reader of COCOTree; see the top of this file.

    Args:
        root: the folder above `annotations`.
        split: `train`, or `val` where the list of the benchmark's images is there.
        vocabulary: must hold the labels under the name `dataset` (`read_labels`).
        dataset: its name in the mixture.
        images: folder above `train2017` and `val2017`; `root` by default.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        split: str,
        vocabulary: Vocabulary,
        *,
        dataset: str,
        images: str | os.PathLike | None = None,
    ):
        check_own_name(dataset)
        options = {} if images is None else {"images": str(images)}
        super().__init__(dataset, root, split, vocabulary, **options)
        layout = find_layout(self.root, split)
        if layout is None or layout.kind != COCOTREE or layout.file is None:
            raise layout_error(dataset, self.root, split)
        above = self.root if images is None else pathlib.Path(images)
        self._folders = [above / name for name in ("train2017", "val2017", "images")] + [above]
        self._file = layout.file
        self.annotation_files = (self._file, *layout.folders)
        listing = _read_listing(self._file)
        held_out = _listed(layout.folders)
        images_here = [i for i in listing.images if (i in held_out) == (split != "train")]
        self._lines = listing
        self.example_ids = [str(i) for i in images_here]
        self._images = images_here

    def _files(self, position: int) -> tuple[pathlib.Path, ...]:
        name = f"{self._images[position]:012d}.jpg"
        places = [folder / name for folder in self._folders]
        # If none exists the first place goes on, so that the error names it.
        return (first_existing(places, pathlib.Path.is_file) or places[0],)

    def _read(self, position: int) -> RawExample:
        (image,) = self._files(position)
        builder = ExampleBuilder(self, position, image)
        nodes: dict[str, dict] = {}
        with self._file.open("rb") as file:
            for start in self._lines.starts(self._images[position]):
                file.seek(start)
                row = json.loads(file.readline())
                name = str(row.get("instance_node_id"))
                if name in nodes:
                    raise builder.broken(f"two masks have the id {name}")
                if name not in _ROOTS:
                    nodes[name] = row
        added: dict[str, int] = {}
        seen: set[tuple[int, int]] = set()
        for name in _parents_first(nodes, builder):
            object_id, part_id = self._classes(nodes, name)
            above = _parent(nodes[name])
            parent = added.get(above, -1)
            if above and parent < 0:
                builder.leave_out(findings.LOST_WHOLE, name)
            fields = {"object_id": object_id, "part_id": part_id, "parent": parent}
            added[name] = builder.add_outline(
                nodes[name].get("segmentation"), name=f"mask {name}", is_pseudo=True, **fields
            )
            if object_id >= 0:
                seen.add((object_id, part_id))
        builder.annotated = tuple(sorted(seen))
        return builder.build()

    def _classes(self, nodes: Mapping[str, dict], name: str) -> tuple[int, int]:
        """Object and part class of a mask, -1 for none."""
        path = [name]
        while (above := _parent(nodes[path[-1]])) in nodes:
            path.append(above)
        labels = [label_of(nodes[node]) for node in path]
        if NO_CLASS in (labels[0], labels[-1]):
            return -1, -1
        is_whole_known = not _parent(nodes[path[-1]])
        object_id = -1
        if is_whole_known:
            object_id = self.vocabulary.object_index(self.dataset, labels[-1])
        if len(path) == 1 and is_whole_known:
            return object_id, -1
        return object_id, self.vocabulary.part_index(self.dataset, labels[0])


def label_of(row: Mapping) -> str:
    """The label of a line in the benchmark's normal form: lower case, single spaces."""
    label = row.get("final_label") or row.get("label")
    words = str(label if label is not None else "").lower().replace("-", " ").replace("_", " ")
    return " ".join(words.split())


def read_labels(file: pathlib.Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns (labels of roots, labels of what lies below), for `build_vocabulary(extra=)`.

    Raises:
        DataError: a line of the file is no mask.
    """
    listing = _read_listing(file)
    return listing.root_labels, listing.part_labels


@dataclasses.dataclass(frozen=True)
class _TreeListing:
    """Where the lines of each image begin.

    Attributes:
        images: ids, ascending.
        first: int64 [n + 1]; places first[i]:first[i + 1] are those of image i.
        places: int64, bytes from the start of the file.
        root_labels, part_labels: sorted, without `NO_CLASS`.
    """

    images: tuple[int, ...]
    first: np.ndarray
    places: np.ndarray
    root_labels: tuple[str, ...]
    part_labels: tuple[str, ...]

    def starts(self, image: int) -> list[int]:
        """Places of an image's lines, in the file's order."""
        i = int(np.searchsorted(self.images, image))
        return self.places[self.first[i] : self.first[i + 1]].tolist()


def _read_listing(file: pathlib.Path) -> _TreeListing:
    try:
        stat = file.stat()
    except OSError as error:
        raise DataError(f"cocotree: cannot read {file}: {error.strerror or error}") from error
    return _scan(file, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _scan(file: pathlib.Path, size: int, age: int) -> _TreeListing:
    """One pass over the lines; kept while size and age of the file stay the same."""
    images, places = array.array("q"), array.array("q")
    labels: list[set[str]] = [set(), set()]
    start = 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            place, start = start, start + len(line)
            if not line.strip():
                continue
            row = _parsed(line)
            image = None if row is None else parse_int(row.get("image_id"))
            if row is None or image is None or not label_of(row):
                raise DataError(
                    f"cocotree: line {number} of {file} is {short(line[:60])}; expected JSON "
                    "with image_id, a label and a mask: download the file again"
                )
            if str(row.get("instance_node_id")) in _ROOTS:
                continue
            images.append(image)
            places.append(place)
            labels[bool(_parent(row))].add(label_of(row))
    owners = np.asarray(images, np.int64)
    order = np.argsort(owners, kind="stable")
    known, first = np.unique(owners[order], return_index=True)
    roots, parts = (tuple(sorted(found - {NO_CLASS})) for found in labels)
    return _TreeListing(
        images=tuple(known.tolist()),
        first=np.append(first, len(owners)),
        places=np.asarray(places, np.int64)[order],
        root_labels=roots,
        part_labels=parts,
    )


def _parsed(line: bytes) -> dict | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _listed(files: tuple[pathlib.Path, ...]) -> set[int]:
    """Image ids of the benchmark's list: a JSON object or a number on each line."""
    found = set()
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            text = line.strip()
            if not text or text.startswith("#"):
                continue
            row = _parsed(text.encode())
            image = parse_int(text) if row is None else parse_int(row.get("image_id"))
            if image is None:
                raise DataError(
                    f"cocotree: line {number} of {file} is {short(text)}; expected an image id"
                )
            found.add(image)
    return found


def _parent(row: Mapping) -> str:
    """Id of the mask that a mask is a part of, empty for a root."""
    above = row.get("parent_instance_node_id")
    return "" if above is None or str(above).strip() in _ROOTS else str(above).strip()


def _parents_first(nodes: Mapping[str, dict], builder: ExampleBuilder) -> list[str]:
    """Ids in the file's order, level by level.

    Raises:
        DataError: masks that are parts of each other in a circle.
    """
    below: dict[str, list[str]] = collections.defaultdict(list)
    for name, row in nodes.items():
        above = _parent(row)
        below[above if above in nodes else ""].append(name)
    ordered = list(below[""])
    for name in ordered:  # grows while it is walked
        ordered.extend(below[name])
    if len(ordered) != len(nodes):
        lost = next(name for name in nodes if name not in set(ordered))
        raise builder.broken(f"mask {lost} is a part of itself by its parents")
    return ordered
