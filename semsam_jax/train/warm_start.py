"""Initial parameters of a run: pretrained parts, a checkpoint, or random ones.

A run without pretrained weights for a part that trains at a tenth of the rate must say `random`,
and every run logs the origin of each part. Random parameters are created on the mesh, so that no
host or device holds all parameters of a run that shards them.
"""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from semsam_jax.config import RANDOM, REQUIRED, RunConfig
from semsam_jax.convert import zoo
from semsam_jax.convert.imagenet import load_imagenet_params
from semsam_jax.core import checkpoint_io, lora
from semsam_jax.core.errors import CheckpointError, ConfigError
from semsam_jax.models.presets import EfficientNetLiteConfig
from semsam_jax.models.semantic_sam import SemanticSAM, init_params
from semsam_jax.models.similarity_init import align
from semsam_jax.parallel.sharding import state_shardings
from semsam_jax.train.optimizer import check_frozen, is_frozen
from semsam_jax.train.report import log_info
from semsam_jax.train.state import by_name, place
from semsam_jax.train.text import initial_rows, taught_names

_SWIN = "https://github.com/SwinTransformer/storage/releases/download/v1.0.0/"
PRETRAINED = {
    "swin_t": f"{_SWIN}swin_tiny_patch4_window7_224.pth",
    "swin_l": f"{_SWIN}swin_large_patch4_window12_384_22k.pth",
}
"""ImageNet weights of the presets' backbones that the authors start from."""

TEXT_TOWER = "https://huggingface.co/openai/clip-vit-base-patch32"
"""A text tower of the right size: CLIP's of ViT-B/32."""

# Random numbers are drawn once, and an unoptimised program compiles in a third of the time.
_QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def check_start(run: RunConfig) -> None:
    """Checks that a fresh run states where its pretrained parts come from.

    Raises:
        ConfigError: a recipe without the checkpoint that it continues from, a Swin backbone or a
            text tower that would silently start at random, or a seventh token that would stay so.
    """
    choice, preset = run.model, run.model.preset
    if choice.warm_start == REQUIRED:
        raise ConfigError(
            "model.warm_start: this recipe continues from the result of the stage before it, which "
            "the head of its file names; give it with --config.model.warm_start=DIR, or start "
            "without it by --config.model.warm_start=random."
        )
    _check_token(run)
    if choice.warm_start or preset not in PRETRAINED:
        return
    if not choice.backbone_weights:
        raise ConfigError(
            f"model.backbone_weights: {preset} starts from ImageNet weights; give the file with "
            f"--config.model.backbone_weights=FILE ({PRETRAINED[preset]}), or write random to "
            f"train the backbone from nothing."
        )
    if run.text.source == "encoder" and not choice.text_weights:
        raise _no_tower()


def _check_token(run: RunConfig) -> None:
    """Refuses a seventh token that nothing has trained and nothing trains, which would answer."""
    is_learned = run.loss.granularity and run.loss.interactive and run.data.interactive_batch
    is_learned = is_learned and not is_frozen("granularity_token", run.optimizer.frozen)
    if is_learned or not run.model.granularity_token:
        return
    decoder = ((start_meta(run) or {}).get("model_config") or {}).get("decoder") or {}
    if not decoder.get("granularity_token"):
        raise ConfigError(
            "model.granularity_token: nothing trains this token, and the run does not start from a "
            "model that has it; set loss.granularity above 0 (with data.interactive_batch and "
            "loss.interactive above 0, and the token not in optimizer.frozen), or "
            "model.granularity_token=False."
        )


def start_meta(run: RunConfig) -> dict | None:
    """What the warm start of a run says about itself; None without one."""
    start = run.model.warm_start
    return checkpoint_io.read_meta(zoo.resolve(start)) if start else None


def initial_params(
    run: RunConfig, model: SemanticSAM, mesh: Mesh, learned: Sequence[str] = ()
) -> dict:
    """Returns the initial parameters on the mesh, float32, and reports their origins.

    Args:
        run: the run.
        model: its network.
        mesh: where they lie.
        learned: `train.text.learned_names`.

    Raises:
        ConfigError: weights of the wrong kind for the backbone, a text tower that is missing or
            given twice.
        CheckpointError: a warm start whose shapes differ; all of them are listed.
        ConversionError: an unreadable weight file.
    """
    shapes = parameter_shapes(run, model)
    given = given_params(run, model, shapes, learned)
    shardings = state_shardings(mesh, shapes)
    missing = [part for part in shapes if part not in given]
    params = place(given, {part: shardings[part] for part in given})
    if missing:
        is_cpu = mesh.devices.flat[0].platform == "cpu"
        make = jax.jit(
            lambda: _random(model, run.seed, missing),
            out_shardings={part: shardings[part] for part in missing},
            compiler_options=_QUICKLY if is_cpu else None,
        )
        params |= make()
    return {part: params[part] for part in shapes}


def parameter_shapes(run: RunConfig, model: SemanticSAM) -> dict:
    """Shapes and dtypes of all parameters of a run, low-rank updates included."""
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    check_frozen(shapes, run.optimizer.frozen)
    if not run.model.lora_rank:
        return dict(shapes)
    return lora.add(shapes, run.model.lora_rank, run.seed, empty=jax.ShapeDtypeStruct)


def given_params(
    run: RunConfig, model: SemanticSAM, shapes: Mapping, learned: Sequence[str] = ()
) -> dict:
    """The parts from files, NumPy float32, and their origins; others start at random."""
    origins = {part: "random" for part in shapes if part != lora.GROUP}
    choice, scale, given = run.model, None, {}
    if choice.init == "similarity":
        given = random_params(model, run.seed)
    if choice.backbone_weights not in ("", RANDOM):
        given["backbone"] = _backbone(choice.backbone_weights, model, run.seed)
        origins["backbone"] = choice.backbone_weights
    if choice.init == "similarity":
        given = align(given, model.config, run.seed)
    if choice.text_weights not in ("", RANDOM):
        from semsam_jax.convert.from_torch import (
            convert_text_tower,
            read_text_tower,
            text_logit_scale,
        )

        state, where = read_text_tower(choice.text_weights), f"text tower {choice.text_weights}"
        given["text_encoder"] = convert_text_tower(state, model.config, where)
        origins["text_encoder"], scale = choice.text_weights, text_logit_scale(state)
    notes, start, meta = [], None, None
    if choice.warm_start:
        start, meta = checkpoint_io.read_model(zoo.resolve(choice.warm_start))
    if learned:
        given["learned_names"] = {"rows": initial_rows(run, learned, meta, start)}
        new = [name for name in learned if name not in taught_names(run, meta)]
        origins["learned_names"] = "the mean name" if new else choice.warm_start
        if new:
            notes.append(f"names without an embedding, learned: {', '.join(new)}")
    lost = ((meta or {}).get("text") or {}).get("learned") or ()
    if run.text.source == "table" and len(lost) > len(taught_names(run, meta)):
        table = meta["text"].get("table") or "the one of this package"
        notes.append(f"left out, learned next to another table ({table}): {', '.join(lost)}")
    if start is not None:
        start = _known_parts(run, start, meta)
        if others := sorted(start.keys() - origins.keys()):
            notes.append(f"left out, not in this model: {', '.join(others)}")
        taken = origins.keys() & start.keys()
        merged = merge(shapes, start, choice.warm_start)
        if "backbone" in taken and choice.backbone_weights not in ("", RANDOM):
            notes.append(
                f"not used: model.backbone_weights {choice.backbone_weights}, because "
                f"{choice.warm_start} brings its own backbone"
            )
        given |= {part: merged[part] for part in taken}
        origins |= dict.fromkeys(taken, choice.warm_start)
        if meta.get("class_heads_trained"):
            scale = None  # those have a trained scale
        else:
            notes.append(f"the class heads in {choice.warm_start} were never trained")
            if "decoder" in taken:
                own_scale = np.float32(model.config.decoder.logit_scale)
                given["decoder"] = {**given["decoder"], "logit_scale": own_scale}
    if scale is not None:
        if "decoder" not in given:
            given["decoder"] = random_params(model, run.seed, ["decoder"])["decoder"]
        given["decoder"] = {**given["decoder"], "logit_scale": scale}
        notes.append(f"the scale of the class scores, exp({scale:.2f}), from {choice.text_weights}")
    if choice.lora_rank:
        given[lora.GROUP] = lora.add(shapes, choice.lora_rank, run.seed)[lora.GROUP]
    log_origins(origins, notes)
    return given


def log_origins(origins: Mapping[str, str], notes: list[str]) -> None:
    """Prints the origin of each part of the parameters."""
    for origin in dict.fromkeys(origins.values()):
        parts = ", ".join(part for part, own in origins.items() if own == origin)
        source = "drawn at random" if origin == "random" else f"from {origin}"
        log_info(f"initial parameters {source}: {parts}")
    for note in notes:
        log_info(f"initial parameters: {note}")


def _known_parts(run: RunConfig, start: dict, meta: Mapping) -> dict:
    """Drops a text tower that its checkpoint never used, which is random."""
    choice = run.model
    start = {part: tree for part, tree in start.items() if part != "learned_names"}
    has_tower = "text_encoder" in start and (meta.get("text") or {}).get("source") == "encoder"
    if has_tower and choice.text_weights not in ("", RANDOM):
        raise ConfigError(
            f"model.text_weights: {choice.warm_start} brings its own text tower, which its class "
            f"heads are used to; leave text_weights empty."
        )
    if has_tower:
        return start
    if run.text.source == "encoder" and not choice.text_weights and choice.preset in PRETRAINED:
        raise _no_tower()
    return {part: tree for part, tree in start.items() if part != "text_encoder"}


def _no_tower() -> ConfigError:
    return ConfigError(
        f"model.text_weights: class names need a pretrained text tower; give CLIP's with "
        f"--config.model.text_weights=FILE (model.safetensors of {TEXT_TOWER}), or write random to "
        f"train it from nothing."
    )


def random_params(model: SemanticSAM, seed: int, parts: Sequence[str] | None = None) -> dict:
    """Random parameters of some parts (None: of all) on the host."""
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        params = jax.jit(lambda: _random(model, seed, parts), compiler_options=_QUICKLY)()
    return jax.tree.map(np.asarray, params)


def _random(model: SemanticSAM, seed: int, parts: Sequence[str] | None) -> dict:
    params = init_params(model, jax.random.key(seed))
    return dict(params) if parts is None else {part: params[part] for part in parts}


def merge(params: Mapping, start: dict, where: str) -> dict:
    """Takes whole top-level parts from `start`; parts absent there are kept.

    Args:
        params: parameters of the model, or their shapes.
        start: NumPy parameters.
        where: name of the start in messages.

    Raises:
        CheckpointError: a part is there but differs in structure or shapes.
    """
    problems, merged = [], dict(params)
    start = _with_pooled(params, _with_owner(params, start))
    for top, tree in params.items():
        if top not in start:
            continue
        own, given = by_name(tree), by_name(start[top])
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


def _with_pooled(params: Mapping, start: dict) -> dict:
    """Gives a decoder whose names looked at tokens alone the maps of the pooled features: zero."""
    own, given = params.get("decoder", {}), start.get("decoder", {})
    added = {
        key: np.zeros(own[key].shape, np.float32)
        for key in own
        if key.endswith("_pooled_embed") and key not in given
    }
    return {**start, "decoder": {**given, **added}} if given and added else start


def _with_owner(params: Mapping, start: dict) -> dict:
    """Initialises missing owner projections with the object projections, which predicted owners so
    far; those that the model lacks are left out.
    """
    own, given = params.get("decoder", {}), start.get("decoder", {})
    owners = {"owner_embed": "object_embed", "owner_pooled_embed": "object_pooled_embed"}
    decoder = {k: v for k, v in given.items() if k not in owners or k in own}
    if "owner_embed" not in given:
        decoder |= {k: given[of] for k, of in owners.items() if k in own and of in given}
    return {**start, "decoder": decoder} if given else start


def _backbone(weights: str, model: SemanticSAM, seed: int) -> dict:
    is_lite = isinstance(model.config.backbone, EfficientNetLiteConfig)
    if weights == "imagenet":
        if not is_lite:
            raise ConfigError(
                "model.backbone_weights: 'imagenet' is for preset lite; give the file of an "
                "ImageNet Swin, or random."
            )
        return load_imagenet_params(model.config.backbone.variant)
    if is_lite:
        raise ConfigError(
            f"model.backbone_weights: {weights!r}; preset lite takes imagenet or random."
        )
    from semsam_jax.convert.from_torch import load_backbone

    # Norms that an ImageNet file lacks keep their initial values.
    fresh = random_params(model, seed, ["backbone"])["backbone"]
    return load_backbone(weights, model.config, fresh)
