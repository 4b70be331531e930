r"""What single rules of a recipe are worth: the same run with each of them taken back, by seed.

    python -m benchmarks.ablation --workdir DIR --seeds 0 1 --start runs/lite_finish \
        --forget decoder/iou_head -- --config=configs/joint.py:scratch --config.data.root=DATA \
        --config.data.custom=FOLDER --config.data.datasets.custom=4 \
        --config.data.generic_datasets.custom=4 --config.eval_dataset=custom \
        --config.eval_images=100

Everything after -- goes to `python -m semsam_jax.main`; the data decides what can be seen: FOLDER
needs objects with named parts (categories `whole:part`), DATA the same objects without. With
--start all variants begin at a checkpoint whose class heads were never trained; --forget gives
the parts of it that a variant would inherit from its rival random values again.
A run that is there is not repeated. Prints the mean over seeds and, in brackets, half their range.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from semsam_jax.core.checkpoint_io import read_model
from semsam_jax.core.model_files import save_model
from semsam_jax.models.presets import from_json
from semsam_jax.models.semantic_sam import SemanticSAM
from semsam_jax.train.warm_start import random_params

VARIANTS: dict[str, dict[str, object]] = {
    "as it is": {},
    "object head learns from parts too": {"model.part_owner": False},
    "every class a negative everywhere": {"data.verified_classes": False},
    "class scores start at exp(1)": {"model.logit_scale": 1.0},
    "IoU of the best mask is predicted": {"loss.iou_target": "best"},
    "all four taken back": {
        "model.part_owner": False,
        "data.verified_classes": False,
        "model.logit_scale": 1.0,
        "loss.iou_target": "best",
    },
}
"""Name -> the keys that take a rule back."""

COLUMNS = {
    "IoU, chosen": "eval/iou_max",
    "IoU, best of six": "eval/iou_oracle",
    "object mask AP": "eval/generic/mask_ap/ap",
    "object AP50": "eval/generic/mask_ap/ap50",
    "PQ": "eval/generic/panoptic/pq",
    "name accuracy": "eval/names/accuracy",
    "part mask AP": "eval/part/part_mask_ap/ap",
    "part AP50": "eval/part/part_mask_ap/ap50",
}


def main() -> None:
    """Trains what is missing and prints the table of variants."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--suites", default="one_click,generic,names,part", help="(%(default)s)")
    parser.add_argument("--start", help="checkpoint that all variants begin at; default: random")
    parser.add_argument("--forget", nargs="*", default=[], metavar="PART", help="as iou_head")
    parser.add_argument("flags", nargs="+", help="flags of the quickstart, after --")
    args = parser.parse_args()
    if args.start:
        start = args.workdir / "start"
        if not start.exists():
            forget(args.start, args.forget, start)
        args.flags += [f"--config.model.warm_start={start}", "--config.model.backbone_weights="]
    found = {}
    for number, (name, values) in enumerate(VARIANTS.items()):
        if name not in args.variants:
            continue
        found[name] = []
        for seed in args.seeds:
            folder = args.workdir / f"{number}-seed{seed}"
            if not (folder / "summary.json").exists():
                run(folder, seed, values, args.suites, args.flags)
            found[name].append(scores(folder))
    print(table(found))


def forget(checkpoint: str, parts: list[str], folder: Path) -> None:
    """Writes a copy of a checkpoint in which some parts are random again."""
    params, meta = read_model(checkpoint)
    fresh = random_params(SemanticSAM(from_json(meta["model_config"])), 0)
    for part in parts:
        *path, last = part.split("/")
        old, new = params, fresh
        for key in path:
            old, new = old[key], new[key]
        old[last] = new[last]
    save_model(folder, params, meta)


def run(folder: Path, seed: int, values: dict[str, object], suites: str, flags: list[str]) -> None:
    """Trains one variant with one seed.

    Args:
        folder: of the run.
        seed: of weights, order and augmentation.
        values: configuration keys that differ from `flags`.
        suites: evaluated at the end, joined by commas.
        flags: of `semsam_jax.main`.
    """
    names = tuple(suites.split(","))
    own = {"seed": seed, "eval_suites": names, **values}
    flags = [*flags, f"--workdir={folder}", *(f"--config.{k}={v}" for k, v in own.items())]
    subprocess.run([sys.executable, "-m", "semsam_jax.main", *flags], check=True)


def scores(folder: Path) -> dict[str, float]:
    """The figures of a run's last evaluation, by column; scores are fractions of one."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = next(row for row in reversed(rows) if any(key.startswith("eval/") for key in row))
    return {name: last[key] for name, key in COLUMNS.items() if key in last}


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """Markdown table of variants by figures: mean over seeds, half their range in brackets.

    Args:
        found: `scores` of each seed of each variant; a figure that no run has is left out.
    """
    columns = [c for c in COLUMNS if any(c in one for runs in found.values() for one in runs)]
    lines = ["| variant | " + " | ".join(columns) + " |", "| --- " * (1 + len(columns)) + "|"]
    for name, runs in found.items():
        cells = []
        for column in columns:
            values = [one[column] for one in runs if column in one]
            spread = (max(values) - min(values)) / 2 if values else 0.0
            mean = sum(values) / len(values) if values else float("nan")
            cells.append(f"{mean:.3g} ({spread:.2g})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
