"""What a user waits for: encode, one click, segment everything, and the first mask of a process.

    python -m benchmarks.inference                       # random Swin-T weights
    python -m benchmarks.inference --checkpoint DIR --image image.jpg --threads 2

Every row runs in a process of its own, so that its peak memory is its own. Times are the
smallest of some repeats after everything is compiled; CPU seconds are given too, because
on a busy machine only they mean something. Random weights are scaled so that masks are smooth
blobs, and the threshold of the predicted IoU is put where three in ten masks pass it.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PASS_SHARE = 0.3
SHORT_SIDE, LONG_SIDE = 640, 864
ROWS = ("encode", "click", "clicks50", "auto")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--checkpoint", help="converted or trained; default: random Swin-T")
    parser.add_argument("--image", help=f"default: noise of {LONG_SIDE}x{SHORT_SIDE} pixels")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--points-per-side", type=int, default=32)
    parser.add_argument("--rows", nargs="+", default=[*ROWS, "cold"], choices=[*ROWS, "cold"])
    parser.add_argument("--run", choices=ROWS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.threads and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    if args.run:
        print(json.dumps(measure(args)))
        return
    with tempfile.TemporaryDirectory() as folder:
        args.image = args.image or str(write_noise(Path(folder) / "image.png"))
        args.checkpoint = args.checkpoint or str(write_random(Path(folder) / "random"))
        print(f"{'':<34}{'wall s':>9}{'CPU s':>9}{'peak GB':>9}")
        for name in args.rows:
            row = time_cold_start(args, folder) if name == "cold" else run_row(args, name)
            peak = f"{row['peak_gb']:9.2f}" if "peak_gb" in row else ""
            print(f"{row['what']:<34}{row['wall']:9.3f}{row['cpu']:9.3f}{peak}", flush=True)
    load = os.getloadavg()[0]
    print(f"{len(os.sched_getaffinity(0))} CPU threads, load average {load:.1f}, {args.dtype}")


def run_row(args: argparse.Namespace, name: str) -> dict:
    """Measures one row in a new process.

    Args:
        args: of the command.
        name: one of `ROWS`.

    Returns:
        See `measure`.
    """
    command = [sys.executable, "-m", "benchmarks.inference", "--run", name]
    for key in ("checkpoint", "image", "dtype", "repeats", "points_per_side"):
        command += [f"--{key.replace('_', '-')}", str(getattr(args, key))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(args: argparse.Namespace) -> dict:
    """Measures the row `args.run` in this process.

    Returns:
        `what` it is, `wall` and `cpu` seconds, `peak_gb` of the process.
    """
    import resource

    import jax
    import numpy as np

    from semsam_jax.inference.images import load_image
    from semsam_jax.inference.loading import load_model
    from semsam_jax.inference.predictor import Predictor
    from semsam_jax.inference.preprocess import fit_image
    from semsam_jax.inference.requests import Request

    model, image = load_model(args.checkpoint, dtype=args.dtype), load_image(args.image)
    height, width = image.shape[:2]
    frame = model.frame((height, width))
    size = f"{frame.resized_hw[1]}x{frame.resized_hw[0]}"
    if args.run == "encode":
        canvas = fit_image(image, frame)[None]
        wall, cpu = best(lambda: jax.block_until_ready(model.encode(canvas, [frame])), args.repeats)
        what = f"encode {size}"
    elif args.run == "auto":
        generator, num_measured = make_generator(model, image, args.points_per_side)
        found: list = []
        wall, cpu = best(lambda: found.__setitem__(slice(None), generator.generate(image)), 1)
        clicks = args.points_per_side**2
        what = f"everything, {clicks} clicks, {len(found)} masks"
        print(f"{num_measured:.0%} of the masks pass the predicted IoU", file=sys.stderr)
    else:
        predictor = Predictor(model)
        predictor.set_image(image)
        count = 1 if args.run == "click" else 50
        points = np.random.default_rng(0).uniform(0.05, 0.95, (count, 2)) * [width, height]
        requests = [Request([point]) for point in points]
        wall, cpu = best(lambda: predictor.predict_many(requests), 5 * args.repeats)
        what = f"{count} click{'s' if count > 1 else ''}, features cached"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {"what": what, "wall": wall, "cpu": cpu, "peak_gb": peak}


def make_generator(model: Any, image: Any, points_per_side: int) -> tuple[Any, float]:
    """A generator whose IoU filter lets `PASS_SHARE` of random weights' masks through.

    Args:
        model: a `LoadedModel`; trained weights keep SAM's threshold of 0.88.
        image: uint8 [h, w, 3].
        points_per_side: clicks along each side of the grid.

    Returns:
        The `MaskGenerator`, and the share of masks that pass.
    """
    import numpy as np

    from semsam_jax.inference.grid import point_grid
    from semsam_jax.inference.mask_generator import MaskGenerator
    from semsam_jax.inference.predictor import Predictor
    from semsam_jax.inference.requests import Request

    predictor = Predictor(model)
    predictor.set_image(image)
    points = point_grid(8) * np.array(image.shape[1::-1])
    found = predictor.predict_many([Request([point]) for point in points])
    scores = np.concatenate([answer.scores for answer in found])
    threshold = 0.88
    if model.meta.get("source") == "random":
        threshold = float(np.quantile(scores, 1 - PASS_SHARE))
    share = float((scores > threshold).mean())
    return MaskGenerator(model, points_per_side, pred_iou_thresh=max(0.0, threshold)), share


def time_cold_start(args: argparse.Namespace, folder: str) -> dict:
    """From the start of the command to its result on disk, with a warm compilation cache.

    Args:
        args: of the command.
        folder: for the cache and results.

    Returns:
        As `measure`, without memory.
    """
    command = [sys.executable, "-m", "semsam_jax", "segment", args.image, "--point", "300,300"]
    command += ["--checkpoint", args.checkpoint, "--dtype", args.dtype, "--out", f"{folder}/out"]
    env = os.environ | {"SEMSAM_JAX_CACHE": f"{folder}/cache"}
    wall, cpu = [], []
    for _ in range(args.repeats + 1):
        start, before = time.perf_counter(), os.times()
        subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
        after = os.times()
        wall.append(time.perf_counter() - start)
        cpu.append(sum(after[2:4]) - sum(before[2:4]))
    return {"what": "process start to first mask", "wall": min(wall[1:]), "cpu": min(cpu[1:])}


def best(run: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Smallest wall and CPU seconds of a call, after one that compiles.

    Args:
        run: what is timed.
        repeats: timed calls.
    """
    run()
    wall, cpu = [], []
    for _ in range(repeats):
        start, before = time.perf_counter(), time.process_time()
        run()
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - before)
    return min(wall), min(cpu)


def write_noise(path: Path) -> Path:
    """Writes an image of coloured noise with structure at several scales."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    total = np.zeros((SHORT_SIDE, LONG_SIDE, 3))
    for cells in (4, 16, 64):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
        total += np.asarray(noise.resize((LONG_SIDE, SHORT_SIDE), Image.Resampling.BICUBIC))
    Image.fromarray((total / 3).astype(np.uint8)).save(path)
    return path


def write_random(path: Path) -> Path:
    """Writes a checkpoint of the released Swin-T sizes with random weights."""
    import jax
    import numpy as np

    from semsam_jax.core.model_files import save_model
    from semsam_jax.models import presets
    from semsam_jax.models.semantic_sam import SemanticSAM, init_params

    config = dataclasses.replace(presets.PRESETS["swin_t"], text=None, has_generic=False)
    params = jax.jit(lambda key: init_params(SemanticSAM(config), key))(jax.random.key(0))
    params = jax.tree.map(np.array, dict(params))
    # Fresh norms let the fine levels dominate, and masks would be noise of one pixel.
    pixel_decoder = params["pixel_decoder"]
    for name, scale in (("adapter", 0.02), ("input_proj0", 0.02), ("input_proj1", 0.1)):
        pixel_decoder[name]["norm"]["scale"] *= scale
    for leaf in params["decoder"]["mask_embed"]["layers_2"].values():
        leaf *= 80  # steep edges, so that masks are stable
    meta = {
        "preset": "swin_t",
        "model_config": json.loads(presets.to_json(config)),
        "source": "random",
        "text": {"source": "none", "table": None},
        "vocabulary": {"objects": [], "parts": []},
        "level_order": [3, 2, 0, 4, 1, 5],
        "prompt_preset": "released_v1",
        "class_heads_trained": False,
    }
    save_model(path, params, meta)
    return path


if __name__ == "__main__":
    main()
