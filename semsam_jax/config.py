"""The config dies at the door: ConfigDict in, frozen dataclasses out, all checks here.

`main` and the command line call `build`; nothing below them sees a ConfigDict. Every key
of a config file is a field here; an unknown key is an error that names the nearest one.
"""

import dataclasses
import difflib
import typing
from collections.abc import Mapping

from ml_collections import ConfigDict

from semsam_jax.core.errors import ConfigError
from semsam_jax.models import presets
from semsam_jax.models.layers import REMAT_POLICIES


@dataclasses.dataclass(frozen=True)
class ModelChoice:
    """Which network, and in which precision.

    Attributes:
        preset: key of `models.presets.PRESETS`.
        dtype: compute dtype, "float32" or "bfloat16"; parameters stay float32.
        remat: what a layer of a stack keeps for the backward pass: "none" recomputed (all
            kept), "dots" (the results of linear layers) or "full" (only its input).
        warm_start: checkpoint folder whose parameters start the run, "" for none.
        backbone_weights: "imagenet" (lite: from its package), a .pth of an ImageNet Swin,
            or "" for random.
        text_weights: .pth of a CLIP-layout text tower, or "".
    """

    preset: str = "lite"
    dtype: str = "float32"
    remat: str = "none"
    warm_start: str = ""
    backbone_weights: str = ""
    text_weights: str = ""


@dataclasses.dataclass(frozen=True)
class DataChoice:
    """What the run learns from.

    Attributes:
        root: folder that holds one sub-folder per dataset; "" means the embedded sample.
        datasets: share of each dataset within a granularity; 0 leaves it out.
        granularity: share of each view kind (any, object, part) of the interactive stream.
        generic_datasets: share of each dataset in the generic stream.
        interactive_batch, generic_batch: rows of a global batch.
        image_size: side of the square canvas in pixels.
        mask_stride: stride at which ground-truth masks travel.
        max_instances, num_prompts: paddings of a row.
        box_share: share of the prompts that are boxes.
        hierarchy: whether labelled clicks also target the wholes of a part.
        granularity_balance: share of prompts drawn evenly over mask sizes.
        scale_jitter: (low, high) of the large-scale jitter for labelled data.
        sa1b_jitter: (low, high) of the scale jitter for SA-1B.
        num_workers: input processes; 0 reads in threads of the main process.
    """

    root: str = ""
    datasets: Mapping[str, float] = dataclasses.field(default_factory=dict)
    granularity: Mapping[str, float] = dataclasses.field(default_factory=dict)
    generic_datasets: Mapping[str, float] = dataclasses.field(default_factory=dict)
    interactive_batch: int = 8
    generic_batch: int = 4
    image_size: int = 1024
    mask_stride: int = 1
    max_instances: int = 100
    num_prompts: int = 60
    box_share: float = 0.25
    hierarchy: bool = False
    granularity_balance: float = 0.0
    scale_jitter: tuple[float, float] = (0.1, 2.0)
    sa1b_jitter: tuple[float, float] = (0.99, 1.01)
    num_workers: int = 0


@dataclasses.dataclass(frozen=True)
class TextChoice:
    """Where class names get their embeddings.

    Attributes:
        source: "table" (stored CLIP embeddings, frozen) or "encoder" (our text tower,
            one random template per class and step, trained).
        table: file of the stored table, "" for the embedded one.
    """

    source: str = "table"
    table: str = ""


@dataclasses.dataclass(frozen=True)
class OptimizerChoice:
    """AdamW as in the reference (SPEC section viii).

    Attributes:
        learning_rate: of everything but backbone and text tower.
        backbone_factor, text_factor: their factor on the learning rate.
        weight_decay: not applied to norms, embeddings and position-bias tables.
        clip_norm: global gradient norm.
        warmup_steps: linear warm-up.
        schedule: "step" (x0.1 at the two fractions of `decay_at`) or "cosine".
        decay_at: fractions of the steps at which "step" decays.
        ema: decay of the averaged parameters, 0 for none.
    """

    learning_rate: float = 1e-4
    backbone_factor: float = 0.1
    text_factor: float = 0.1
    weight_decay: float = 0.05
    clip_norm: float = 0.01
    warmup_steps: int = 10
    schedule: str = "step"
    decay_at: tuple[float, float] = (0.9, 0.95)
    ema: float = 0.0


@dataclasses.dataclass(frozen=True)
class LossChoice:
    """Weights and points of the criterion (SPEC sections vii, viii, xiii).

    Attributes:
        num_points: points at which mask losses are taken.
        match_points: points at which mask costs are taken.
        mask_bce, dice, l1, giou, iou, object_class, part_class: weights.
        many_to_one: SAM's rule (the best token alone learns) instead of many-to-many.
        detach_iou_target: no gradient from the IoU loss into the masks.
        score_all_tokens: the predicted IoU of unmatched tokens learns too.
        interactive, generic: weight of each stream's sum.
    """

    num_points: int = 12544
    match_points: int = 12544
    mask_bce: float = 5.0
    dice: float = 5.0
    l1: float = 5.0
    giou: float = 2.0
    iou: float = 1.0
    object_class: float = 4.0
    part_class: float = 4.0
    many_to_one: bool = False
    detach_iou_target: bool = True
    score_all_tokens: bool = False
    interactive: float = 1.0
    generic: float = 1.0


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A whole run.

    Attributes:
        steps: optimiser steps.
        seed: of everything random.
        fsdp: devices that share one copy of the parameters, -1 for all.
        log_every, save_every, eval_every: steps; 0 turns evaluation within the run off.
        keep: checkpoints kept.
        eval_photos: held-back photos of the one-click evaluation, 0 for none.
        time_limit_sec: stop (and save) after this many seconds, 0 for no limit.
    """

    model: ModelChoice = ModelChoice()
    data: DataChoice = DataChoice()
    text: TextChoice = TextChoice()
    optimizer: OptimizerChoice = OptimizerChoice()
    loss: LossChoice = LossChoice()
    steps: int = 1
    seed: int = 0
    fsdp: int = 1
    log_every: int = 20
    save_every: int = 500
    eval_every: int = 0
    keep: int = 2
    eval_photos: int = 0
    time_limit_sec: float = 0.0

    def to_dict(self) -> dict:
        """Returns plain nested dicts, for the checkpoint's meta."""
        return dataclasses.asdict(self)


def build(config: Mapping | ConfigDict) -> RunConfig:
    """Makes a checked RunConfig of a (possibly partial) nested mapping.

    Raises:
        ConfigError: unknown key, wrong type, or values that do not go together.
    """
    values = config.to_dict() if isinstance(config, ConfigDict) else config
    run = _build(RunConfig, values, "config")
    _check(run)
    return run


def check_batch(run: RunConfig, num_shards: int) -> None:
    """Checks that both quotas divide over the devices; ConfigError names the fix."""
    for name in ("interactive_batch", "generic_batch"):
        rows = getattr(run.data, name)
        if rows % num_shards:
            raise ConfigError(
                f"data.{name}: {rows} is not divisible by the {num_shards} batch shards "
                f"(devices); use a multiple of {num_shards}."
            )


def _check(run: RunConfig) -> None:
    model = presets.model_config(run.model.preset)
    _one_of("model.dtype", run.model.dtype, ("float32", "bfloat16"))
    _one_of("model.remat", run.model.remat, tuple(REMAT_POLICIES))
    _one_of("text.source", run.text.source, ("table", "encoder"))
    _one_of("optimizer.schedule", run.optimizer.schedule, ("step", "cosine"))
    data = run.data
    if run.text.source == "encoder" and model.text is None:
        raise ConfigError(
            f"text.source: preset {run.model.preset!r} has no text tower; use text.source=table."
        )
    if data.image_size % 32:
        raise ConfigError(f"data.image_size: {data.image_size} is not a multiple of 32.")
    if data.mask_stride < 1 or data.image_size % (8 * data.mask_stride):
        raise ConfigError(
            f"data.mask_stride: {data.mask_stride} does not fit image_size {data.image_size}; "
            f"image_size must be a multiple of 8 * mask_stride."
        )
    for name in ("steps", "log_every", "save_every", "keep"):
        if getattr(run, name) < 1:
            raise ConfigError(f"{name}: {getattr(run, name)}; must be at least 1.")
    for name in ("interactive_batch", "generic_batch"):
        if getattr(data, name) < 0:
            raise ConfigError(f"data.{name}: {getattr(data, name)}; must not be negative.")
    if data.interactive_batch + data.generic_batch == 0:
        raise ConfigError("data.interactive_batch, data.generic_batch: both are 0.")
    for name in ("datasets", "granularity", "generic_datasets"):
        for key, share in getattr(data, name).items():
            if share < 0:
                raise ConfigError(f"data.{name}.{key}: {share}; a share is not negative.")
    if not 0 <= data.box_share <= 1:
        raise ConfigError(f"data.box_share: {data.box_share}; must lie in 0..1.")


def _one_of(where: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{where}: {value!r}; use one of {', '.join(allowed)}.")


def _build(kind: type, values: object, where: str) -> object:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: got {values!r}, wanted a group of keys.")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    made = {}
    for key, value in values.items():
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; keys: {', '.join(fields)}."
            raise ConfigError(f"{where}.{key}: no such key{hint}")
        made[key] = _convert(hints[key], value, f"{where}.{key}")
    return kind(**made)


def _convert(hint: object, value: object, where: str) -> object:
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, where)
    origin = typing.get_origin(hint)
    if origin is tuple:
        return tuple(float(item) for item in value)
    if origin is not None and issubclass(origin, Mapping):
        return {str(k): float(v) for k, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{where}: got {value!r}, wanted {hint.__name__}.")
    return value
