"""Name accuracy: is the best name of a clicked mask its class, among all classes of the dataset?

    accuracy = instances whose best name is their own / instances with a name

Every annotated instance with a class is clicked at its centre, as in `one_click`. Of the six masks
the one with the highest predicted IoU names it: objects by the object head (or by what the part
belongs to, whichever says more), parts by the part head. Names with one text are one class.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from semsam_jax.core.structs import Prompts, Pyramid, TextTable
from semsam_jax.evals import prompt_scores
from semsam_jax.evals.clicks import CLICK_BOX_PX, click_boxes
from semsam_jax.evals.eval_loop import EvalLoop
from semsam_jax.evals.evaluator import Evaluator
from semsam_jax.evals.one_click import clicks_of, scored_masks
from semsam_jax.evals.part_ap import ClassList
from semsam_jax.evals.samples import EvalSample
from semsam_jax.inference.labels import object_logits
from semsam_jax.parallel.mesh import batch_sharding, build_mesh, replicated


@dataclasses.dataclass(frozen=True)
class NameResult:
    """How often the best name is right.

    Attributes:
        right, total: int64 [v], instances of each class; objects first, then parts.
    """

    right: np.ndarray
    total: np.ndarray

    @property
    def accuracy(self) -> float:
        """Share of all instances, 0..1; nan without any."""
        return float(self.right.sum() / self.total.sum()) if self.total.sum() else float("nan")

    @property
    def class_accuracy(self) -> np.ndarray:
        """float64 [v], nan for classes without an instance."""
        return np.where(self.total > 0, self.right / np.maximum(self.total, 1), np.nan)

    def scalars(self) -> dict[str, float]:
        """Flat numbers for a log: percent, except the count."""
        return {"accuracy": 100 * self.accuracy, "num_instances": float(self.total.sum())}


class NameEvaluator(Evaluator):
    """Counts right names by class.

    Args:
        texts: name of each class; equal texts stand for one another.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = np.asarray([text.casefold() for text in texts], object)
        self.reset()

    def reset(self) -> None:
        """Forgets everything that was processed."""
        self._counts = np.zeros((2, len(self._texts)), np.int64)

    def process(self, classes: np.ndarray, found: np.ndarray) -> None:
        """Adds an image: true and best class of each of its instances, int64 [n] each."""
        is_right = self._texts[classes] == self._texts[found]
        np.add.at(self._counts[0], classes[is_right], 1)
        np.add.at(self._counts[1], classes, 1)

    def state(self) -> dict:
        """The counts."""
        return {"counts": self._counts.copy()}

    def add(self, state: Mapping) -> None:
        """Adds the counts of another evaluator."""
        self._counts += state["counts"]

    def result(self) -> NameResult:
        """Counts of everything processed so far."""
        return NameResult(*self._counts)


@dataclasses.dataclass(frozen=True)
class _Clicked:
    sample: EvalSample
    boxes: np.ndarray  # [n, 4]
    classes: np.ndarray  # [n]


class NameScorer:
    """Clicks the instances of a group of images and takes their best names.

    Args:
        model, params: the network.
        text: unit embeddings of the names, rows as in `classes`.
        classes: what the dataset annotates.
        eval_loop: its devices.
        prompts_per_call: clicks of an image that are decoded together.
    """

    def __init__(
        self,
        model: nn.Module,
        params: dict,
        text: TextTable,
        classes: ClassList,
        eval_loop: EvalLoop,
        prompts_per_call: int,
    ) -> None:
        devices = list(eval_loop.devices or jax.local_devices()[:1])
        mesh = build_mesh(devices=devices)
        self._model, self._rows, self._size = model, batch_sharding(mesh), prompts_per_call
        self._params, self._text = jax.device_put((params, text), replicated(mesh))
        self._num_objects = len(classes.object_ids)
        self._objects = {int(u): i for i, u in enumerate(classes.object_ids)}
        self._parts = {int(u): self._num_objects + i for i, u in enumerate(classes.part_ids)}
        self.batch_size = len(devices) * eval_loop.images_per_device

    def key(self, sample: EvalSample) -> tuple[int, int]:
        """Images of one canvas share a program."""
        return tuple(sample.image.shape[:2])

    def prepare(self, sample: EvalSample) -> _Clicked:
        """Finds the clicks of the instances that have a name."""
        rows, masks = scored_masks(sample, skip_crowd=True)
        objects, parts = sample.classes("object_ids"), sample.classes("part_ids")
        named = [
            self._parts.get(int(parts[row]), -1)
            if parts[row] >= 0
            else self._objects.get(int(objects[row]), -1)
            for row in rows
        ]
        kept = [at for at, number in enumerate(named) if number >= 0]
        clicks = clicks_of(sample, [rows[at] for at in kept], [masks[at] for at in kept])
        boxes = click_boxes(clicks, sample.image.shape[:2], CLICK_BOX_PX)
        return _Clicked(sample, boxes, np.asarray(named, np.int64)[kept])

    def score(self, prepared: list[_Clicked]) -> list[tuple[np.ndarray, np.ndarray]]:
        """True and best class of every click of each image."""
        height, width = prepared[0].sample.image.shape[:2]
        image = np.zeros((self.batch_size, height, width, 3), np.uint8)
        size_hw = np.full((self.batch_size, 2), (height, width), np.int32)
        for row, one in enumerate(prepared):
            image[row], size_hw[row] = one.sample.image, one.sample.size_hw
        most = max(len(one.boxes) for one in prepared)
        if not most:
            return [(one.classes, one.classes) for one in prepared]
        image, size_hw = jax.device_put((image, size_hw), self._rows)
        pyramid = prompt_scores.encode(self._model, self._params, image, size_hw)
        best = np.concatenate(
            [self._best(pyramid, prepared, first) for first in range(0, most, self._size)], axis=1
        )
        answers = []
        for row, one in enumerate(prepared):
            objects, parts = best[row, : len(one.classes)].T
            is_part = one.classes >= self._num_objects
            answers.append((one.classes, np.where(is_part, self._num_objects + parts, objects)))
        return answers

    def _best(self, pyramid: Pyramid, prepared: list[_Clicked], first: int) -> np.ndarray:
        """Best object and best part of one call's clicks, int [b, p, 2]."""
        boxes = np.full((self.batch_size, self._size, 4), 0.5, np.float32)
        for row, one in enumerate(prepared):
            part = one.boxes[first : first + self._size]
            boxes[row, : len(part)] = part
        types = np.zeros(boxes.shape[:2], np.int32)
        prompts = Prompts(boxes=boxes, type_index=types, valid=np.ones(boxes.shape[:2], bool))
        prompts = jax.device_put(prompts, self._rows)
        return np.asarray(_names(self._model, self._params, pyramid, prompts, self._text))


@functools.partial(jax.jit, static_argnums=0)
def _names(
    model: nn.Module, params: dict, pyramid: Pyramid, prompts: Prompts, text: TextTable
) -> Array:
    found = model.apply({"params": params}, pyramid, prompts, text, method="decode_prompts")
    last = jax.tree.map(lambda x: x[-1], found)
    token = last.pred_ious.argmax(-1)[..., None, None]

    def best(logits: Float[Array, "b p k v"]) -> Array:
        if not logits.shape[-1]:
            return jnp.zeros(logits.shape[:2], jnp.int32)
        return jnp.take_along_axis(logits, token, axis=2)[:, :, 0].argmax(-1)

    return jnp.stack(
        [best(object_logits(last, last.part_logits.shape[-1])), best(last.part_logits)], axis=-1
    )


def evaluate_names(
    model: nn.Module,
    params: dict,
    text: TextTable,
    samples: Iterable[EvalSample],
    classes: ClassList,
    texts: Sequence[str],
    *,
    prompts_per_call: int = 16,
    eval_loop: EvalLoop | None = None,
) -> NameResult:
    """Clicks every instance with a class and compares its best name.

    Args:
        model: `SemanticSAM` with class heads.
        params: its parameters.
        text: unit embeddings of the names of objects and of parts.
        samples: images with labelled masks.
        classes: what the dataset annotates; rows as in `text`.
        texts: names of the objects, then of the parts.
        prompts_per_call: clicks of an image that are decoded together.
        eval_loop: devices, progress and records; one device and no records by default.
    """
    eval_loop = eval_loop or EvalLoop()
    scorer = NameScorer(model, params, text, classes, eval_loop, prompts_per_call)
    return eval_loop.run("names", NameEvaluator(texts), samples, scorer).result()
