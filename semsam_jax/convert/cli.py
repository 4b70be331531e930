"""python -m semsam_jax convert: weights of the original to a checkpoint, and back."""

import argparse
import dataclasses
import json
from pathlib import Path

from semsam_jax.core import checkpoint_io
from semsam_jax.core.errors import ConversionError
from semsam_jax.models import presets

# Token index of level 1..6 in the released weights (DESIGN: Levels).
RELEASED_LEVEL_ORDER = (3, 2, 0, 4, 1, 5)


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the parser of `convert`."""
    parser = commands.add_parser(
        "convert",
        help="released PyTorch weights to a checkpoint and back",
        description="Converts a .pth file of the original into a checkpoint folder. Needs no "
        "PyTorch and runs nothing that the file contains. Prints what became of every tensor; "
        "exits with 2 if the model would not be complete.",
    )
    parser.add_argument(
        "file",
        nargs="*",
        metavar="FILE",
        help=".pth file, or checkpoint folder with --to-torch; of several files that hold parts of "
        "one model, the last that has a tensor counts",
    )
    parser.add_argument("--out", required=True, metavar="PATH", help="folder, or file to write")
    parser.add_argument(
        "--model-config",
        metavar="FILE.json",
        help="sizes of the model, for files that no preset describes",
    )
    parser.add_argument(
        "--to-torch", action="store_true", help="FILE is a checkpoint folder; write a .pth file"
    )
    parser.add_argument(
        "--backbone", metavar="FILE.pth", help="take the backbone from an ImageNet Swin file"
    )
    parser.add_argument(
        "--text", metavar="FILE.pth", help="take the text tower from a CLIP-layout file"
    )
    parser.add_argument(
        "--preset",
        choices=("tiny", "swin_t", "swin_l"),
        help="without FILE: the model around --backbone and --text, otherwise random; a start "
        "for training",
    )
    parser.add_argument(
        "--allow-unexpected",
        action="store_true",
        help="accept tensors that the model does not know; they are dropped",
    )


def run(args: argparse.Namespace) -> int:
    """Converts one file; returns the exit code."""
    if args.to_torch:
        _write_torch(args)
    elif args.file:
        _convert(args)
    else:
        _start(args)
    return 0


def _convert(args: argparse.Namespace) -> None:
    from semsam_jax.convert.detect import detect_config, load_model_config
    from semsam_jax.convert.from_torch import examine, from_torch
    from semsam_jax.convert.torch_reader import read_state_dict, unwrap

    name = " + ".join(args.file)
    where, state = f"checkpoint {name}", {}
    for file in args.file:
        state |= unwrap(read_state_dict(file))
    if args.model_config:
        preset, config = "custom", load_model_config(args.model_config)
        has_generic = "sem_seg_head.predictor.enc_output.weight" in state
        config = dataclasses.replace(config, has_generic=config.has_generic or has_generic)
    else:
        preset, config = detect_config(state, where)
    print(f"{name}: preset {preset}, {_branches(config)}")
    print(examine(state, config).table())
    conversion = from_torch(state, config, allow_unexpected=args.allow_unexpected, where=where)
    params, config = _replace_parts(args, dict(conversion.params), config)
    num_tokens = config.decoder.num_tokens
    is_released = num_tokens == len(RELEASED_LEVEL_ORDER)
    meta = _meta(preset, config, " + ".join(Path(file).name for file in args.file))
    meta |= {
        "level_order": list(RELEASED_LEVEL_ORDER if is_released else range(num_tokens)),
        "prompt_preset": "released_v1",
        # The original trains them only together with its own text tower.
        "class_heads_trained": "text_encoder" in conversion.params or config.has_generic,
    }
    step = checkpoint_io.write_model(args.out, params, meta)
    print(f"wrote {step}")


def _start(args: argparse.Namespace) -> None:
    """A fresh model with a pretrained backbone or text tower, to train from."""
    if not args.preset or not (args.backbone or args.text):
        raise ConversionError(
            "convert: no FILE given; wanted a .pth file of the original, or --preset with "
            "--backbone or --text."
        )
    import jax
    import numpy as np

    from semsam_jax.models.semantic_sam import SemanticSAM, init_params

    config = presets.model_config(args.preset)
    if not args.text:
        config = dataclasses.replace(config, text=None)
    model = SemanticSAM(config=config)
    params = jax.jit(lambda key: init_params(model, key))(jax.random.key(0))
    params, config = _replace_parts(args, jax.tree.map(np.asarray, dict(params)), config)
    meta = _meta(args.preset, config, "random")
    meta |= {
        "level_order": list(range(config.decoder.num_tokens)),
        "prompt_preset": "own",
        "class_heads_trained": False,
    }
    step = checkpoint_io.write_model(args.out, params, meta)
    print(f"wrote {step}")


def _write_torch(args: argparse.Namespace) -> None:
    from semsam_jax.convert.to_torch import to_torch
    from semsam_jax.convert.torch_writer import write_state_dict

    if len(args.file) != 1:
        raise ConversionError(
            f"convert --to-torch: got {len(args.file)} checkpoint folders; wanted one."
        )
    params, meta = checkpoint_io.read_model(args.file[0])
    config = presets.from_json(meta["model_config"])
    state = to_torch(params, config, where=f"checkpoint {args.file[0]}")
    write_state_dict(args.out, state.tensors, aliases=state.aliases, wrapper="model")
    total = len(state.tensors) + len(state.aliases)
    print(f"wrote {args.out}: {total} names, {len(state.aliases)} of them aliases")


def _replace_parts(
    args: argparse.Namespace, params: dict, config: presets.ModelConfig
) -> tuple[dict, presets.ModelConfig]:
    from semsam_jax.convert.detect import text_config_of
    from semsam_jax.convert.from_torch import convert_text_tower, load_backbone, read_text_tower

    if args.backbone:
        params["backbone"] = load_backbone(args.backbone, config, params["backbone"])
        print(f"backbone from {args.backbone}")
    if args.text:
        where = f"text tower {args.text}"
        state = read_text_tower(args.text)
        if config.text is None:
            config = dataclasses.replace(config, text=text_config_of(state, where))
        params["text_encoder"] = convert_text_tower(state, config, where)
        if "logit_scale" in state:
            scale = state["logit_scale"].reshape(()).astype("float32")
            params["decoder"] = params["decoder"] | {"logit_scale": scale}
        print(f"text tower from {args.text}")
    return params, config


def _meta(preset: str, config: presets.ModelConfig, source: str) -> dict:
    has_text = config.text is not None
    text = {"source": "none", "table": None}
    if has_text:
        text = {"source": "encoder", "table": None, "context_length": config.text.context_length}
    return {
        "preset": preset,
        "model_config": json.loads(presets.to_json(config)),
        "source": source,
        "text": text,
        "vocabulary": {"objects": [], "parts": []},
    }


def _branches(config: presets.ModelConfig) -> str:
    text = "a text tower" if config.text is not None else "no text tower"
    return f"{text}, {'a' if config.has_generic else 'no'} generic branch"
