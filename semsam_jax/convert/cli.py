"""python -m semsam_jax convert: convert weights of the original, and back."""

import argparse
import dataclasses
import sys

from semsam_jax.core import checkpoint_io, model_files
from semsam_jax.core.errors import ConversionError
from semsam_jax.core.paths import as_path
from semsam_jax.models import presets

_OPTIONS = (
    "model_config",
    "dtype",
    "image_size",
    "backbone",
    "text",
    "preset",
    "allow_unexpected",
    "allow_nonfinite",
    "entry",
)
"""Options that some conversions do not use."""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the parser of `convert`."""
    parser = commands.add_parser(
        "convert",
        help="convert released PyTorch weights to this format and back",
        description="Converts a .pth or .safetensors file of the original, or a training run, into "
        "a folder with model.safetensors and config.json. Needs no PyTorch and executes no code "
        "from the file. "
        "Reports every tensor; exits with code 2 if the model would be incomplete.",
    )
    parser.add_argument(
        "file",
        nargs="*",
        metavar="FILE",
        help=".pth or .safetensors file, or folder of a training run or model, which takes --dtype "
        "and --image-size only; for a model split over several files give all of them (if a tensor "
        "occurs twice, the last file wins)",
    )
    parser.add_argument("--out", required=True, metavar="PATH", help="folder, or file to write")
    parser.add_argument(
        "--model-config",
        metavar="FILE.json",
        help="model sizes of a file that matches no preset",
    )
    parser.add_argument(
        "--dtype",
        choices=tuple(model_files.STORED_DTYPES),
        help="storage type of the weights (default: float32)",
    )
    parser.add_argument(
        "--image-size",
        type=int,
        metavar="PX",
        help="side of the canvas for inference, a multiple of 32 (default: as in training); a "
        "larger one finds smaller masks and takes longer; not for weights of the original, which "
        "take --size at inference",
    )
    parser.add_argument(
        "--to-torch",
        action="store_true",
        help="convert the model folder FILE to a .pth file; takes no option but --out",
    )
    parser.add_argument(
        "--backbone", metavar="FILE", help="take the backbone from an ImageNet Swin file"
    )
    parser.add_argument(
        "--text", metavar="FILE", help="take the text tower from a CLIP-layout file"
    )
    parser.add_argument(
        "--preset",
        choices=("tiny", "swin_t", "swin_l"),
        help="without FILE: create this model for training, with --backbone and --text and "
        "otherwise random weights",
    )
    parser.add_argument(
        "--allow-unexpected",
        action="store_true",
        default=None,
        help="ignore tensors that the model does not have",
    )
    parser.add_argument(
        "--allow-nonfinite",
        action="store_true",
        default=None,
        help="accept NaN and infinity in the weights; the result can be inspected or used for "
        "training, but not for inference",
    )
    parser.add_argument(
        "--entry",
        metavar="NAME",
        help="entry of the file, or prefix of its names, to use if there are several, such as "
        "model_ema",
    )


def run(args: argparse.Namespace) -> int:
    """Converts one file; returns the exit code."""
    if args.to_torch:
        _write_torch(args)
    elif len(args.file) == 1 and as_path(args.file[0]).is_dir():
        _refuse_others(args, "for a model folder", "dtype", "image_size")
        _save(args, *checkpoint_io.read_model(args.file[0]))
    elif args.file:
        _refuse_others(args, "for a file", *(name for name in _OPTIONS if name != "preset"))
        _convert(args)
    else:
        _start(args)
    return 0


def _refuse_others(args: argparse.Namespace, case: str, *used: str) -> None:
    """Raises ConversionError if an option is given that is not used in this case."""
    given = [name for name in _OPTIONS if getattr(args, name) is not None]
    idle = [name for name in given if name not in used]
    if idle:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in idle)
        them = "it" if len(idle) == 1 else "them"
        raise ConversionError(f"convert: {flags}: no effect {case}; leave {them} out.")


def _convert(args: argparse.Namespace) -> None:
    from semsam_jax.convert.released import make_meta, read_released

    found = read_released(
        args.file,
        args.model_config,
        allow_unexpected=bool(args.allow_unexpected),
        allow_nonfinite=bool(args.allow_nonfinite),
        entry=args.entry,
        tell=print,
    )
    params, config = _replace_parts(args, found.params, found.config)
    meta = found.meta | make_meta(found.meta["preset"], config, found.meta["source"])
    _save(args, params, meta)


def _save(args: argparse.Namespace, params: dict, meta: dict) -> None:
    if args.image_size is not None:
        if args.image_size < 32 or args.image_size % 32:
            raise ConversionError(
                f"convert: --image-size {args.image_size}; expected a multiple of 32, such as 384."
            )
        if meta.get("prompt_preset") == "released_v1":
            raise ConversionError(
                "convert: --image-size: no effect on weights of the original, which see the short "
                "side at 640; leave it out, and give --size to the command that uses them."
            )
        meta = {**meta, "image_size": args.image_size}
    dtype = args.dtype or "float32"
    folder = model_files.save_model(args.out, params, meta, dtype=dtype)
    print(f"wrote {folder / model_files.WEIGHTS} ({dtype}) and {model_files.CONFIG}")


def _start(args: argparse.Namespace) -> None:
    """A new model with a pretrained backbone or text tower, to train from."""
    if not args.preset or not (args.backbone or args.text):
        raise ConversionError(
            "convert: no FILE given; expected a .pth file of the original, or --preset with "
            "--backbone or --text."
        )
    used = ("preset", "backbone", "text", "dtype", "image_size")
    _refuse_others(args, "without FILE", *used)
    import jax
    import numpy as np

    from semsam_jax.convert.released import make_meta
    from semsam_jax.models.semantic_sam import SemanticSAM, init_params

    config = presets.model_config(args.preset)
    if not args.text:
        config = dataclasses.replace(config, text=None)
    model = SemanticSAM(config=config)
    params = jax.jit(lambda key: init_params(model, key))(jax.random.key(0))
    params, config = _replace_parts(args, jax.tree.map(np.asarray, dict(params)), config)
    meta = make_meta(args.preset, config, "random")
    meta |= {
        "level_order": list(range(config.decoder.num_tokens)),
        "prompt_preset": "default",
        "class_heads_trained": False,
    }
    _save(args, params, meta)


def _write_torch(args: argparse.Namespace) -> None:
    from semsam_jax.convert.released import RELEASED_LEVEL_ORDER
    from semsam_jax.convert.to_torch import to_torch
    from semsam_jax.convert.torch_writer import write_state_dict

    if len(args.file) != 1:
        raise ConversionError(
            f"convert --to-torch: got {len(args.file)} checkpoint folders; expected one."
        )
    _refuse_others(args, "with --to-torch")
    if as_path(args.out).exists():
        raise ConversionError(f"convert: {args.out} exists already; choose another --out.")
    params, meta = checkpoint_io.read_model(args.file[0])
    config = presets.from_json(meta["model_config"])
    state = to_torch(params, config, where=f"checkpoint {args.file[0]}")
    write_state_dict(args.out, state.tensors, aliases=state.aliases, wrapper="model")
    total = len(state.tensors) + len(state.aliases)
    print(f"wrote {args.out}: {total} names, {len(state.aliases)} of them aliases")
    released = {"prompt_preset": "released_v1", "level_order": list(RELEASED_LEVEL_ORDER)}
    lost = [f"{key} {meta[key]}" for key in released if meta[key] != released[key]]
    if lost:
        print(
            f"not in it: {', '.join(lost)}; what reads it as weights of the original places clicks "
            f"and orders levels as in the release.",
            file=sys.stderr,
        )


def _replace_parts(
    args: argparse.Namespace, params: dict, config: presets.ModelConfig
) -> tuple[dict, presets.ModelConfig]:
    from semsam_jax.convert.detect import text_config_of
    from semsam_jax.convert.from_torch import (
        convert_text_tower,
        load_backbone,
        read_text_tower,
        text_logit_scale,
    )

    if args.backbone:
        params["backbone"] = load_backbone(args.backbone, config, params["backbone"])
        print(f"backbone from {args.backbone}")
    if args.text:
        where = f"text tower {args.text}"
        state = read_text_tower(args.text)
        if config.text is None:
            config = dataclasses.replace(config, text=text_config_of(state, where))
        params["text_encoder"] = convert_text_tower(state, config, where)
        scale = text_logit_scale(state)
        if scale is not None:
            params["decoder"] = params["decoder"] | {"logit_scale": scale}
        print(f"text tower from {args.text}")
    return params, config
