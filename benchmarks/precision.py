"""Loss curves of bfloat16 and float32: one run twice, with the same seed and images.

    python -m benchmarks.precision --workdir DIR -- --config=configs/joint.py --config.steps=150

Everything after -- goes to `python -m semsam_jax.main`. Prints the mean loss of every window of
`log_every` steps, the one-click IoU before and after, and how far the curves lie apart. Needs
no accelerator; a CPU emulates bfloat16 and is slow at it.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

DTYPES = ("float32", "bfloat16")
SCORES = ("one_click_iou_max", "one_click_iou_oracle")


def main() -> None:
    """Trains twice and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("flags", nargs="+", help="flags of the quickstart, after --")
    args = parser.parse_args()
    curves, summaries = {}, {}
    for dtype in DTYPES:
        folder = args.workdir / dtype
        own = [f"--config.model.dtype={dtype}", f"--workdir={folder}"]
        subprocess.run([sys.executable, "-m", "semsam_jax.main", *args.flags, *own], check=True)
        curves[dtype] = losses(folder)
        summaries[dtype] = json.loads((folder / "summary.json").read_text())
    print("| steps up to | float32 | bfloat16 | apart |\n| --- | --- | --- | --- |")
    apart = []
    for step, one in curves["float32"].items():
        other = curves["bfloat16"][step]
        apart.append(abs(other - one) / one)
        print(f"| {step} | {one:.2f} | {other:.2f} | {100 * apart[-1]:.1f} % |")
    print(f"apart: mean {100 * np.mean(apart):.1f} %, largest {100 * max(apart):.1f} %")
    for score in SCORES:
        for when in ("before", "after"):
            values = [summaries[dtype][f"{score}_{when}"] for dtype in DTYPES]
            print(f"{score} {when}: {values[0]} and {values[1]}")


def losses(workdir: Path) -> dict[int, float]:
    """Returns the logged loss of a run by step."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


if __name__ == "__main__":
    main()
