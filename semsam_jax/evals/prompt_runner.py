"""Runs prompts through a model: several images and many prompts at a time, on all devices.

A measurement is a generator per image: it yields a `PromptQuery`, is sent the answer, may yield
again, and returns the input of its evaluator. The generators of a group of images advance together,
so that every device call serves all of them with fixed shapes.
"""

import dataclasses
from collections.abc import Callable, Generator, Hashable, Sequence

import jax
import numpy as np
from flax import linen as nn

from semsam_jax.core.structs import Prompts, Pyramid, TextTable
from semsam_jax.evals import prompt_scores
from semsam_jax.evals.eval_loop import EvalLoop
from semsam_jax.evals.prompt_scores import PromptMasks, PromptScores, ScorePlan
from semsam_jax.evals.samples import EvalSample
from semsam_jax.parallel.mesh import batch_sharding, build_mesh, in_use, replicated

FRAME_STEP = 64
"""Frames of stored images are padded to a multiple of this, so that few programs are compiled."""

TARGETS_STEP = 8
"""The number of targets of a prompt is padded likewise if it is more than one."""


@dataclasses.dataclass(frozen=True)
class PromptQuery:
    """What a measurement asks the model about one image.

    Attributes:
        boxes: float32 [p, 4] cxcywh, fractions of the canvas.
        type_index: int [p].
        targets: per prompt some masks, bool [h, w] in the frame of the ground truth, to be
            compared with; None queries for the masks themselves.
    """

    boxes: np.ndarray
    type_index: np.ndarray
    targets: Sequence[Sequence[np.ndarray]] | None = None


Answer = PromptScores | PromptMasks
PromptWork = Generator[PromptQuery, Answer, tuple]


@dataclasses.dataclass
class Pending:
    """An image whose generator has run up to its first question.

    Attributes:
        sample: the image.
        work: its generator.
        query: the question; None once `outcome` is there.
        outcome: what the generator returned.
    """

    sample: EvalSample
    work: PromptWork
    query: PromptQuery | None = None
    outcome: tuple | None = None

    def advance(self, answer: Answer | None) -> None:
        """Sends an answer (None to start) and takes the next question or the outcome."""
        try:
            self.query = self.work.send(answer)
        except StopIteration as stop:
            self.query, self.outcome = None, stop.value


class PromptRunner:
    """A model with its parameters on some devices of this process.

    Args:
        model: `SemanticSAM` (or any linen module with its two methods).
        params: its parameters.
        prompts_per_call: prompts of an image are padded to a multiple of this; it does not
            change a result, only speed and memory.
        masks_per_chunk: prompts of an image whose full-size masks are alive at the same time.
        isolate: whether prompts of an image do not see each other (False: the released demo).
        devices: of this process; its first one by default.
        images_per_device: images that a device works on at a time.
        text: names that each token is scored with; None scores masks alone.
    """

    def __init__(
        self,
        model: nn.Module,
        params: dict,
        prompts_per_call: int = 16,
        masks_per_chunk: int = 4,
        isolate: bool = True,
        devices: Sequence[jax.Device] | None = None,
        images_per_device: int = 1,
        text: TextTable | None = None,
    ):
        devices = jax.local_devices()[:1] if devices is None else list(devices)
        self._mesh = mesh = build_mesh(devices=devices)
        self._model, self._rows = model, batch_sharding(mesh)
        self._params, self._text = jax.device_put((params, text), replicated(mesh))
        self._whole = replicated(mesh)
        self._size, self._isolate = prompts_per_call, isolate
        limit = min(masks_per_chunk, prompts_per_call)
        self._chunk = next(n for n in range(limit, 0, -1) if prompts_per_call % n == 0)
        self.batch_size = len(devices) * images_per_device

    @classmethod
    def on(
        cls,
        eval_loop: EvalLoop,
        model: nn.Module,
        params: dict,
        prompts_per_call: int,
        isolate: bool,
        text: TextTable | None = None,
    ) -> "PromptRunner":
        """A runner on the devices of an evaluation loop."""
        return cls(
            model,
            params,
            prompts_per_call,
            isolate=isolate,
            devices=eval_loop.devices,
            images_per_device=eval_loop.images_per_device,
            text=text,
        )

    def scorer(self, work: Callable[[EvalSample], PromptWork]) -> "PromptScorer":
        """Scorer of a measurement for `eval_loop.EvalLoop.run`."""
        return PromptScorer(self, work)

    def query(self, sample: EvalSample, query: PromptQuery) -> Answer:
        """Asks one question about one image."""
        pending = Pending(sample, _one_question(query))
        pending.advance(None)
        return self.run([pending])[0][0]

    def run(self, pending: list[Pending]) -> list[tuple]:
        """Answers the questions of at most `batch_size` images until all are done.

        The images have the same `frame_key`.
        """
        pyramid = None
        while any(one.query is not None for one in pending):
            with in_use(self._mesh):
                if pyramid is None:
                    pyramid = self._encode([one.sample for one in pending])
                answers = self._answer(pyramid, pending)
            for one, answer in zip(pending, answers, strict=True):
                if one.query is not None:
                    one.advance(answer)
        return [one.outcome for one in pending]

    def _encode(self, samples: list[EvalSample]) -> Pyramid:
        height, width = samples[0].image.shape[:2]
        image = np.zeros((self.batch_size, height, width, 3), np.uint8)
        size_hw = np.full((self.batch_size, 2), (height, width), np.int32)
        for row, sample in enumerate(samples):
            image[row], size_hw[row] = sample.image, sample.size_hw
        image, size_hw = jax.device_put((image, size_hw), self._rows)
        return prompt_scores.encode(self._model, self._params, image, size_hw)

    def _answer(self, pyramid: Pyramid, pending: list[Pending]) -> list[Answer | None]:
        queries = [one.query for one in pending]
        most = max(len(query.boxes) for query in queries if query is not None)
        targets = [query.targets for query in queries if query is not None]
        has_targets = targets[0] is not None
        canvas_hw, frame_hw = frame_key(pending[0].sample)
        plan = ScorePlan(self._chunk, self._isolate, frame_hw)
        sizes = np.full((2, self.batch_size, 2), 1, np.int32)
        for row, one in enumerate(pending):
            sizes[:, row] = one.sample.size_hw, one.sample.frame_hw
        sizes = jax.device_put(sizes, self._whole)
        parts = []
        for first in range(0, max(most, 1), self._size):
            rows = slice(first, first + self._size)
            prompts = jax.device_put(self._prompts(queries, rows), self._rows)
            common = (self._model, self._params, pyramid, prompts, sizes)
            if has_targets:
                width = _padded(max(len(masks) for one in targets for masks in one))
                bits = self._bits(queries, rows, width, frame_hw or canvas_hw)
                bits = jax.device_put(bits, self._rows)
                parts.append(prompt_scores.count_pixels(*common, bits, self._text, plan))
            else:
                parts.append(prompt_scores.draw_masks(*common, plan))
        # Everything is dispatched before the first result is waited for.
        parts = jax.device_get(parts)
        arrays = jax.tree.map(lambda *part: np.concatenate(part, axis=1), *parts)
        make = _scores if has_targets else _masks
        return [
            None if query is None else make(row, query, pending[row].sample, arrays)
            for row, query in enumerate(queries)
        ]

    def _prompts(self, queries: list[PromptQuery | None], rows: slice) -> Prompts:
        boxes = np.full((self.batch_size, self._size, 4), 0.5, np.float32)
        types = np.zeros((self.batch_size, self._size), np.int32)
        valid = np.zeros((self.batch_size, self._size), bool)
        for row, query in enumerate(queries):
            if query is not None:
                count = len(query.boxes[rows])
                boxes[row, :count] = query.boxes[rows]
                types[row, :count] = query.type_index[rows]
                valid[row, :count] = True
        return Prompts(boxes=boxes, type_index=types, valid=valid)

    def _bits(
        self, queries: list[PromptQuery | None], rows: slice, width: int, frame_hw: tuple[int, int]
    ) -> np.ndarray:
        bits = np.zeros(
            (self.batch_size, self._size, width, frame_hw[0], frame_hw[1] // 8), np.uint8
        )
        for row, query in enumerate(queries):
            for prompt, masks in enumerate([] if query is None else query.targets[rows]):
                for column, mask in enumerate(masks):
                    packed = np.packbits(mask, axis=-1)
                    bits[row, prompt, column, : packed.shape[0], : packed.shape[1]] = packed
        return bits


@dataclasses.dataclass(frozen=True)
class PromptScorer:
    """A prompt measurement for the evaluation loop: a runner and a generator per image."""

    runner: PromptRunner
    work: Callable[[EvalSample], PromptWork]

    @property
    def batch_size(self) -> int:
        """Images of one call."""
        return self.runner.batch_size

    def key(self, sample: EvalSample) -> Hashable:
        """Images of one canvas and one frame share a program."""
        return frame_key(sample)

    def prepare(self, sample: EvalSample) -> Pending:
        """Finds the first clicks."""
        pending = Pending(sample, self.work(sample))
        pending.advance(None)
        return pending

    def score(self, prepared: list[Pending]) -> list[tuple]:
        """Runs the generators until every image is done."""
        return self.runner.run(prepared)


def frame_key(sample: EvalSample) -> tuple[tuple[int, int], tuple[int, int] | None]:
    """Canvas of an image, and the padded size of its scored frame (None: the canvas)."""
    canvas = tuple(sample.image.shape[:2])
    if sample.truth_hw is None:
        return canvas, None
    return canvas, tuple(-(-side // FRAME_STEP) * FRAME_STEP for side in sample.truth_hw)


def _padded(num_targets: int) -> int:
    """Width of the target axis: 1, or a multiple of `TARGETS_STEP`."""
    return 1 if num_targets <= 1 else -(-num_targets // TARGETS_STEP) * TARGETS_STEP


def _one_question(query: PromptQuery) -> PromptWork:
    answer = yield query
    return (answer,)


def _scores(row: int, query: PromptQuery, sample: EvalSample, arrays: tuple) -> PromptScores:
    count, width = len(query.boxes), max((len(masks) for masks in query.targets), default=0)
    pred_ious, inter, pred, target, names = jax.tree.map(lambda x: x[row, :count], arrays)
    counts = (inter[..., :width], pred, target[..., :width])
    return PromptScores(pred_ious, *(x.astype(np.float64) for x in counts), names)


def _masks(row: int, query: PromptQuery, sample: EvalSample, arrays: tuple) -> PromptMasks:
    h, w = sample.frame_hw
    pred_ious, bits = (array[row, : len(query.boxes)] for array in arrays)
    masks = np.unpackbits(bits[:, :, :h], axis=-1)[..., :w].astype(bool)
    return PromptMasks(pred_ious, masks)
