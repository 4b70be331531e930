"""python -m semsam_jax evaluate: scores of a checkpoint on annotated data."""

import argparse
import dataclasses
from pathlib import Path

from semsam_jax.core import checkpoint_io
from semsam_jax.core.errors import CheckpointError, ConfigError, DataError

SUITE_NAMES = (
    "one_click",
    "box",
    "granularity",
    "interactive",
    "generic",
    "part",
    "proposals",
    "baselines",
)
_PUBLISHED_SIZE, _PUBLISHED_SHORT_SIDE = 1344, 800
_PUBLISHED_ON = {
    "one_click": "coco",
    "box": "coco",
    "granularity": "sa1b",
    "generic": "coco",
    "part": "pascal_part",
}


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the parser of `evaluate`."""
    parser = commands.add_parser(
        "evaluate",
        help="scores of a checkpoint on annotated data",
        description="Writes SUITE.md, SUITE.json, a row per mask (one_click.csv), plots and a "
        "gallery of the best, median and worst clicks. Without --data.root the embedded sample "
        "is scored: it shows that everything works, its figures are no benchmark.",
    )
    parser.add_argument(
        "--checkpoint",
        metavar="DIR",
        help="workdir of a training run, or folder of a converted checkpoint "
        "(default: the last finished training run)",
    )
    parser.add_argument(
        "--suite",
        default="one_click",
        metavar="NAMES",
        help=f"what to measure, separated by commas: {', '.join(SUITE_NAMES)} (one_click)",
    )
    parser.add_argument("--out", metavar="DIR", help="default: CHECKPOINT/evaluation/DATASET")
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data.root", dest="root", metavar="DIR", help="holds one folder per dataset"
    )
    data.add_argument(
        "--data.dataset", dest="dataset", default="coco", metavar="NAME", help="(coco)"
    )
    data.add_argument("--data.split", dest="split", default="val", metavar="NAME", help="(val)")
    data.add_argument(
        "--data.limit", dest="limit", type=int, metavar="N", help="photos (default: all)"
    )
    data.add_argument(
        "--data.view",
        dest="view",
        default="any",
        choices=("any", "object", "part"),
        help="which masks are prompted (any)",
    )
    data.add_argument(
        "--data.image-size",
        dest="image_size",
        type=int,
        metavar="PX",
        help="side of the canvas, a multiple of 32 (default: as in training; "
        f"{_PUBLISHED_SIZE} for released weights)",
    )
    data.add_argument(
        "--data.short-side",
        dest="short_side",
        type=int,
        metavar="PX",
        help="resize the short side to this, as far as the long side fits the canvas "
        f"(default for released weights: {_PUBLISHED_SHORT_SIDE})",
    )
    data.add_argument(
        "--data.canvas",
        dest="canvas",
        choices=("square", "tight"),
        help="tight pads each photo to multiples of 32 only, as the published protocol "
        "(default: square for own weights, tight for released ones)",
    )
    model = parser.add_argument_group("model")
    model.add_argument("--prompts-per-call", type=int, default=16, metavar="N", help="(16)")
    model.add_argument(
        "--points-per-side", type=int, default=32, metavar="N", help="grid of proposals (32)"
    )


def run(args: argparse.Namespace) -> int:
    """Measures and writes; returns 0."""
    names = parse_suites(args.suite)
    for flag, value in (
        ("--data.limit", args.limit),
        ("--prompts-per-call", args.prompts_per_call),
        ("--points-per-side", args.points_per_side),
    ):
        if value is not None and value < 1:
            raise ConfigError(f"{flag} {value}: wanted at least 1.")
    checkpoint = args.checkpoint or checkpoint_io.last_run()
    if checkpoint is None:
        raise CheckpointError(
            "evaluate: no --checkpoint given and no finished training run found; give the workdir "
            "of a run or a converted checkpoint."
        )
    from semsam_jax.evals import report

    meta = checkpoint_io.read_meta(checkpoint)
    dataset = _open_dataset(args, meta)
    out = Path(args.out) if args.out else Path(checkpoint) / "evaluation" / args.dataset
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--out {out}: cannot be made ({error.strerror or error}).") from error
    setting = _setting(args, checkpoint, dataset, out)
    from semsam_jax.evals.suites import SUITES

    title = f"Evaluation on {args.dataset}"
    for name in names:
        outcome = SUITES[name](setting)
        about = _about(args, checkpoint, meta, dataset) | outcome.notes
        rows = _comparable(outcome, name, dataset)
        report.write_json(out / f"{name}.json", about, outcome.scalars)
        report.write_markdown(out / f"{name}.md", f"{title}: {name}", rows, about)
        print((out / f"{name}.md").read_text(encoding="utf-8"), flush=True)
    print(f"results in {out}")
    return 0


def parse_suites(text: str) -> list[str]:
    """Splits --suite; ConfigError names what is unknown."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in SUITE_NAMES]
    if unknown or not names:
        raise ConfigError(
            f"--suite: got {', '.join(unknown) or 'nothing'}; wanted one or more of "
            f"{', '.join(SUITE_NAMES)}."
        )
    return list(dict.fromkeys(names))


def _open_dataset(args: argparse.Namespace, meta: dict):
    from semsam_jax.evals.dataset_samples import CANVAS_MULTIPLE, Frame, open_dataset

    is_released = meta.get("prompt_preset") == "released_v1"
    size = args.image_size or (None if is_released else meta.get("image_size")) or _PUBLISHED_SIZE
    if size % CANVAS_MULTIPLE:
        raise ConfigError(
            f"--data.image-size {size}: wanted a multiple of {CANVAS_MULTIPLE}, such as "
            f"{-(-size // CANVAS_MULTIPLE) * CANVAS_MULTIPLE}."
        )
    short_side = args.short_side
    if short_side is None and is_released and args.image_size is None:
        short_side = _PUBLISHED_SHORT_SIDE
    canvas = args.canvas or ("tight" if is_released else "square")
    frame = Frame(size, short_side, is_tight=canvas == "tight")
    return open_dataset(args.dataset, args.root, args.split, frame, args.limit)


def _setting(args: argparse.Namespace, checkpoint, dataset, out: Path):
    import jax

    from semsam_jax.evals.suites import Setting
    from semsam_jax.models.presets import from_json
    from semsam_jax.models.semantic_sam import SemanticSAM

    params, meta = checkpoint_io.read_model(checkpoint)
    params = jax.device_put(params)
    return Setting(
        model=SemanticSAM(from_json(meta["model_config"])),
        params=params,
        meta=meta,
        click_samples=lambda: dataset.samples(args.view),
        photo_samples=dataset.photo_samples,
        class_list=dataset.class_list,
        generate=_proposal_maker(params, meta, args.points_per_side),
        out=out,
        prompts_per_call=args.prompts_per_call,
        is_released=meta.get("prompt_preset") == "released_v1",
    )


def _proposal_maker(params: dict, meta: dict, points_per_side: int):
    """All masks of the valid part of the canvas, from the mask generator of the inference.

    The quality filters are opened and duplicates kept longer, since recall at 1,000 wants
    many candidates in the right order (SAM's protocol for proposals).
    """

    def generate(sample):
        import numpy as np

        from semsam_jax.inference.loading import model_from_params
        from semsam_jax.inference.mask_generator import MaskGenerator

        if "generator" not in cache:
            cache["generator"] = MaskGenerator(
                model_from_params(params, meta),
                points_per_side=points_per_side,
                pred_iou_thresh=0.0,
                stability_score_thresh=0.0,
                box_nms_thresh=0.9,
                output_mode="coco_rle",
                size="native",
            )
        h, w = sample.size_hw
        records = cache["generator"].generate(sample.image[:h, :w])
        scores = [r["predicted_iou"] + r["stability_score"] for r in records]
        return [r["segmentation"] for r in records], np.asarray(scores, np.float64)

    cache: dict = {}
    return generate


def _comparable(outcome, suite: str, dataset) -> list:
    """Rows with the published figures only where they were measured on the same dataset."""
    is_same = not dataset.is_sample and _PUBLISHED_ON.get(suite) == dataset.name
    if is_same and outcome.is_complete:
        return outcome.rows
    return [dataclasses.replace(row, published="") for row in outcome.rows]


def _about(args: argparse.Namespace, checkpoint, meta: dict, dataset) -> dict[str, str]:
    frame = dataset.frame
    size = f"canvas {frame.image_size} px"
    if frame.short_side:
        size += f", short side {frame.short_side} px"
    photos = len(dataset.source) if args.limit is None else min(args.limit, len(dataset.source))
    where = "embedded sample" if dataset.is_sample else args.root
    return {
        "checkpoint": f"{checkpoint}, step {checkpoint_io.newest_step(checkpoint).name}",
        "model": str(meta.get("preset", "unnamed")),
        "data": f"{args.dataset} {args.split}, {photos} photos ({where})",
        "frame": size + (", tight" if frame.is_tight else ", square"),
    }
