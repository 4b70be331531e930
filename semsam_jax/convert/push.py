"""semsam push: a model to a Hugging Face repository, with config, weights and a model card."""

import argparse


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the parser of `push`."""
    parser = commands.add_parser(
        "push",
        help="upload a model to a Hugging Face repository",
        description="Writes config.json, model.safetensors and a model card to a repository, from "
        "which `hf://OWNER/NAME` loads it anywhere. Needs the extra [hub] and a token (`hf auth "
        "login` or HF_TOKEN).",
    )
    parser.add_argument("folder", metavar="DIR", help="folder of a model, or of a training run")
    parser.add_argument("name", metavar="hf://OWNER/NAME", help="created if it does not exist")
    parser.add_argument(
        "--license",
        required=True,
        metavar="ID",
        help="licence of the weights, such as apache-2.0 or cc-by-nc-4.0",
    )
    parser.add_argument("--private", action="store_true", help="create the repository as private")


def run(args: argparse.Namespace) -> int:
    """Uploads the model; returns the exit code."""
    from semsam_jax.convert.zoo import push

    print(push(args.folder, args.name, licence=args.license, private=args.private))
    return 0
