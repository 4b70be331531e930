"""The suite `otq`: the tree of segment-everything against the trees of a dataset."""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import UInt8

from data_pipelines import decode
from data_pipelines.schema import RawExample
from data_pipelines.sources import Source
from semsam_jax.evals.eval_loop import EvalLoop
from semsam_jax.evals.otq import SCOPES, NamedTree, TreeEvaluator
from semsam_jax.evals.report import TableRow
from semsam_jax.inference.loading import model_from_params
from semsam_jax.inference.mask_generator import MaskGenerator
from semsam_jax.inference.tree import MaskTree, TreeNode

_NAMES = {
    "tq": "TQ, recovery and branches",
    "bq": "BQ, branches",
    "recovery": "recovery of masks",
    "nq": "meanNQ, masks and names",
    "mq": "MQ, masks",
    "lq": "LQ, equal labels",
}


@dataclasses.dataclass(frozen=True)
class TreeSamples:
    """Images of a dataset with their trees, read on demand (`eval_loop.SampleSource`).

    Attributes:
        source: the reader.
        count: number of images.
    """

    source: Source
    count: int

    def __len__(self) -> int:
        """Number of images."""
        return self.count

    def read(
        self, positions: Sequence[int]
    ) -> Iterator[tuple[UInt8[np.ndarray, "h w 3"], NamedTree]]:
        """Reads pixels and trees of some images."""
        for position in positions:
            example = self.source[position]
            pixels = decode.decode_image(
                example.image,
                where=f"{example.dataset}/{example.example_id}",
                size_hw=(example.height, example.width),
                is_displayed=example.is_displayed,
            )
            yield pixels, self._tree(example)

    def _tree(self, example: RawExample) -> NamedTree:
        """The masks of an image, machine-made ones too: a set of trees has no others."""
        vocabulary = self.source.vocabulary
        kept = [i for i, item in enumerate(example.instances) if item.rle is not None]
        place = {i: number for number, i in enumerate(kept)}
        items = [example.instances[i] for i in kept]
        ids = [item.part_id if item.part_id >= 0 else item.object_id for item in items]
        return NamedTree(
            masks=tuple(item.rle for item in items),
            labels=tuple(vocabulary.entry(i).text if i >= 0 else "" for i in ids),
            parents=tuple(place.get(item.parent) for item in items),
        )


def measure_trees(
    params: dict, meta: Mapping, samples: TreeSamples, points_per_side: int, eval_loop: EvalLoop
) -> tuple[list[TableRow], dict[str, float]]:
    """Segments everything in each image, with the dataset's names, and compares the trees.

    Returns:
        Rows of the table, and the scores by name.
    """

    @functools.cache
    def generator() -> MaskGenerator:
        vocabulary = samples.source.vocabulary
        names = {
            "objects": list(dict.fromkeys(vocabulary.object_names)),
            "parts": list(dict.fromkeys(vocabulary.part_names)),
        }
        return MaskGenerator(
            model_from_params(dict(params), dict(meta)),
            points_per_side=points_per_side,
            labels=names,
            output_mode="coco_rle",
            tree=True,
        )

    scorer = _TreeScorer(lambda pixels: generator().generate(pixels).tree)
    result = eval_loop.run("otq", TreeEvaluator(), samples, scorer).result()
    counts = f"{result['tp']:.0f} found, {result['fp']:.0f} too many, {result['fn']:.0f} missed"
    rows = [TableRow("OTQ, equal labels", 100 * result["otq"], "", counts)]
    rows += [TableRow(text, 100 * result[key]) for key, text in _NAMES.items()]
    rows += [
        TableRow(f"OTQ, equal labels, depth at most {depth}", 100 * result[f"otq@{depth}"])
        for depth in SCOPES
        if depth is not None
    ]
    return rows, {f"otq/{name}": value for name, value in result.items()}


@dataclasses.dataclass(frozen=True)
class _TreeScorer:
    """Scorer of images that come with their trees (`eval_loop.Scorer`)."""

    generate: Callable[[np.ndarray], MaskTree]
    batch_size: int = 1

    def key(self, sample: tuple[np.ndarray, NamedTree]) -> Hashable:
        """Any images."""
        return None

    def prepare(self, sample: tuple[np.ndarray, NamedTree]) -> tuple[np.ndarray, NamedTree]:
        """Nothing to prepare."""
        return sample

    def score(self, prepared: list[tuple[np.ndarray, NamedTree]]) -> list[tuple]:
        """The trees of the images: the truth and what was found."""
        return [(truth, named_tree(self.generate(pixels))) for pixels, truth in prepared]


def named_tree(tree: MaskTree) -> NamedTree:
    """The tree with the best name of each mask, whether it is sure or not."""
    return NamedTree(
        masks=tuple(node.segmentation for node in tree.nodes),
        labels=tuple(_label(node) for node in tree.nodes),
        parents=tuple(node.parent for node in tree.nodes),
    )


def _label(node: TreeNode) -> str:
    if node.name is not None:
        return node.name
    heads = (node.object,) if node.parent is None else (node.part, node.object)
    return next((head["name"] for head in heads if head is not None), "")
