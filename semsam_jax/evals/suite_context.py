"""What a suite works on and what it finds."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
from flax import linen as nn

from semsam_jax.evals.class_embeddings import KnownClasses, known_classes
from semsam_jax.evals.dataset_samples import ImageSet
from semsam_jax.evals.eval_loop import EvalLoop
from semsam_jax.evals.levels import LevelCalibration, calibrate_levels
from semsam_jax.evals.names import NameTable, evaluate_names
from semsam_jax.evals.one_click import OneClickResult, evaluate_one_click
from semsam_jax.evals.part_ap import ClassList
from semsam_jax.evals.report import TableRow
from semsam_jax.evals.samples import ClassNames
from semsam_jax.inference.name_scores import name_scales


@dataclasses.dataclass
class EvalContext:
    """Input of a suite.

    Attributes:
        model, params, meta: the checkpoint.
        clicked: images with masks for prompts, in the frame that is scored.
        images: images with masks in the stored image's pixels.
        whole: images with masks on the canvas.
        class_list: classes of the dataset with the names of objects and of parts.
        class_names: the names alone; none where the dataset has no classes.
        eval_loop: devices, processes, records and progress.
        out: folder for pictures and the table of clicks; None draws nothing.
        prompts_per_call: prompts decoded together.
        points_per_side: clicks per side of the grid of `proposals`, `everything` and `otq`.
    """

    model: nn.Module
    params: dict
    meta: Mapping
    clicked: ImageSet
    images: ImageSet
    whole: ImageSet
    class_list: Callable[[], tuple[ClassList, list[str], list[str]]]
    class_names: Callable[[], ClassNames]
    eval_loop: EvalLoop
    out: Path | None = None
    prompts_per_call: int = 16
    points_per_side: int = 32

    @functools.cached_property
    def clicks(self) -> OneClickResult:
        """One click per mask; measured once for all suites."""
        return evaluate_one_click(
            self.model,
            self.params,
            self.clicked,
            prompts_per_call=self.prompts_per_call,
            eval_loop=self.eval_loop,
        )

    def levels(self) -> LevelCalibration:
        """The levels measured from the clicks."""
        return calibrate_levels(self.clicks.table)

    @functools.cached_property
    def known_names(self) -> KnownClasses:
        """The dataset's names of objects, and of parts if the model has learned any."""
        classes, objects, parts = self.class_list()
        parts = parts if self.meta.get("parts_trained", True) else []
        return known_classes(self.model, self.params, self.meta, classes, objects, parts)

    @functools.cached_property
    def name_table(self) -> NameTable:
        """Names of true masks (`names.evaluate_names`); measured once."""
        return evaluate_names(
            self.model,
            self.params,
            self.known_names,
            self.clicked,
            box_type=0 if self.is_released else 1,
            prompts_per_call=self.prompts_per_call,
            eval_loop=self.eval_loop,
            scales=name_scales(self.meta),
        )

    @property
    def grid(self) -> dict[str, str]:
        """A note on the grid of clicks, for the suites that use one."""
        return {"grid": f"{self.points_per_side} x {self.points_per_side} clicks"}

    @property
    def draws(self) -> bool:
        """Whether this process draws the pictures."""
        return self.out is not None and jax.process_index() == 0

    @property
    def is_released(self) -> bool:
        """Whether the checkpoint was converted from released weights."""
        return self.meta.get("prompt_preset") == "released_v1"


@dataclasses.dataclass(frozen=True)
class SuiteResult:
    """Result of a suite.

    Attributes:
        rows: lines of the table.
        scalars: numbers for the JSON file.
        notes: head of the table.
        is_complete: False if classes had to be left out, so that no published figure fits.
        by_class: "cat", "cat:head" or ":head" -> the figures of this class
            (`report.CLASS_FIGURES`), without those that do not exist.
    """

    rows: list[TableRow]
    scalars: dict[str, float]
    notes: dict[str, str] = dataclasses.field(default_factory=dict)
    is_complete: bool = True
    by_class: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)


def prefixed(prefix: str, scalars: dict[str, float]) -> dict[str, float]:
    """Scalars under the name of their suite."""
    return {f"{prefix}/{name}": value for name, value in scalars.items()}
