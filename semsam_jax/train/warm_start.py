"""The parameters that a run starts from: random, ImageNet, a text tower, or a checkpoint."""

import jax
import numpy as np

from semsam_jax.config import RunConfig
from semsam_jax.convert.imagenet import load_imagenet_params
from semsam_jax.core import checkpoint_io, lora
from semsam_jax.core.errors import CheckpointError, ConfigError
from semsam_jax.models.presets import EfficientNetLiteConfig
from semsam_jax.models.semantic_sam import SemanticSAM, init_params
from semsam_jax.models.similarity_init import align


def initial_params(run: RunConfig, model: SemanticSAM) -> dict:
    """Returns the start parameters as NumPy arrays, float32.

    Raises:
        ConfigError: weights of the wrong kind for the backbone.
        CheckpointError: a warm start whose shapes differ; all of them are listed.
        ConversionError: an unreadable weight file.
    """
    params = random_params(model, run.seed)
    choice = run.model
    if choice.backbone_weights:
        params["backbone"] = _backbone(choice.backbone_weights, model, params["backbone"])
    if choice.init == "similarity":
        params = align(params, model.config, run.seed)
    if choice.text_weights:
        from semsam_jax.convert.from_torch import load_text_tower

        params["text_encoder"] = load_text_tower(choice.text_weights, model.config)
    if choice.warm_start:
        start, _ = checkpoint_io.read_model(choice.warm_start)
        params = merge(params, start, choice.warm_start)
    return lora.add(params, choice.lora_rank, run.seed) if choice.lora_rank else params


def level_order(run: RunConfig, num_tokens: int) -> list[int]:
    """Token of level 1, 2, ... until an evaluation orders them: as the warm start had them."""
    if run.model.warm_start:
        return list(checkpoint_io.read_meta(run.model.warm_start)["level_order"])
    return list(range(num_tokens))


def random_params(model: SemanticSAM, seed: int) -> dict:
    """Random parameters of every branch, made and kept on the host."""
    # Drawing numbers once needs no optimised program: this compiles in a third of the time.
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        make = jax.jit(lambda key: init_params(model, key), compiler_options=options)
        params = make(jax.random.key(seed))
    return jax.tree.map(np.asarray, params)


def merge(params: dict, start: dict, where: str) -> dict:
    """Takes from `start` whole top-level parts that fit; parts absent there stay random.

    Raises:
        CheckpointError: a part is there but differs in structure or shapes.
    """
    problems, merged = [], dict(params)
    for top, tree in params.items():
        if top not in start:
            continue
        own, given = _flat(tree), _flat(start[top])
        problems += [f"{top}/{key}: missing" for key in sorted(own.keys() - given.keys())]
        problems += [f"{top}/{key}: unknown" for key in sorted(given.keys() - own.keys())]
        problems += [
            f"{top}/{key}: {given[key].shape}, this model {own[key].shape}"
            for key in sorted(own.keys() & given.keys())
            if own[key].shape != given[key].shape
        ]
        merged[top] = jax.tree.map(lambda x: np.asarray(x, np.float32), start[top])
    if problems:
        raise CheckpointError(
            f"model.warm_start {where}: does not fit ({len(problems)} differences): "
            f"{'; '.join(problems[:12])}{' ...' if len(problems) > 12 else ''}. Choose the preset "
            f"of the checkpoint with --config.model.preset."
        )
    return merged


def _backbone(weights: str, model: SemanticSAM, own: dict) -> dict:
    is_lite = isinstance(model.config.backbone, EfficientNetLiteConfig)
    if weights == "imagenet":
        if not is_lite:
            raise ConfigError(
                "model.backbone_weights: 'imagenet' is for preset lite; give the .pth of an "
                "ImageNet Swin, or '' for random weights."
            )
        return load_imagenet_params(model.config.backbone.variant)
    if is_lite:
        raise ConfigError(
            f"model.backbone_weights: {weights!r}; preset lite takes 'imagenet' or ''."
        )
    from semsam_jax.convert.from_torch import load_backbone

    return load_backbone(weights, model.config, own)


def _flat(tree: dict) -> dict:
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}
