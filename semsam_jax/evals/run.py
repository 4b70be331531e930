"""One evaluation from options to tables: opens checkpoint and data, runs the suites, writes the
results.
"""

import dataclasses
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path

import jax

from semsam_jax.convert import zoo
from semsam_jax.core import checkpoint_io
from semsam_jax.core.console import hides_progress
from semsam_jax.core.errors import ConfigError
from semsam_jax.core.paths import AnyPath
from semsam_jax.evals import plots, report, sources
from semsam_jax.evals.dataset_samples import EvalDataset, EvalFrame, open_dataset
from semsam_jax.evals.eval_loop import EvalLoop
from semsam_jax.evals.names import calibrations
from semsam_jax.evals.options import EvalOptions
from semsam_jax.evals.suite_context import EvalContext, SuiteResult
from semsam_jax.evals.suites import SUITES
from semsam_jax.evals.thresholds import mask_thresholds, name_thresholds, with_stored
from semsam_jax.inference import files
from semsam_jax.inference.labels import knows_names
from semsam_jax.inference.loading import model_from_params
from semsam_jax.models.presets import from_json
from semsam_jax.models.semantic_sam import SemanticSAM
from semsam_jax.parallel.distributed import ending_together

RELEASED_FRAME = EvalFrame(image_size=1344, short_side=800, long_side=1333, is_tight=True)
"""The published protocol: short side 800, long side at most 1333, padded to multiples of 32."""

_RECORDS = 2
"""Raised whenever evaluators keep other columns, so that older records are measured again."""
_MAX_CLASSES = 30
"""A longer list of classes is not printed; the files have it."""

_PUBLISHED_ON = {
    "one_click": "coco",
    "box": "coco",
    "granularity": "sa1b",
    "generic": "coco",
    "part": "pascal_part",
}


def evaluate(options: EvalOptions) -> dict[str, SuiteResult]:
    """Measures, writes tables and pictures, and returns what each suite found.

    All processes of a distributed run call it; the first one writes.

    Raises:
        SemSamError: for everything that a user can fix.
    """
    with ending_together():
        return _evaluate(options)


def _evaluate(options: EvalOptions) -> dict[str, SuiteResult]:
    checkpoint = checkpoint_io.choose_checkpoint(zoo.resolve(options.checkpoint or None))
    writes = any(
        (options.write_levels, options.write_masks, options.write_names, options.write_panoptic)
    )
    if writes and checkpoint == checkpoint_io.SHIPPED:
        raise ConfigError(
            f"calibrate: would change the model of the package for everyone who uses this "
            f"installation; copy {checkpoint} and give the copy as --checkpoint, or add --dry-run."
        )
    meta = checkpoint_io.read_meta(checkpoint)
    frame = choose_frame(options, meta)
    dataset = open_dataset(
        options.dataset, options.root or None, options.split, frame, options.limit or None
    )
    dataset, _ = dataset.surveyed()
    if jax.process_index() == 0:
        for note in dataset.notes:
            print(f"note: {note}", flush=True)
        if dataset.num_pseudo and set(options.suites) != {"otq"}:
            print(f"note: machine-made masks, which are not scored: {dataset.num_pseudo}")
    # The shipped model is among the installed files, which get no results.
    folder = Path() if checkpoint == checkpoint_io.SHIPPED else checkpoint
    out = Path(options.out or folder / "evaluation" / options.dataset)
    files.make_folder(out)
    params, meta = checkpoint_io.read_model(checkpoint)
    about = _about(options, checkpoint, params, meta, dataset)
    context = _context(options, params, meta, dataset, out, about)
    outcomes = {}
    for name in options.suites:
        outcome = SUITES[name](context)
        rows = _comparable(outcome, name, dataset)
        outcomes[name] = dataclasses.replace(outcome, rows=rows)
        if jax.process_index() == 0:
            _write(out, name, outcomes[name], about)
    if writes:
        _calibrate(options, checkpoint, dataset, context, outcomes)
    if jax.process_index() == 0:
        print(f"results in {out}")
    return outcomes


def evaluate_folder(options: EvalOptions) -> dict[str, sources.MaskScores]:
    """Scores clicks and boxes on every source of `options.folder`, writes and prints the report.

    Raises:
        SemSamError: with the fix, for everything that a user can repair.
    """
    checkpoint = checkpoint_io.choose_checkpoint(zoo.resolve(options.checkpoint or None))
    params, meta = checkpoint_io.read_model(checkpoint)
    model = model_from_params(params, meta)
    folder = Path() if checkpoint == checkpoint_io.SHIPPED else checkpoint
    out = Path(options.out or folder / "evaluation" / Path(options.folder).resolve().name)
    scores, notes = sources.score_sources(
        model,
        options.folder,
        options.split,
        limit=options.limit or None,
        size=options.image_size or None,
        show_progress=sys.stderr.isatty() and not hides_progress(),
    )
    about = {
        "checkpoint": f"{checkpoint}" + (f", step {meta['step']}" if "step" in meta else ""),
        "data": f"{options.folder} {options.split}",
        "frame": f"images are resized to {options.image_size} px"
        if options.image_size
        else "images are resized as the checkpoint does by default",
    }
    sources.write(out, scores, about, notes)
    print((out / "sources.md").read_text(encoding="utf-8"))
    print(f"results in {out}")
    return scores


def _calibrate(
    options: EvalOptions,
    checkpoint: AnyPath,
    dataset: EvalDataset,
    context: EvalContext,
    outcomes: Mapping[str, SuiteResult],
) -> None:
    """Measures what the options ask for and writes all of it at once, or nothing."""
    found: dict[str, object] = {}
    if options.write_levels:
        levels = context.levels()
        found["level_order"] = list(levels.level_order)
        found["level_sizes"] = list(levels.level_sizes)
    if options.write_panoptic:
        found["panoptic_source"] = _better_source(outcomes)
    thresholds: dict[str, dict] = {}
    has_names = dataset.has_classes and knows_names(context.meta)
    if options.write_names and has_names:
        thresholds |= name_thresholds(context.name_table)
        for kind, bins in calibrations(context.name_table).items() if context.draws else ():
            plots.plot_name_reliability(context.out / f"names_{kind}.png", bins, kind)
    if jax.process_index() != 0:
        return
    if options.write_masks:
        params, meta = checkpoint_io.read_model(checkpoint)
        model = model_from_params(params, meta | found)
        thresholds |= mask_thresholds(model, dataset.canvas_samples())
    if not found and not thresholds:
        print("nothing could be measured on these images, and nothing is written")
        return
    stored = checkpoint_io.read_meta(checkpoint)
    checkpoint_io.update_meta(checkpoint, found | with_stored(stored, thresholds))
    if options.write_levels:
        order = found["level_order"]
        print(f"wrote the order of levels {order} and their mean sizes into {checkpoint}")
    if options.write_panoptic:
        print(f"wrote panoptic_source {found['panoptic_source']} into {checkpoint}")
    if thresholds:
        print(f"wrote its thresholds: {json.dumps(thresholds)}")


def _better_source(outcomes: Mapping[str, SuiteResult]) -> str:
    """What labels whole images with the higher PQ, one of `whole_image.PANOPTIC_SOURCES`."""
    generic = outcomes["generic"].scalars["generic/panoptic/pq"]
    masks = outcomes["everything"].scalars["everything/pq"]
    if not (math.isfinite(generic) and math.isfinite(masks)):
        raise ConfigError(
            f"calibrate --panoptic: PQ is {generic} of the generic branch and {masks} of masks; "
            f"give images with labelled masks of names that the model knows."
        )
    return "masks" if masks > generic else "generic"


def choose_frame(options: EvalOptions, meta: Mapping) -> EvalFrame:
    """How images are placed on the canvas, and where prompts are scored."""
    is_released = meta.get("prompt_preset") == "released_v1"
    protocol = options.protocol or ("released_v1" if is_released else "square")
    if protocol == "released_v1" or (protocol == "original_size" and is_released):
        frame = RELEASED_FRAME
    else:
        frame = EvalFrame(int(meta.get("image_size") or RELEASED_FRAME.image_size))
    changes: dict[str, object] = {"in_image_frame": protocol == "original_size"}
    if options.image_size:
        changes |= {"image_size": options.image_size, "long_side": None}
        if not options.short_side:
            changes["short_side"] = None
    if options.short_side:
        changes["short_side"] = options.short_side
    if options.canvas:
        changes["is_tight"] = options.canvas == "tight"
    return dataclasses.replace(frame, **changes)


def _context(
    options: EvalOptions,
    params: dict,
    meta: Mapping,
    dataset: EvalDataset,
    out: Path,
    about: Mapping,
) -> EvalContext:
    if options.write_names:  # measured anew, from scores as they are
        meta = {key: value for key, value in meta.items() if key != "name_scales"}
    count = max(1, min(len(dataset.samples()), len(jax.local_devices())))
    eval_loop = EvalLoop(
        folder=out / "progress",
        settings=about | _identity(options, meta, dataset),
        show_progress=sys.stderr.isatty() and not hides_progress(),
        devices=tuple(jax.local_devices()[:count]),
        images_per_device=options.images_per_device,
    )
    return EvalContext(
        model=SemanticSAM(from_json(meta["model_config"])),
        params=params,
        meta=meta,
        clicked=dataset.samples(options.view),
        images=dataset.image_samples(),
        whole=dataset.canvas_samples(options.view),
        class_list=dataset.class_list,
        class_names=dataset.class_names,
        eval_loop=eval_loop,
        out=out,
        prompts_per_call=options.prompts_per_call,
        points_per_side=options.points_per_side,
    )


def _identity(options: EvalOptions, meta: Mapping, dataset: EvalDataset) -> dict[str, object]:
    """What must be equal to resume an interrupted evaluation, besides its description."""
    identity: dict[str, object] = {
        "view": options.view,
        "points_per_side": options.points_per_side,
        "meta": meta,
        "records": _RECORDS,
    }
    if jax.process_count() == 1:  # ages of files may differ between machines
        identity["images"] = dataset.source.fingerprint
    return identity


def _comparable(outcome: SuiteResult, suite: str, dataset: EvalDataset) -> list[report.TableRow]:
    """Rows with the published figures only where they were measured on the same dataset."""
    is_same = not dataset.is_sample and _PUBLISHED_ON.get(suite) == dataset.name
    if is_same and outcome.is_complete:
        return outcome.rows
    return [dataclasses.replace(row, published="") for row in outcome.rows]


def _write(out: Path, name: str, outcome: SuiteResult, about: Mapping) -> None:
    title, classes, head = f"Evaluation: {name}", outcome.by_class, about | outcome.notes
    report.write_json(
        out / f"{name}.json", about, outcome.notes, outcome.rows, outcome.scalars, classes
    )
    report.write_markdown(out / f"{name}.md", title, outcome.rows, head, classes)
    report.write_summary(out / "results.md", out, about)
    is_long = len(classes) > _MAX_CLASSES
    print(report.markdown(title, outcome.rows, head, {} if is_long else classes), flush=True)
    if is_long:
        print(f"scores of {len(classes)} classes: {out / name}.md\n", flush=True)


def _about(
    options: EvalOptions,
    checkpoint: AnyPath,
    params: Mapping,
    meta: Mapping,
    dataset: EvalDataset,
) -> dict[str, str]:
    """What was measured, for the reports; only results of equal descriptions are combined."""
    frame = dataset.frame
    size = f"canvas {frame.image_size} px"
    if frame.short_side:
        size += f", short side {frame.short_side} px"
    if frame.long_side:
        size += f", long side at most {frame.long_side} px"
    size += ", tight" if frame.is_tight else ", square"
    size += "; prompts scored in the image's pixels" if frame.in_image_frame else ""
    where = "embedded sample" if dataset.is_sample else options.root
    images = f"{len(dataset.samples())} images"
    prompted = {} if options.view == "any" else {"prompted masks": options.view}
    step = f", step {meta['step']}" if "step" in meta else ""
    return {
        "checkpoint": f"{checkpoint}{step}",
        "model": str(meta.get("preset", "unnamed")),
        "weights": f"CRC-32 {checkpoint_io.checksum(params):08x}",
        "data": f"{options.dataset} {options.split}, {images} ({where})",
        "frame": size,
        **prompted,
    }
