"""python -m semsam_jax export: a checkpoint as programs that need none of the model code.

    DIR/manifest.json            sizes, level order, prompt preset, list of programs
    DIR/params.npz               parameters, keys with slashes
    DIR/PLATFORM/encode_HxW.jaxexport
                                 (params, image u8 [1,H,W,3], size_hw i32 [1,2]) -> pyramid
    DIR/PLATFORM/decode_HxW_pN.jaxexport
                                 (params, pyramid, boxes f32 [1,N,4], type_index i32 [1,N])
                                 -> mask_logits [1,N,k,H/4,W/4], pred_ious, boxes, mask_embed

The programs are StableHLO in the format of `jax.export`; `inference.exported` runs them. Each
platform has its own, since what is fast on one is slow on another.
"""

import argparse
import json
import re
from pathlib import Path

from semsam_jax.core.errors import PromptError
from semsam_jax.inference import arguments

# Platform of `jax.export` -> kind of device that a program is written for.
PLATFORMS = {"cpu": "cpu", "cuda": "gpu", "rocm": "gpu", "tpu": "tpu"}


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the parser of `export`."""
    parser = commands.add_parser(
        "export",
        help="export a model as self-contained programs",
        description="Writes programs for the shapes and platforms given; running them needs "
        "JAX but none of the model code.",
    )
    arguments.add_model_arguments(parser)
    parser.add_argument(
        "--canvas", default=None, metavar="HxW,...", help="canvas sizes (default: of training)"
    )
    parser.add_argument(
        "--prompts", default="1,16", metavar="N,...", help="prompts per call (%(default)s)"
    )
    parser.add_argument(
        "--platforms", default="cpu", metavar="P,...", help=f"of {', '.join(PLATFORMS)}"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="a new folder")


def run(args: argparse.Namespace) -> int:
    """Exports the checkpoint."""
    counts = [int(part) for part in args.prompts.split(",") if part.isdigit()]
    if not counts or min(counts) < 1 or len(counts) != len(args.prompts.split(",")):
        raise PromptError(f"--prompts {args.prompts}: wanted numbers such as 1,16.")
    platforms = tuple(args.platforms.split(","))
    if not set(platforms) <= set(PLATFORMS):
        raise PromptError(f"--platforms {args.platforms}: wanted some of {', '.join(PLATFORMS)}.")
    model = arguments.load_from_args(args)
    if args.canvas:
        canvases = [_parse_canvas(text) for text in args.canvas.split(",")]
    else:
        side = int(model.meta.get("image_size") or 640)
        canvases = [(side, side)]
    export_model(model, Path(args.out), canvases, counts, platforms)
    print(f"{len(platforms) * len(canvases) * (1 + len(counts))} programs in {args.out}")
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
        platforms: names of `jax.export`.
    """
    import shutil

    import jax
    import numpy as np
    from flax import traverse_util

    from semsam_jax.core.backend import compiling_for
    from semsam_jax.inference.loading import check_prompts

    check_prompts(model)
    if out.exists():
        raise PromptError(f"--out {out}: exists already; give a new folder.")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        programs = []
        for platform in platforms:
            (partial / platform).mkdir()
            kind = compiling_for(PLATFORMS[platform])
            with kind, jax.default_matmul_precision(model.precision):
                for canvas in canvases:
                    programs += _write_programs(model, partial, canvas, prompt_counts, platform)
        flat = traverse_util.flatten_dict(jax.device_get(model.params), sep="/")
        np.savez(partial / "params.npz", **flat)
        manifest = {
            "format": 1,
            "level_order": list(model.level_order),
            "prompt_preset": model.prompt_preset,
            "guided_upsampling": model.is_guided,
            "image_size": model.meta.get("image_size"),
            "platforms": list(platforms),
            "programs": programs,
        }
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=1))
        partial.rename(out)
    except OSError as error:
        raise PromptError(f"--out {out}: cannot be written ({error.strerror}).") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def _write_programs(model, folder: Path, canvas, prompt_counts, platform: str) -> list[dict]:
    import jax
    import jax.numpy as jnp
    from jax import export

    height, width = canvas
    module = model.module
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), model.params)
    image = jax.ShapeDtypeStruct((1, height, width, 3), jnp.uint8)
    size_hw = jax.ShapeDtypeStruct((1, 2), jnp.int32)

    def encode(params, image, size_hw):
        pyramid = module.apply({"params": params}, image, size_hw, method="encode_image")
        return {"levels": list(pyramid.levels), "mask_features": pyramid.mask_features}

    def decode(params, pyramid, boxes, type_index):
        from semsam_jax.core.structs import Prompts, Pyramid
        from semsam_jax.models.heads import mask_logits

        prompts = Prompts(boxes, type_index, jnp.ones(type_index.shape, bool))
        packed = Pyramid(tuple(pyramid["levels"]), pyramid["mask_features"])
        answer = module.apply({"params": params}, packed, prompts, method="decode_prompts")
        limits = None if answer.mask_limits is None else answer.mask_limits[-1]
        return {
            "mask_logits": mask_logits(answer.mask_embed[-1], packed.mask_features, limits),
            "pred_ious": answer.pred_ious[-1],
            "boxes": answer.boxes[-1],
            "mask_embed": answer.mask_embed[-1],
        }

    def write(name: str, function, *shapes) -> dict:
        exported = export.export(jax.jit(function), platforms=[platform])(*shapes)
        file = f"{platform}/{name}.jaxexport"
        (folder / file).write_bytes(exported.serialize())
        return {"file": file, "platform": platform, "canvas_hw": [height, width]}

    programs = [write(f"encode_{height}x{width}", encode, params, image, size_hw)]
    pyramid = jax.eval_shape(encode, params, image, size_hw)
    for count in prompt_counts:
        boxes = jax.ShapeDtypeStruct((1, count, 4), jnp.float32)
        types = jax.ShapeDtypeStruct((1, count), jnp.int32)
        name = f"decode_{height}x{width}_p{count}"
        programs.append(write(name, decode, params, pyramid, boxes, types) | {"num_prompts": count})
    return programs


def _parse_canvas(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text.strip())
    canvas = (int(match[1]), int(match[2])) if match else (0, 0)
    if min(canvas) < 32 or canvas[0] % 32 or canvas[1] % 32:
        raise PromptError(f"--canvas {text}: wanted HEIGHTxWIDTH, both multiples of 32.")
    return canvas
