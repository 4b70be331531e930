"""All masks of an image as one tree: objects, their parts, the parts of those.

A mask inside another is its part (`hierarchy.parents`). In the tree every mask lies wholly inside
its parent and no two siblings share a pixel (the smaller one keeps it, of equal ones the better),
so that the tree is one consistent reading of the image:

    inside means finer     a child has fewer pixels, a smaller granularity, and no coarser level
    granularity            0..1, the place of a mask among the sizes of its own tree:
                           (sqrt(A) - sqrt(A_min)) / (sqrt(A_root) - sqrt(A_min)), 1 for a root
    names                  a root is called by the object head, what lies below by the part head,
                           or by the object head where the part head is not sure
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence

from semsam_jax.core import rle
from semsam_jax.inference.convert_results import UNNAMED
from semsam_jax.inference.hierarchy import FreePixels, parents

LARGEST_PART = 0.95
"""A mask that covers more of its parent is the parent once more, and no part of it."""

UNNAMED_PART = "part"


@dataclasses.dataclass(frozen=True)
class TreeNode:
    """One mask of a tree.

    Attributes:
        segmentation: COCO RLE of the part of the mask inside its parent and outside its siblings.
        area: its pixels.
        parent: position of the parent in `MaskTree.nodes`, None for a root.
        depth: steps to the root.
        level: level of the token that found it.
        granularity: place among the sizes of its tree, 1 for a root.
        score: predicted IoU.
        object, part: {"name", "score", "is_sure"}, the best name of each head, None without
            labels.
        row: position of the mask among those that the tree was made of.
    """

    segmentation: dict
    area: int
    parent: int | None
    depth: int
    level: int
    granularity: float
    score: float
    object: dict | None
    part: dict | None
    row: int

    @property
    def name(self) -> str | None:
        """What the heads call it; None if none is sure."""
        heads = (self.object,) if self.parent is None else (self.part, self.object)
        sure = (head["name"] for head in heads if head is not None and head["is_sure"])
        return next(sure, None)


@dataclasses.dataclass(frozen=True)
class MaskTree:
    """The masks of an image; parents come before their children.

    Attributes:
        nodes: the masks.
        image_hw: height and width of the image.
    """

    nodes: tuple[TreeNode, ...]
    image_hw: tuple[int, int]

    def children(self, position: int | None = None) -> list[int]:
        """Positions of the children of a mask, or of the roots for None."""
        return [i for i, node in enumerate(self.nodes) if node.parent == position]

    def path(self, position: int) -> list[int]:
        """Positions from a mask up to its root."""
        found = [position]
        while (above := self.nodes[found[-1]].parent) is not None:
            found.append(above)
        return found

    def records(self) -> list[dict]:
        """As JSON holds it: a mapping for each mask, `id` from 1, `parent` an id or None."""
        return [
            {
                "id": i + 1,
                "parent": None if node.parent is None else node.parent + 1,
                "children": [child + 1 for child in self.children(i)],
                "depth": node.depth,
                "level": node.level,
                "granularity": round(node.granularity, 4),
                "name": node.name,
                "object": node.object,
                "part": node.part,
                "predicted_iou": node.score,
                "area": node.area,
                "bbox": rle.mask_boxes([node.segmentation])[0].tolist(),
                "segmentation": node.segmentation,
            }
            for i, node in enumerate(self.nodes)
        ]

    def to_coco(self, file_name: str = "image.jpg") -> dict:
        """COCO data set of this image, training data for a custom dataset; see `trees_to_coco`."""
        return trees_to_coco([(self.records(), file_name, *self.image_hw)])


def build_tree(
    masks: Sequence[dict],
    levels: Sequence[int],
    scores: Sequence[float],
    image_hw: tuple[int, int],
    *,
    objects: Sequence[dict | None] | None = None,
    parts: Sequence[dict | None] | None = None,
    min_visible: float = 0.2,
    min_piece: int = 1,
) -> MaskTree:
    """Makes one tree of the masks of an image.

    A mask of which too little is left outside its siblings is dropped, and its children belong to
    its parent.

    Args:
        masks: COCO RLE, of the image's size.
        levels: 1 coarsest, 6 finest.
        scores: predicted IoU.
        image_hw: height and width of the image.
        objects: best object name of each mask, as records hold it.
        parts: best part name of each mask.
        min_visible: share of a mask that must be left.
        min_piece: pieces with fewer pixels go.
    """
    areas = [int(area) for area in rle.mask_areas(masks)] if len(masks) else []
    below: dict[int | None, list[int]] = {}
    for i, above in enumerate(parents(masks, levels)):
        below.setdefault(above, []).append(i)
    order = _Siblings(masks, areas, scores, below, tuple(image_hw), min_visible, min_piece)
    nodes: list[TreeNode] = []
    waiting: list[tuple[int | None, int, list[tuple[int, dict, int]]]] = [
        (None, 0, order.apart(below.get(None, []), None, image_hw[0] * image_hw[1]))
    ]
    while waiting:
        parent, depth, siblings = waiting.pop()
        for i, visible, area in siblings:
            node = TreeNode(
                segmentation=visible,
                area=area,
                parent=parent,
                depth=depth,
                level=int(levels[i]),
                granularity=1.0,
                score=float(scores[i]),
                object=None if objects is None else objects[i],
                part=None if parts is None else parts[i],
                row=i,
            )
            nodes.append(node)
            children = order.apart(below.get(i, []), visible, int(LARGEST_PART * area))
            if children:
                waiting.append((len(nodes) - 1, depth + 1, children))
    return MaskTree(_with_granularities(nodes), tuple(image_hw))


def tree_of_records(
    records: Sequence[dict], image_hw: tuple[int, int], min_piece: int = 1
) -> MaskTree:
    """Makes one tree of the records of `MaskGenerator`, with COCO RLE; see `build_tree`."""
    return build_tree(
        [record["segmentation"] for record in records],
        [record["level"] for record in records],
        [record["predicted_iou"] for record in records],
        image_hw,
        objects=[record.get("object") for record in records],
        parts=[record.get("part") for record in records],
        min_piece=min_piece,
    )


def trees_to_coco(trees: Iterable[tuple[Sequence[dict], str, int, int]]) -> dict:
    """COCO data set of several trees, which a custom dataset reads with all links.

    A root's category is its name, that of anything below is `root:name`; masks without a sure name
    are `thing` and `part`. `obj_ann_id` is the annotation that a mask is a part of.

    Args:
        trees: (`MaskTree.records`, file name, height, width) of each image.
    """
    numbers: dict[str, int] = {}
    images, annotations = [], []
    for records, file_name, height, width in trees:
        about = {"file_name": file_name, "height": height, "width": width}
        images.append({"id": len(images) + 1, **about})
        first = len(annotations)
        roots: dict[int, str] = {}
        for record in records:
            above = record["parent"]
            name = record["name"]
            roots[record["id"]] = (name or UNNAMED) if above is None else roots[above]
            category = roots[record["id"]]
            if above is not None:
                category = f"{category}:{name or UNNAMED_PART}"
            annotation = {
                "id": first + record["id"],
                "image_id": len(images),
                "category_id": numbers.setdefault(category, len(numbers) + 1),
                "segmentation": record["segmentation"],
                "bbox": record["bbox"],
                "area": record["area"],
                "iscrowd": 0,
                "is_pseudo": 1,
                "score": record["predicted_iou"],
                "level": record["level"],
                "granularity": record["granularity"],
            }
            if above is not None:
                annotation["obj_ann_id"] = first + above
            annotations.append(annotation)
    categories = [
        {"id": number, "name": name, "supercategory": name.partition(":")[0]}
        for name, number in numbers.items()
    ]
    about = {"description": "trees of masks, made by semsam_jax"}
    return {"info": about, "images": images, "annotations": annotations, "categories": categories}


@dataclasses.dataclass(frozen=True)
class _Siblings:
    """How masks with one parent share its pixels."""

    masks: Sequence[dict]
    areas: Sequence[int]
    scores: Sequence[float]
    below: dict[int | None, list[int]]
    image_hw: tuple[int, int]
    min_visible: float
    min_piece: int

    def apart(
        self, children: Sequence[int], parent: dict | None, largest: int
    ) -> list[tuple[int, dict, int]]:
        """The children without overlap inside the parent, large ones first, with their areas.

        A child that is left out is replaced by its own children, and all are shared out anew.
        """
        children = list(children)
        while children:
            free = FreePixels(self.image_hw, parent)
            kept, gone = [], []
            for i in sorted(children, key=lambda i: (self.areas[i], -self.scores[i], i)):
                least = max(1.0, self.min_visible * self.areas[i])
                visible, area = free.take(self.masks[i], least, float(largest), self.min_piece)
                if visible is None:
                    gone.append(i)
                else:
                    kept.append((i, visible, area))
            orphans = [child for i in gone for child in self.below.get(i, [])]
            if not orphans:
                return kept[::-1]
            children = [i for i, *_ in kept] + orphans
        return []


def _with_granularities(nodes: Sequence[TreeNode]) -> tuple[TreeNode, ...]:
    """Fills in the place of each mask among the sizes of its tree."""
    root: list[int] = []
    smallest: dict[int, int] = {}
    for i, node in enumerate(nodes):
        root.append(i if node.parent is None else root[node.parent])
        smallest[root[i]] = min(smallest.get(root[i], node.area), node.area)
    filled = []
    for i, node in enumerate(nodes):
        low, high = math.sqrt(smallest[root[i]]), math.sqrt(nodes[root[i]].area)
        place = (math.sqrt(node.area) - low) / (high - low) if high > low else 1.0
        filled.append(dataclasses.replace(node, granularity=place))
    return tuple(filled)
