"""python -m semsam_jax export: a checkpoint as programs that need none of the model code.

    DIR/manifest.json            sizes, level order, prompt preset, list of programs
    DIR/params.npz               parameters, keys with slashes
    DIR/PLATFORM/encode_HxW.jaxexport, decode_HxW_pN.jaxexport

What the programs take and return is in `inference.programs`. They are StableHLO in the format of
`jax.export`; each platform has its own, since what is fast on one is slow on another. With
`--format onnx` there are ONNX models instead, which hold their parameters, and a page that runs
them in a browser:

    DIR/manifest.json
    DIR/onnx/encode_HxW.onnx, decode_HxW_pN.onnx
    DIR/index.html

`inference.exported` runs both.
"""

import argparse
import json
import re
from pathlib import Path

from semsam_jax.core.errors import ConfigError, PromptError
from semsam_jax.inference import arguments

ONNX = "onnx"
FORMATS = ("stablehlo", ONNX)
PAGE = "browser.html"
PREDICTED = "predicted_"
"""In front of the name of an ONNX model's output that is also that of an input."""
# Platform of `jax.export` -> kind of device that a program is written for.
PLATFORMS = {"cpu": "cpu", "cuda": "gpu", "rocm": "gpu", "tpu": "tpu"}


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the parser of `export`."""
    parser = commands.add_parser(
        "export",
        help="export a model as self-contained programs",
        description="Writes programs for the given shapes and platforms. Running them needs JAX "
        "or onnxruntime, but none of this package's model code.",
    )
    arguments.add_model_arguments(parser)
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="stablehlo",
        help="stablehlo runs with JAX; onnx runs with onnxruntime, and in a browser with the page "
        "that is written too (default: %(default)s)",
    )
    parser.add_argument(
        "--canvas", default=None, metavar="HxW,...", help="canvas sizes (default: as in training)"
    )
    parser.add_argument(
        "--prompts", default="1,16", metavar="N,...", help="prompts per call (default: %(default)s)"
    )
    parser.add_argument(
        "--platforms",
        metavar="P,...",
        help=f"for stablehlo: any of {', '.join(PLATFORMS)} (default: cpu)",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="a new folder")


def run(args: argparse.Namespace) -> int:
    """Exports the checkpoint."""
    counts = [int(part) for part in args.prompts.split(",") if part.isdigit()]
    if not counts or min(counts) < 1 or len(counts) != len(args.prompts.split(",")):
        raise PromptError(f"--prompts {args.prompts}: expected numbers such as 1,16.")
    if args.format == "onnx":
        if args.platforms:
            raise PromptError("--platforms: with --format onnx one model is for all; leave it out.")
        platforms: tuple[str, ...] = (ONNX,)
    else:
        platforms = tuple((args.platforms or "cpu").split(","))
        if not set(platforms) <= set(PLATFORMS):
            raise PromptError(
                f"--platforms {args.platforms}: expected some of {', '.join(PLATFORMS)}."
            )
    model = arguments.load_from_args(args)
    if args.canvas:
        canvases = [_parse_canvas(text) for text in args.canvas.split(",")]
    else:
        side = int(model.meta.get("image_size") or 640)
        canvases = [(side, side)]
    export_model(model, Path(args.out), canvases, counts, platforms)
    print(f"{len(platforms) * len(canvases) * (1 + len(counts))} programs in {args.out}")
    if args.format == "onnx":
        print(f"in a browser: python -m http.server --directory {args.out}")
    return 0


def export_model(
    model,
    out: Path,
    canvases: list[tuple[int, int]],
    prompt_counts: list[int],
    platforms: tuple[str, ...],
) -> Path:
    """Writes the folder described above; it appears whole or not at all.

    Args:
        model: a `LoadedModel`.
        out: folder that does not exist yet.
        canvases: height and width of each canvas, multiples of 32.
        prompt_counts: prompts in a call.
        platforms: names of `jax.export`; or `ONNX` alone.

    Raises:
        PromptError: the folder exists or cannot be written.
        ConfigError: the model cannot be written as ONNX, or `onnx` is not installed.
    """
    import shutil

    from semsam_jax.inference.loading import check_prompts

    check_prompts(model)
    is_onnx = ONNX in platforms
    if is_onnx:
        check_onnx(model)
    if out.exists():
        raise PromptError(f"--out {out}: exists already; give a new folder.")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        programs = []
        for platform in platforms:
            (partial / platform).mkdir()
            for canvas in canvases:
                programs += _write_programs(model, partial, canvas, prompt_counts, platform)
        manifest = {
            "format": 1,
            "level_order": list(model.level_order),
            "prompt_preset": model.prompt_preset,
            "guided_upsampling": model.is_guided,
            "box_margin": model.module.config.decoder.box_margin,
            "image_size": model.meta.get("image_size"),
            "platforms": list(platforms),
            "programs": programs,
        }
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=1))
        if is_onnx:
            shutil.copy(Path(__file__).with_name(PAGE), partial / "index.html")
        else:
            _write_params(model, partial / "params.npz")
        partial.rename(out)
    except OSError as error:
        raise PromptError(f"--out {out}: cannot be written ({error.strerror}).") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def check_onnx(model) -> None:
    """Raises ConfigError unless a model can be written as ONNX here."""
    import importlib.util

    import jax.numpy as jnp

    if importlib.util.find_spec("onnx") is None:
        raise ConfigError("export: onnx is not installed; run `pip install 'semsam-jax[onnx]'`.")
    if model.module.dtype != jnp.float32:
        raise ConfigError("export: --format onnx is float32; leave out --dtype.")


def _write_programs(model, folder: Path, canvas, prompt_counts, platform: str) -> list[dict]:
    import jax

    from semsam_jax.core.backend import compiling_for
    from semsam_jax.inference.programs import programs

    written = []
    with (
        compiling_for(PLATFORMS.get(platform, ONNX)),
        jax.default_matmul_precision(model.precision),
    ):
        for program in programs(model, canvas, prompt_counts):
            if platform == ONNX:
                from semsam_jax.inference.export_onnx import write_model

                file = f"{platform}/{program.name}.onnx"
                facts = write_model(program, model.params, folder / file)
            else:
                file, facts = f"{platform}/{program.name}.jaxexport", {}
                _write_stablehlo(program, model.params, folder / file, platform)
            written.append({"file": file, "platform": platform} | program.facts | facts)
    return written


def _write_stablehlo(program, params, file: Path, platform: str) -> None:
    import jax
    from jax import export

    from semsam_jax.inference.programs import shapes_of

    exporting = export.export(jax.jit(program.function), platforms=[platform])
    file.write_bytes(exporting(shapes_of(params), *program.inputs.values()).serialize())


def _write_params(model, file: Path) -> None:
    import jax
    import numpy as np
    from flax import traverse_util

    np.savez(file, **traverse_util.flatten_dict(jax.device_get(model.params), sep="/"))


def _parse_canvas(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text.strip())
    canvas = (int(match[1]), int(match[2])) if match else (0, 0)
    if min(canvas) < 32 or canvas[0] % 32 or canvas[1] % 32:
        raise PromptError(f"--canvas {text}: expected HEIGHTxWIDTH, both multiples of 32.")
    return canvas
