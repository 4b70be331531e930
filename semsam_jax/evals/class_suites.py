"""The suites that score with the class names of a dataset."""

from collections.abc import Sequence

import numpy as np

from semsam_jax.evals import plots
from semsam_jax.evals.class_embeddings import KnownClasses, known_classes
from semsam_jax.evals.everything import evaluate_everything
from semsam_jax.evals.generic import evaluate_generic
from semsam_jax.evals.names import KINDS, calibrations, score_rows, unique_names
from semsam_jax.evals.panoptic import PanopticResult
from semsam_jax.evals.part_ap import ClassList
from semsam_jax.evals.report import TableRow
from semsam_jax.evals.suite_context import EvalContext, SuiteResult, prefixed
from semsam_jax.inference.loading import model_from_params
from semsam_jax.inference.mask_generator import MaskGenerator


def generic(context: EvalContext) -> SuiteResult:
    """PQ, mIoU, mask and box AP with the dataset's own names."""
    classes, object_names, _ = context.class_list()
    found = _with_text(context, classes, object_names, [])
    if not found.names:
        return _nothing_known(found)
    names = found.names
    result = evaluate_generic(
        context.model,
        context.params,
        found.text,
        context.images,
        found.classes,
        eval_loop=context.eval_loop,
    )
    if context.draws:
        if result.panoptic.by_class:
            plots.plot_class_quality(context.out / "pq_by_class.png", result.panoptic, names)
        plots.plot_precision_recall(context.out / "precision_recall.png", result.mask_ap, names)
    rows = [
        *_panoptic_rows(result.panoptic, "54.6 (T, COCO), 55.2 (T, +SA-1B)"),
        TableRow("mIoU", 100 * result.semantic.miou),
        TableRow("mask AP", 100 * result.mask_ap.ap, "46.1 (T, COCO), 47.4 (T, +SA-1B)"),
        TableRow("mask AP50", 100 * result.mask_ap.ap50),
        TableRow("box AP", 100 * result.box_ap.ap, "50.1 (T, COCO), 52.3 (T, +SA-1B)"),
    ]
    return SuiteResult(
        rows,
        prefixed("generic", result.scalars()),
        found.notes,
        found.is_complete,
        _by_class(names, ap=result.mask_ap.class_ap, ap50=result.mask_ap.class_ap50),
    )


def names(context: EvalContext) -> SuiteResult:
    """Whether the best names of true masks are right, for boxes and clicks, and how sure."""
    table, known = context.name_table, context.known_names
    if context.draws:
        for kind, found in calibrations(table).items():
            plots.plot_name_reliability(context.out / f"names_{kind}.png", found, kind)
    rows, scalars = score_rows(table)
    notes = dict(known.notes)
    if not rows:
        notes["nothing to score"] = "no masks with known names among these images"
    by_class: dict[str, dict[str, float]] = {}
    for kind, own in zip(KINDS, unique_names(known), strict=True):
        accuracy = table.class_accuracy(kind, len(own.texts))
        texts = [f":{text}" if kind == "part" else text for text in own.texts]
        by_class |= _by_class(texts, name_accuracy=accuracy)
    return SuiteResult(rows, prefixed("names", scalars), notes, known.is_complete, by_class)


def _panoptic_rows(result: PanopticResult, published: str = "") -> list[TableRow]:
    return [
        TableRow("PQ", 100 * result.all["pq"], published),
        TableRow("PQ things", 100 * result.things["pq"]),
        TableRow("PQ stuff", 100 * result.stuff["pq"]),
        TableRow("SQ", 100 * result.all["sq"]),
        TableRow("RQ", 100 * result.all["rq"]),
    ]


def part(context: EvalContext) -> SuiteResult:
    """AP of parts as pairs of object and part."""
    classes, object_names, part_names = context.class_list()
    found = _with_text(context, classes, object_names, part_names)
    notes = found.notes
    if not found.classes.pairs:
        notes["nothing to score"] = "no parts with known names among these images"
        return SuiteResult([], {}, notes, is_complete=False)
    result = evaluate_generic(
        context.model,
        context.params,
        found.text,
        context.images,
        found.classes,
        tasks=("part",),
        eval_loop=context.eval_loop,
        name="part",
    )
    mask_ap, box_ap = result.part_mask_ap, result.part_box_ap
    if not mask_ap.num_truths:
        notes["nothing to score"] = "no human-made masks of parts among these images"
    rows = [
        TableRow("part box AP", 100 * box_ap.ap, "27.0 (T), 28.0 (T, +SA-1B)"),
        TableRow("part mask AP", 100 * mask_ap.ap, "30.5 (T), 31.4 (T, +SA-1B)"),
        TableRow("part mask AP50", 100 * mask_ap.ap50),
    ]
    split, pairs = len(found.classes.object_ids), found.classes.pairs
    texts = [
        f"{found.names[of]}:{found.names[split + part]}"
        for of, part in zip(pairs.objects, pairs.parts, strict=True)
    ]
    by_class = _by_class(texts, ap=mask_ap.class_ap, ap50=mask_ap.class_ap50)
    return SuiteResult(rows, prefixed("part", result.scalars()), notes, found.is_complete, by_class)


def everything(context: EvalContext) -> SuiteResult:
    """PQ of all masks of an image, named with the dataset's own names, without overlap."""
    classes, object_names, _ = context.class_list()
    found = _with_text(context, classes, object_names, [])
    if not found.names:
        return _nothing_known(found)
    generator = MaskGenerator(
        model_from_params(context.params, context.meta),
        points_per_side=context.points_per_side,
        labels=found.names,
        output_mode="coco_rle",
        size="native",
    )
    result = evaluate_everything(
        generator, context.images, found.classes, found.names, context.eval_loop
    )
    scalars = prefixed("everything", result.scalars())
    notes = found.notes | context.grid
    return SuiteResult(_panoptic_rows(result), scalars, notes, found.is_complete)


def _with_text(
    context: EvalContext, classes: ClassList, object_names: list[str], part_names: list[str]
) -> KnownClasses:
    return known_classes(
        context.model, context.params, context.meta, classes, object_names, part_names
    )


def _nothing_known(found: KnownClasses) -> SuiteResult:
    """Without a name that has an embedding there is nothing to score."""
    return SuiteResult([], {}, found.notes, is_complete=False)


def _by_class(names: Sequence[str], **figures: np.ndarray) -> dict[str, dict[str, float]]:
    """Figures in 0..1 of each class, as percent; what is nan is left out."""
    table: dict[str, dict[str, float]] = {}
    for key, values in figures.items():
        for name, value in zip(names, values.tolist(), strict=True):
            if not np.isnan(value):
                table.setdefault(name, {})[key] = 100 * value
    return table
