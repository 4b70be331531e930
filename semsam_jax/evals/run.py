"""One evaluation from options to tables: opens checkpoint and data, runs the suites, writes."""

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path

import jax

from semsam_jax.core import checkpoint_io
from semsam_jax.core.console import hides_progress
from semsam_jax.core.errors import DataError
from semsam_jax.evals import report
from semsam_jax.evals.dataset_samples import EvalDataset, Frame, open_dataset
from semsam_jax.evals.driver import Driver
from semsam_jax.evals.options import EvalOptions
from semsam_jax.evals.suites import SUITES, Outcome, Setting
from semsam_jax.models.presets import from_json
from semsam_jax.models.semantic_sam import SemanticSAM
from semsam_jax.parallel.distributed import ending_together

RELEASED_FRAME = Frame(image_size=1344, short_side=800, long_side=1333, is_tight=True)
"""The published protocol: short side 800, long side at most 1333, padded to multiples of 32."""

_PUBLISHED_ON = {
    "one_click": "coco",
    "box": "coco",
    "granularity": "sa1b",
    "generic": "coco",
    "part": "pascal_part",
}


def evaluate(options: EvalOptions) -> dict[str, Outcome]:
    """Measures, writes tables and pictures, and returns what each suite found.

    All processes of a distributed run call it; the first one writes.

    Raises:
        SemSamError: with the fix, for everything that a user can repair.
    """
    with ending_together():
        return _evaluate(options)


def _evaluate(options: EvalOptions) -> dict[str, Outcome]:
    checkpoint = checkpoint_io.choose_checkpoint(options.checkpoint or None)
    meta = checkpoint_io.read_meta(checkpoint)
    frame = choose_frame(options, meta)
    dataset = open_dataset(
        options.dataset, options.root or None, options.split, frame, options.limit or None
    )
    dataset, _ = dataset.surveyed()
    if jax.process_index() == 0:
        for note in dataset.notes:
            print(f"note: {note}", flush=True)
    # The shipped model lies among installed files, where results have no business.
    beside = Path() if checkpoint == checkpoint_io.SHIPPED else checkpoint
    out = Path(options.out or beside / "evaluation" / options.dataset)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--out {out}: cannot be made ({error.strerror or error}).") from error
    about = _about(options, checkpoint, meta, dataset)
    setting = _setting(options, checkpoint, dataset, out, about)
    outcomes = {}
    for name in options.suites:
        outcome = SUITES[name](setting)
        rows = _comparable(outcome, name, dataset)
        outcomes[name] = dataclasses.replace(outcome, rows=rows)
        if jax.process_index() == 0:
            _write(out, name, outcomes[name], about)
    if options.write_levels and jax.process_index() == 0:
        order = setting.levels().level_order
        checkpoint_io.write_level_order(checkpoint, list(order))
        print(f"wrote the order of levels {list(order)} into {checkpoint}")
    if jax.process_index() == 0:
        print(f"results in {out}")
    return outcomes


def choose_frame(options: EvalOptions, meta: Mapping) -> Frame:
    """How photos are brought to the canvas, and where prompts are scored."""
    is_released = meta.get("prompt_preset") == "released_v1"
    protocol = options.protocol or ("released_v1" if is_released else "own")
    if protocol == "released_v1" or (protocol == "original_size" and is_released):
        frame = RELEASED_FRAME
    else:
        frame = Frame(int(meta.get("image_size") or RELEASED_FRAME.image_size))
    changes: dict[str, object] = {"in_photo_frame": protocol == "original_size"}
    if options.image_size:
        changes |= {"image_size": options.image_size, "long_side": None}
        if not options.short_side:
            changes["short_side"] = None
    if options.short_side:
        changes["short_side"] = options.short_side
    if options.canvas:
        changes["is_tight"] = options.canvas == "tight"
    return dataclasses.replace(frame, **changes)


def _setting(
    options: EvalOptions, checkpoint: object, dataset: EvalDataset, out: Path, about: Mapping
) -> Setting:
    params, meta = checkpoint_io.read_model(checkpoint)
    count = max(1, min(len(dataset.samples()), len(jax.local_devices())))
    driver = Driver(
        folder=out / "progress",
        settings=about | _identity(options, checkpoint, meta, dataset),
        show_progress=sys.stderr.isatty() and not hides_progress(),
        devices=tuple(jax.local_devices()[:count]),
        photos_per_device=options.photos_per_device,
    )
    return Setting(
        model=SemanticSAM(from_json(meta["model_config"])),
        params=params,
        meta=meta,
        clicked=dataset.samples(options.view),
        photos=dataset.photo_samples(),
        whole=dataset.canvas_samples(options.view),
        class_list=dataset.class_list,
        driver=driver,
        out=out,
        prompts_per_call=options.prompts_per_call,
        points_per_side=options.points_per_side,
    )


def _identity(
    options: EvalOptions, checkpoint: object, meta: Mapping, dataset: EvalDataset
) -> dict[str, object]:
    """What an interrupted evaluation must agree with to be gone on with, beside its description."""
    identity: dict[str, object] = {"view": options.view, "schema": meta.get("schema_version")}
    if jax.process_count() == 1:  # ages of files may differ between machines
        identity["photos"] = dataset.source.fingerprint
    return identity


def _comparable(outcome: Outcome, suite: str, dataset: EvalDataset) -> list[report.Row]:
    """Rows with the published figures only where they were measured on the same dataset."""
    is_same = not dataset.is_sample and _PUBLISHED_ON.get(suite) == dataset.name
    if is_same and outcome.is_complete:
        return outcome.rows
    return [dataclasses.replace(row, published="") for row in outcome.rows]


def _write(out: Path, name: str, outcome: Outcome, about: Mapping) -> None:
    title = f"Evaluation: {name}"
    report.write_json(out / f"{name}.json", about, outcome.notes, outcome.rows, outcome.scalars)
    report.write_markdown(out / f"{name}.md", title, outcome.rows, about | outcome.notes)
    report.write_summary(out / "results.md", out, about)
    print((out / f"{name}.md").read_text(encoding="utf-8"), flush=True)


def _about(options: EvalOptions, checkpoint, meta: Mapping, dataset: EvalDataset) -> dict:
    frame = dataset.frame
    size = f"canvas {frame.image_size} px"
    if frame.short_side:
        size += f", short side {frame.short_side} px"
    if frame.long_side:
        size += f", long side at most {frame.long_side} px"
    size += ", tight" if frame.is_tight else ", square"
    size += "; prompts scored in the photo's pixels" if frame.in_photo_frame else ""
    where = "embedded sample" if dataset.is_sample else options.root
    photos = f"{len(dataset.samples())} photos"
    if options.view != "any":
        photos += f", {options.view} masks"
    step = f", step {meta['step']}" if "step" in meta else ""
    return {
        "checkpoint": f"{checkpoint}{step}",
        "model": str(meta.get("preset", "unnamed")),
        "data": f"{options.dataset} {options.split}, {photos} ({where})",
        "frame": size,
    }
